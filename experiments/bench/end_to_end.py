"""Images per second of `pretrain` itself, from photographs and from memory.

The numbers come from the run's metrics.jsonl, which excludes compiling, evaluating and saving; the
first line is not counted.
"""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from byol_jax.errors import UserError
from experiments.bench import measure, photographs, pretraining
from experiments.bench.report import Column, Report, Table, facts

SYNTHETIC = 256  # photographs, if --data names none
LINES = 3  # of metrics.jsonl that count
# For each case its preset, changes of it, and the steps between two lines.
ON_CPU = {
    "photographs": (
        "folder",
        {
            "dtype": "float32",
            "batch_size": 32,
            "encoder.name": "resnet10",
            "encoder.width_multiplier": 0.25,
        },
        2,
    ),
    "memory": ("cifar10_small", {}, 8),
}
ON_ACCELERATOR = {
    "photographs": ("folder", {}, 20),
    "memory": ("cifar10", {}, 200),
}
IMAGES = (50_000, 32, 32, 3)  # in memory, as CIFAR-10


def run(data: str) -> Report:
    """Runs `pretrain` briefly for each source of images.

    Args:
      data: folder:PATH, or "" for synthetic photographs.
    """
    cases = ON_CPU if facts()["device"]["platform"] == "cpu" else ON_ACCELERATOR
    notes: list[str] = []
    table = Table(
        "Real runs",
        [
            Column("images from", "text"),
            Column("encoder", "text"),
            Column("crops computed on the", "text"),
            Column("images/s", "number"),
            Column("waiting for input", "share"),
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        photos, arrays = Path(folder) / "photographs", Path(folder) / "train.npz"
        photos.mkdir()
        if not data:
            photographs.draw(photos, SYNTHETIC)
        rng = np.random.default_rng(0)
        np.savez(arrays, images=rng.integers(0, 256, IMAGES, np.uint8))
        for name, source, placement in (
            ("photographs", data or f"folder:{photos}", "host"),
            ("memory", f"npz:{arrays}", "host"),
            ("memory", f"npz:{arrays}", "device"),
        ):
            preset, changes, every = cases[name]
            changes = changes | {"data.placement": placement, "data.source": source}
            try:
                config, rows = train(preset, changes, every)
            except UserError as error:  # such as TensorFlow missing
                notes.append(f"Not measured: {name}, crops on the {placement}: {error}")
                continue
            encoder = config["encoder"]
            table.add(
                f"{name}, {config['data']['image_size']} pixels",
                f"{encoder['name']} x {encoder['width_multiplier']:g}, {config['dtype']}",
                placement,
                measure.spread([row["images_per_second"] for row in rows]),
                measure.spread([row["input_wait_share"] for row in rows]),
            )
    return Report("end_to_end", [table], notes=notes)


def train(preset: str, changes: dict[str, object], every: int) -> tuple[dict, Sequence[dict]]:
    """Trains briefly; returns the config of the run and the lines of its metrics with its speed.

    Args:
      preset: its name.
      changes: keys and values of its config.
      every: steps between two lines of metrics.

    Raises:
      UserError: the run failed.
    """
    changes = changes | {
        "data.test_split": "",
        "epochs": 0,
        "steps": every * (LINES + 1),
        "log_every_steps": every,
        "checkpoint.every_steps": 10**6,
        "evaluation.every_steps": 0,
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
            lines = done.stderr.strip().splitlines() or ["nothing"]
            raise UserError(f"a run of {preset} failed; its last output: {lines[-1]}")
        config = json.loads((Path(workdir) / "config.json").read_text(encoding="utf-8"))["config"]
        lines = (Path(workdir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return config, [row for row in map(json.loads, lines[1:]) if "images_per_second" in row]
