"""A run that resumes from one of its steps ends in the same state, to the bit."""

import json
import shutil

import jax
import numpy as np
import pytest
from tiny import tiny_config

from byol_jax import data
from byol_jax.data import textures
from byol_jax.runs import manifest
from byol_jax.runs import run as run_lib
from byol_jax.train import loop

STEPS = 8  # two epochs
TIMES = {"images_per_second", "input_wait_share"}


def start(workdir):
    images, labels = textures.draw(64, seed=3)
    config = tiny_config()
    config.steps, config.epochs = 0, 2
    config.optimizer.name, config.optimizer.base_learning_rate = "lars", 1.0
    config.log_every_steps, config.checkpoint.every_steps, config.checkpoint.keep = 1, 1, STEPS
    config.evaluation.every_steps, config.data.test_split = 0, ""
    config.data.placement = "host"  # tests/data/test_on_device.py resumes on the device
    assert loop.train(config, workdir, data.from_arrays(images, labels))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    start(workdir)
    return workdir


def metrics(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@pytest.mark.parametrize("step", [1, 4, 6])  # 4 is the end of an epoch
def test_a_run_resumes_from_a_step(undisturbed, step, tmp_path):
    workdir = shutil.copytree(undisturbed, tmp_path / "run")
    for checkpoint in (workdir / "checkpoints").iterdir():
        if int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)
    start(workdir)
    want, got = (manifest.leaves(run_lib.restore(w).state) for w in (undisturbed, workdir))
    assert int(got["step"]) == STEPS and any("trace" in name for name in got)  # and momentum
    for name, leaf in want.items():
        np.testing.assert_array_equal(got[name], leaf, err_msg=name)
    assert metrics(workdir) == metrics(undisturbed)
    assert [row["step"] for row in metrics(workdir)] == list(range(1, STEPS + 1))


def test_every_step_moved_every_kind_of_leaf(undisturbed):
    """Otherwise the equality above would prove little."""
    before, after = (run_lib.restore(undisturbed, step).state for step in (STEPS - 1, STEPS))
    for field in ("step", "online_params", "target_params", "online_stats", "opt_state"):
        old, new = (jax.tree.leaves(getattr(state, field)) for state in (before, after))
        assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(old, new, strict=True))
