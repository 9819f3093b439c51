"""The accelerator kernels in which a step spends most of its time."""

import collections
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

from experiments.bench import settings
from experiments.bench.report import Column, Table

STEPS = 3
MOST = 5


def largest(step: Callable[[], jax.Array]) -> list[tuple[str, float, float]]:
    """Name, seconds per step, and share of the time of all kernels; the largest first.

    Empty on a CPU, for which the profiler reports no kernels.
    """
    if jax.default_backend() == "cpu":
        return []
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                result = step()
            jax.block_until_ready(result)
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        took: collections.Counter[str] = collections.Counter()
        for plane in planes:
            if plane.name.startswith("/device:"):
                for line in plane.lines:
                    # Other lines show the same time by operation, module or step.
                    if line.name.startswith("Stream"):
                        for event in line.events:
                            took[event.name] += event.duration_ns / 1e9 / STEPS
    total = sum(took.values())
    return [(name, seconds, seconds / total) for name, seconds in took.most_common(MOST)]


def table(case: settings.Case, found: list[tuple[str, float, float]]) -> Table:
    """The result of `largest` as a table."""
    result = Table(
        f"The largest kernels of our step: {case}",
        [Column("kernel", "text"), Column("seconds", "seconds"), Column("share", "share")],
    )
    for name, seconds, share in found:
        result.add(name[:80], seconds, share)
    return result
