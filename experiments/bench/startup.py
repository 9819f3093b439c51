"""Seconds from the start of `pretrain` to the end of its first step, without and with a cache.

The first start compiles into an empty cache, the second loads its programs from there. Each is
timed from outside, from the start of the process until it prints that the first step is done, and
is then killed. An import is timed in a process that does nothing else.
"""

import re
import subprocess
import sys
import tempfile
import time

from byol_jax.errors import UserError
from experiments.bench import measure, pretraining
from experiments.bench.report import Column, Report, Table

PRESET = "quickstart"
# Changes of the preset, and the number of rounds.
CASES = {
    "the quickstart (ResNet-8, 32 pixels)": ({}, 2),
    "the same with a ResNet-18": (
        {
            "encoder.name": "resnet18",
            "encoder.stem": "cifar",
            "encoder.width_multiplier": 1.0,
            "batch_size": 32,
        },
        1,
    ),
}
DONE = re.compile(r"First step after [\d.]+ s(?:, of which ([\d.]+)(?: s)? compiling)?")
IMPORTS = ("byol_jax", "byol_jax.train.loop")


def run() -> Report:
    """Starts runs with an empty cache and again with the filled one; imports modules."""
    starts = Table(
        "To the end of the first step",
        [
            Column("run", "text"),
            Column("first start", "seconds"),
            Column("second start", "seconds"),
            Column("speed-up (x)", "ratio"),
            Column("first start, compiling", "seconds"),
            Column("second start, loading", "seconds"),
        ],
    )
    for name, (changes, rounds) in CASES.items():
        columns = zip(*(both(changes) for _ in range(rounds)), strict=True)
        (cold, compiling), (warm, loading) = (zip(*column, strict=True) for column in columns)
        starts.add(
            name,
            measure.spread(cold),
            measure.spread(warm),
            measure.ratios(cold, warm),
            measure.spread(compiling),
            measure.spread(loading),
        )
    nothing = {"nothing": lambda: imported("sys")}
    turns = nothing | {name: (lambda name=name: imported(name)) for name in IMPORTS}
    took = measure.in_turn(turns, seconds=0)
    imports = Table("Imports", [Column("module", "text"), Column("seconds", "seconds")])
    for name in IMPORTS:
        values = [a - b for a, b in zip(took[name], took["nothing"], strict=True)]
        imports.add(name, measure.spread(values))
    return Report("startup", [starts, imports])


def both(changes: dict[str, object]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Starts with an empty cache, then with the same one: seconds, and those spent compiling."""
    with tempfile.TemporaryDirectory() as cache:
        return first_step(changes, cache), first_step(changes, cache)


def first_step(changes: dict[str, object], cache: str) -> tuple[float, float]:
    """Starts a run; returns seconds to the end of its first step, and those spent compiling.

    Raises:
      UserError: the run ended before.
    """
    with tempfile.TemporaryDirectory() as workdir:
        start = time.perf_counter()
        process = subprocess.Popen(
            pretraining.command(PRESET, changes, workdir, cache),
            env=pretraining.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        last = "nothing"
        try:
            for line in process.stdout:
                last = line.strip() or last
                found = DONE.search(line)
                if found:
                    return time.perf_counter() - start, float(found[1] or 0)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    raise UserError(f"a run of {PRESET} ended before its first step; its last output: {last}")


def imported(module: str) -> float:
    """Seconds of a process that imports a module."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, capture_output=True)
    return time.perf_counter() - start
