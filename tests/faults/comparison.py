"""What two runs ended with: is there any difference?"""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from byol_jax import byol
from byol_jax.runs import manifest
from byol_jax.runs import run as run_lib

TIMES = {"images_per_second", "input_wait_share"}


class Result(NamedTuple):
    """What a run leaves: every leaf of its state by name, and its readings, one for each line."""

    state: dict[str, np.ndarray]
    readings: list[dict[str, float]]


def result(workdir: Path) -> Result:
    """The result of the run in a folder, at its newest checkpoint.

    Raises:
      UserError: it has none that can be read.
    """
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return Result(state_at(workdir), [json.loads(line) for line in lines])


def state_at(workdir: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """The state at a step, or at the newest checkpoint, by the names of its leaves."""
    return by_name(run_lib.restore(workdir, step).state)


def by_name(state: byol.State) -> dict[str, np.ndarray]:
    """The leaves of a state by name."""
    return manifest.leaves(jax.tree.map(np.asarray, state._asdict()))


def difference(wanted: Result, got: Result) -> str:
    """The first difference in words; '' where there is none.

    Args:
      wanted: of the run that nothing disturbed.
      got: of the other.
    """
    return difference_of_states(wanted.state, got.state) or _of_readings(wanted, got)


def difference_of_states(wanted: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> str:
    """The first leaf that differs in a bit, and by how much."""
    if wanted.keys() != got.keys():
        return f"other leaves: {sorted(wanted.keys() ^ got.keys())}"
    for name, want in wanted.items():
        have = got[name]
        if (have.dtype, have.shape) != (want.dtype, want.shape):
            return f"{name} is {have.dtype} {have.shape}, not {want.dtype} {want.shape}"
        if have.tobytes() != want.tobytes():
            return f"{name} differs, by up to {np.max(np.abs(have - want))}"
    return ""


def _of_readings(wanted: Result, got: Result) -> str:
    steps = [row["step"] for row in got.readings]
    if steps != sorted(set(steps)):
        return f"metrics.jsonl: the steps are {steps}"
    rows = {row["step"]: row for row in got.readings}
    for row in wanted.readings:
        if row["step"] not in rows:
            return f"metrics.jsonl: nothing of step {row['step']}"
        other = rows.pop(row["step"])
        # A time is missing where no step was timed since the start.
        if {k: v for k, v in row.items() if k not in TIMES} != {
            k: v for k, v in other.items() if k not in TIMES
        }:
            return f"metrics.jsonl: {other} and not {row}"
    if rows:
        return f"metrics.jsonl: too much, of steps {sorted(rows)}"
    return ""
