"""Runs on several CPU devices: which number they take, keep and record."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from compilation import XLA_FLAGS

import byol_jax
from byol_jax import backend
from byol_jax.runs import run as run_lib

ROOT = Path(__file__).parents[2]
SHORT = ("--config.steps=6", "--config.checkpoint.every_steps=3")
SHORT += ("--config.evaluation.every_steps=0",)
SHORT += ("--config.data.placement=device",)  # without TensorFlow it starts sooner


def pretrain(workdir, *flags, **environment):
    """Runs the command with the CPU as JAX finds it."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "byol_jax.cli", "pretrain", f"--workdir={workdir}"),
            "--noreport",
            *(f"--config={ROOT}/tests/faults/toy.py:convnet", *SHORT, *flags),
        ],
        env=os.environ | {"XLA_FLAGS": XLA_FLAGS, "PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def record(workdir):
    return json.loads((workdir / "config.json").read_text())


def weights(workdir):
    return jax.tree.leaves(byol_jax.load(workdir).variables)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """A finished run on one device, where two would be the default of two cores."""
    workdir = tmp_path_factory.mktemp("one")
    done = pretrain(workdir, "--cpu_devices=1")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_the_first_lines_and_the_record_have_what_computes(one_device):
    workdir, output = one_device
    found = record(workdir)["computed_by"]
    assert (found["platform"], found["devices"], found["xla_flags"]) == ("cpu", 1, XLA_FLAGS)
    assert f"\nComputed by {run_lib.describe(found)}.\n" in output
    assert run_lib.describe(found).startswith(f"1 cpu device ({backend.processor()}), convolutions")
    if found["convolutions"] == "onednn":
        threads = found["threads"]
        assert threads == backend.cores()
        assert f"oneDNN ({threads} thread" in run_lib.describe(found)


def test_a_resumed_run_keeps_its_number_and_its_bits(one_device, tmp_path):
    workdir = shutil.copytree(one_device[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "6")
    done = pretrain(workdir)
    assert done.returncode == 0, done.stderr
    assert "Resuming from the checkpoint of step 3" in done.stdout
    assert "Rounding" not in done.stdout and record(workdir)["computed_by"]["devices"] == 1
    for got, want in zip(weights(workdir), weights(one_device[0]), strict=True):
        np.testing.assert_array_equal(got, want)


def test_another_number_is_reported_and_gives_the_same_result(one_device, tmp_path):
    workdir = shutil.copytree(one_device[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "6")
    # Like a new run, one whose number is not known takes a device for each core.
    before = record(workdir)
    before["computed_by"]["platform"] = "tpu"
    (workdir / "config.json").write_text(json.dumps(before))
    done = pretrain(workdir, "--config.cpu_convolution=xla")
    assert done.returncode == 0, done.stderr
    now = record(workdir)["computed_by"]
    assert now["devices"] == min(backend.cores(), 2)  # each with 8 of 16 rows
    assert now["convolutions"] == "xla"
    assert f"before, by {run_lib.describe(now)} now. Rounding differs from here on" in done.stdout
    for got, want in zip(weights(workdir), weights(one_device[0]), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-4)


@pytest.mark.parametrize(
    ("facts", "want"),
    [
        ({"platform": "cpu", "devices": 6}, 6),  # of all processes
        ({"platform": "gpu", "devices": 6}, None),
        ({"platform": "cpu", "devices": 0}, None),
        ("2 cpu", None),
    ],
)
def test_the_number_that_a_run_had(tmp_path, facts, want):
    assert run_lib.cpu_devices(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"computed_by": facts}))
    assert run_lib.cpu_devices(tmp_path) is None  # no checkpoint: nothing to resume
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    assert run_lib.cpu_devices(tmp_path) == want
    (tmp_path / "config.json").write_text("{")
    assert run_lib.cpu_devices(tmp_path) is None
