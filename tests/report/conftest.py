"""A run that was never trained, on images with planted duplicates, and its page."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

from byol_jax.presets import signals
from byol_jax.report import write
from byol_jax.runs import inputs
from byol_jax.runs import run as run_lib
from byol_jax.runs.checkpoint import Checkpoints, RetentionPolicy
from byol_jax.runs.resolve import resolve

COUNTS = {"train": 60, "test": 24}
CLASSES = ["<script>alert(1)</script>", "two", "three"]  # names must not become markup


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Images of three classes: 40 equals 7, and test image 5 equals 10."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        labels = np.arange(count) % 3
        noise = rng.integers(0, 160, (count, 20, 20, 1))
        images = (noise + 40 * labels[:, None, None, None]).astype(np.uint8)
        if split == "train":
            images[40], tenth = images[7], images[10]
        else:
            images[5] = tenth
        np.savez(folder / f"{split}.npz", images=images, labels=labels, class_names=CLASSES)
    (folder / "unlabelled").mkdir()
    np.savez(folder / "unlabelled" / "train.npz", images=images)
    return folder


@pytest.fixture(scope="session")
def run(folder, tmp_path_factory):
    """Its folder: training would take most of the time of these tests, and changes no page."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny_config()
    config.data.source = f"npz:{folder}"
    config, _ = resolve(config)
    run = run_lib.make_run(config, inputs.open_split(config, "train"))
    run_lib.prepare_workdir(workdir, run)
    state = run_lib.initial_state(run.learner(), config)
    params = jax.tree.map(lambda x: x + 0.1, state.online_params)
    with Checkpoints(workdir / "checkpoints", RetentionPolicy(newest=1)) as checkpoints:
        checkpoints.save(6, state._replace(online_params=params, step=np.int32(6)))
    row = {"byol_loss": 1.5, "projection_std": 0.8, "projection_rank": 3.0, "knn_test_top1": 0.5}
    rows = [{"step": step, "images_per_second": 40.0} | row for step in (2, 4, 6)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.new("RGB", (80, 40), "teal").save(workdir / "views.png")
    results = {"protocol": "knn", "step": 6, "details": {"byol": {"top1": 0.25}}}
    (workdir / "eval").mkdir()
    (workdir / "eval" / "knn.json").write_text(json.dumps(results))
    (workdir / "eval" / "other.json").write_text("[1]")
    return workdir


@pytest.fixture(scope="session")
def parts():
    """The parts that were logged while the page was written."""
    return []


@pytest.fixture(scope="session")
def page_file(run, parts):
    return write(run, log=lambda line: parts.append(line.partition(":")[0]))


def knn(top1, low, high):
    return {"top1": top1, "interval": [low, high], "k": 20, "top1_by_k": {"20": top1}}


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Folders of three runs: evaluated; unfinished, with another rate; on signals, with nothing."""
    folder = tmp_path_factory.mktemp("runs")
    configs = {name: tiny_config() for name in ("first", "second")}
    configs["second"].optimizer.base_learning_rate = 0.25
    configs["second"].log_every_steps = 1
    configs["signals"] = signals.get_config()
    configs["signals"].data.source = "npz:nowhere"
    for name, config in configs.items():
        description = {"name": "some", "num_examples": 40, "num_classes": 3}
        description |= {"class_names": CLASSES, "fingerprint": None}
        made = run_lib.Run(resolve(config)[0], description, 2)
        (folder / name).mkdir()
        run_lib.prepare_workdir(folder / name, made)
    metrics = {
        "first": [
            {"step": s, "byol_loss": 3 / s, "images_per_second": 8.0, "knn_test_top1": s / 10}
            for s in (2, 4, 6)
        ],
        "second": [{"step": s, "byol_loss": 2 / s, "knn_test_top1": 0.25} for s in (1, 2, 3)],
    }
    details = {
        "first": {"byol": knn(0.525, 0.5, 0.55), "random": knn(0.9, 0.8, 0.95)},
        "second": {"byol": knn(0.75, 0.7, 0.8), "random": knn(0.1, 0.05, 0.2)},
    }
    for name, rows in metrics.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name / "metrics.jsonl").write_text(text)
        result = {"protocol": "knn", "data": "some/test", "test_examples": 1200}
        result |= {"step": rows[-1]["step"], "details": details[name]}
        (folder / name / "eval").mkdir()
        (folder / name / "eval" / "knn.json").write_text(json.dumps(result))
    measured = {"protocol": "retrieval", "step": 6, "details": {"byol": {"recall": {"1": 0.5}}}}
    (folder / "first" / "eval" / "retrieval.json").write_text(json.dumps(measured))
    (folder / "second" / "eval" / "broken.json").write_text("{")
    return [folder / name for name in configs]
