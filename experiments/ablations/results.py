"""Runs rows side by side, and saves the results of each as soon as it is done."""

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from byol_jax.errors import UserError
from experiments.ablations.rows import Row

Numbers = dict[str, Any]


def complete(
    output: Path,
    rows: list[Row],
    seeds: list[str],
    run: Callable[[Row, str], Numbers],
    jobs: int = 1,
) -> None:
    """Runs what a file of results lacks.

    Args:
      output: a JSON file `{row's name: {seed: numbers}}`; what it has is kept.
      rows: the rows to run.
      seeds: each of which runs every row.
      run: gives the numbers of a row and a seed.
      jobs: how many of these run at a time, each in a thread.

    Raises:
      UserError: some runs raised UserError; the others are finished and saved first.
    """
    results = json.loads(output.read_text()) if output.exists() else {}
    todo = [(row, seed) for seed in seeds for row in rows if seed not in results.get(row.name, {})]
    output.parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        started = {pool.submit(run, *job): job for job in todo}
        for done in as_completed(started):
            row, seed = started[done]
            try:
                numbers = done.result()
            except UserError as error:
                failed += 1
                print(f"error: {error}", file=sys.stderr, flush=True)
                continue
            results.setdefault(row.name, {})[seed] = numbers
            output.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{row.name}, seed {seed}: {numbers}", flush=True)
    if failed:
        raise UserError(f"{failed} of {len(todo)} runs failed: see above.")
