"""Images a second of real runs: `pretrain` itself, from photographs and from memory.

The numbers are those of the run's own metrics.jsonl, which leaves out compiling, evaluating and
saving; of its readings all but the first count.
"""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from byol_jax.errors import UserError
from experiments.bench import measure, photographs, pretraining, report
from experiments.bench.report import Column, Report, Table

DRAWN = 256  # photographs, where none are named
READINGS = 3
# Of a case: its preset, what differs from it, and the steps between two readings.
ON_CPU = {
    "photographs": (
        "folder.py",
        {
            "dtype": "float32",
            "batch_size": 32,
            "encoder.name": "resnet10",
            "encoder.width_multiplier": 0.25,
        },
        2,
    ),
    "memory": ("cifar10_small.py", {}, 8),
}
ON_ACCELERATOR = {
    "photographs": ("folder.py", {}, 20),
    "memory": ("cifar10.py", {}, 200),
}
IMAGES = (50_000, 32, 32, 3)  # in memory: as CIFAR-10


def run(data: str) -> Report:
    """Runs `pretrain` for a short while in each way.

    Args:
      data: folder:PATH, or "" for photographs that are drawn.
    """
    cases = ON_CPU if report.facts()["device"]["platform"] == "cpu" else ON_ACCELERATOR
    notes: list[str] = []
    table = Table(
        "Real runs",
        [
            Column("images from", "text"),
            Column("encoder", "text"),
            Column("views cut on the", "text"),
            Column("images/s", "number"),
            Column("waiting for input", "share"),
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        photos, arrays = Path(folder) / "photographs", Path(folder) / "train.npz"
        photos.mkdir()
        if not data:
            photographs.draw(photos, DRAWN)
        rng = np.random.default_rng(0)
        np.savez(arrays, images=rng.integers(0, 256, IMAGES, np.uint8))
        for name, source, placements in (
            ("photographs", data or f"folder:{photos}", ["host"]),
            ("memory", f"npz:{arrays}", ["host", "device"]),
        ):
            preset, settings, every = cases[name]
            for placement in placements:
                changes = settings | {"data.placement": placement, "data.source": source}
                try:
                    config, rows = readings(preset, changes, every)
                except UserError as error:  # no TensorFlow, for one
                    notes.append(f"Not measured: {name}, cut on the {placement}: {error}")
                    continue
                encoder = config["encoder"]
                table.add(
                    f"{name}, {config['data']['image_size']} pixels",
                    f"{encoder['name']} x {encoder['width_multiplier']:g}, {config['dtype']}",
                    placement,
                    *(
                        measure.spread([row[key] for row in rows])
                        for key in ("images_per_second", "input_wait_share")
                    ),
                )
    return report.Report("end_to_end", [table], notes=notes)


def readings(preset: str, changes: dict[str, object], every: int) -> tuple[dict, Sequence[dict]]:
    """The config of a run, and what it read of its speed after each so many steps.

    Args:
      preset: a file of experiments/configs.
      changes: keys and values of its config.
      every: steps between two readings.

    Raises:
      UserError: the run failed.
    """
    changes = changes | {
        "data.test_split": "",
        "epochs": 0,
        "steps": every * (READINGS + 1),
        "log_every_steps": every,
        "checkpoint.every_steps": 10**6,
        "knn.every_steps": 0,
        "optimizer.warmup_epochs": 0.0,
    }
    with tempfile.TemporaryDirectory() as workdir:
        done = subprocess.run(
            pretraining.command(preset, changes, workdir),
            env=pretraining.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["nothing"]
            raise UserError(f"a run of {preset} failed; its last words were: {said[-1]}")
        config = json.loads((Path(workdir) / "config.json").read_text(encoding="utf-8"))["config"]
        lines = (Path(workdir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return config, [row for row in map(json.loads, lines[1:]) if "images_per_second" in row]
