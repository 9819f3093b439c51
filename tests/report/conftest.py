"""A run that was never trained, on images with planted duplicates, and its page."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

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
