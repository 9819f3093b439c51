"""Trains and evaluates the rows of a table of docs/ablations.md.

    python -m experiments.ablations --table=NAME --workdir=DIR [--rows=NAME,...] [--seeds=0,1,2] \
        [--jobs=1] [--output=FILE.json] [--data_dir=DIR] [--source=SOURCE]

A row is what `byol-jax pretrain` and `byol-jax evaluate` give. Rows that the output already has are
not run again, so a table can be made in parts. With several jobs, that many rows train at a time,
each on one CPU device.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import flags

from byol_jax.backend import cores
from byol_jax.cli import app
from byol_jax.errors import UserError
from byol_jax.train.metrics import read_rows
from experiments.ablations import results
from experiments.ablations.rows import TABLES, Row, Table

TABLE = flags.DEFINE_enum("table", None, list(TABLES), "Which table.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the runs.", required=True)
ROWS = flags.DEFINE_list("rows", [], "Names of rows; by default all.")
SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds, each of which trains every row.")
JOBS = flags.DEFINE_integer("jobs", 1, "Rows that train at a time.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", "", "JSON file of results; by default in the workdir.")
SOURCE = flags.DEFINE_string("source", "", "The preset's data by default.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Where TFDS keeps its data.")
COLLAPSE = re.compile(r"At step (\d+) the .* projections have a standard deviation")


def main() -> None:
    """Runs what is missing."""
    table = TABLES[TABLE.value]
    known = [row.name for row in table.rows]
    if unknown := set(ROWS.value) - set(known):
        raise UserError(f"--rows={min(unknown)} is not one of {', '.join(known)}.")
    workdir = Path(WORKDIR.value)
    output = Path(OUTPUT.value) if OUTPUT.value else workdir / f"{TABLE.value}.json"

    def run(row: Row, seed: str) -> dict[str, Any]:
        return result(table, row, seed, workdir / TABLE.value / f"{row.name}_{seed}")

    rows = [row for row in table.rows if row.name in (ROWS.value or known)]
    results.complete(output, rows, SEEDS.value, run, JOBS.value)


def result(table: Table, row: Row, seed: str, workdir: Path) -> dict[str, Any]:
    """Trains and evaluates a row: its accuracies, and what its last step measured."""
    data = [f"--config.data.dir={DATA_DIR.value}"] if DATA_DIR.value else []
    data += [f"--config.data.source={SOURCE.value}"] if SOURCE.value else []
    devices = ["--cpu_devices=1"] if JOBS.value > 1 else []
    row_flags = [flag.format(recipe=workdir.parent / f"recipe_{seed}") for flag in row.flags]
    config = [f"--config={table.preset}", *table.flags, *data, *row_flags, f"--config.seed={seed}"]
    log = command("pretrain", *config, f"--workdir={workdir}", "--noreport", *devices)
    # The encoder before training is the recipe's in all rows but those of other encoders.
    other = row.name == "recipe" or any("--config.encoder." in flag for flag in row.flags)
    baselines = "--baselines=random" if other else "--baselines="
    own = [name for flag in row.flags for name in re.findall(r"encoder\.name=(.*):", flag)]
    imports = [f"--import={own[0]}"] if own else []  # a run does not import them by itself
    command(
        "evaluate", f"--checkpoint={workdir}", "--protocol=logistic", baselines, *imports, *devices
    )
    top1 = json.loads((workdir / "eval" / "logistic.json").read_text())["top1"]
    last = read_rows(workdir / "metrics.jsonl")[-1]
    numbers = {"logistic": top1["byol"], "knn": last["knn_test_top1"]}
    numbers |= {"untrained": top1["random"]} if other else {}
    measured = ("loss", "probe_loss", "projection_std", "projection_rank", "embedding_rank")
    numbers |= {key: last[key] for key in measured}
    collapse = COLLAPSE.search(log)
    return numbers | {"collapsed_at": int(collapse[1]) if collapse else None}


def command(name: str, *arguments: str) -> str:
    """Runs a command of byol-jax and returns what it printed; raises UserError if it fails."""
    threads = str(max(1, cores() // JOBS.value))
    run = subprocess.run(
        [sys.executable, "-m", "byol_jax.cli", name, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": threads},
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise UserError(f"byol-jax {name} {' '.join(arguments)}: {run.stderr.strip()}")
    return run.stdout + run.stderr


if __name__ == "__main__":
    app.run(main)
