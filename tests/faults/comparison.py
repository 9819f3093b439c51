"""The results of two runs, and the first difference between them."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from byol_jax import byol
from byol_jax.runs import manifest
from byol_jax.runs import run as run_lib

from .processes import Run
from .tally import Tally

TIMES = {"images_per_second", "input_wait_share"}


class Result(NamedTuple):
    """What a run leaves: every leaf of its state by name, and the lines of metrics.jsonl."""

    state: dict[str, np.ndarray]
    metrics: list[dict[str, float]]


def result(workdir: Path) -> Result:
    """The result of the run in a folder, at its newest checkpoint.

    Raises:
      UserError: there is no checkpoint that can be read.
    """
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return Result(state_at(workdir), [json.loads(line) for line in lines])


def state_at(workdir: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """The leaves of the state at a step, or at the newest checkpoint, by name."""
    return by_name(run_lib.restore(workdir, step).state)


def by_name(state: byol.State) -> dict[str, np.ndarray]:
    """The leaves of a state by name."""
    return manifest.leaves(jax.tree.map(np.asarray, state._asdict()))


def complete_and_compare(
    tally: Tally, run: Run, undisturbed: Result, *, times: int = 1, must_resume: bool = True
) -> None:
    """Starts a disturbed run again to its end, and counts whether it equals the undisturbed one."""
    last = run.complete()
    if last.finish() == 0 and (last.resumed_line() or not must_resume):
        tally.message = tally.message or last.line_with("is damaged") or last.resumed_line()
        tally.count(difference(undisturbed, result(run.workdir)), times=times)
    else:
        tally.lose(f"{tally.fault}: not resumed: {last.end()}")


def difference(wanted: Result, got: Result) -> str:
    """The first difference, as text; '' if there is none.

    Args:
      wanted: of the undisturbed run.
      got: of the other run.
    """
    return difference_of_states(wanted.state, got.state) or _difference_of_metrics(wanted, got)


def difference_of_states(wanted: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> str:
    """The first leaf that differs in any bit, and by how much."""
    if wanted.keys() != got.keys():
        return f"other leaves: {sorted(wanted.keys() ^ got.keys())}"
    for name, want in wanted.items():
        have = got[name]
        if (have.dtype, have.shape) != (want.dtype, want.shape):
            return f"{name} is {have.dtype} {have.shape}, not {want.dtype} {want.shape}"
        if have.tobytes() != want.tobytes():
            return f"{name} differs, by up to {np.max(np.abs(have - want))}"
    return ""


def _difference_of_metrics(wanted: Result, got: Result) -> str:
    steps = [row["step"] for row in got.metrics]
    if steps != sorted(set(steps)):
        return f"metrics.jsonl: the steps are {steps}"
    rows = {row["step"]: row for row in got.metrics}
    for row in wanted.metrics:
        if row["step"] not in rows:
            return f"metrics.jsonl: no line of step {row['step']}"
        other = rows.pop(row["step"])
        # A time is missing if no step was timed since the start.
        if {k: v for k, v in row.items() if k not in TIMES} != {
            k: v for k, v in other.items() if k not in TIMES
        }:
            return f"metrics.jsonl: {other} and not {row}"
    if rows:
        return f"metrics.jsonl: additional lines, of steps {sorted(rows)}"
    return ""
