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
from faults import toy

import byol_jax
from byol_jax import backend
from byol_jax.errors import ConfigError
from byol_jax.runs import config as config_lib
from byol_jax.train import setup

ROOT = Path(__file__).parents[2]
SHORT = ("--config.steps=6", "--config.checkpoint.every_steps=3", "--config.knn.every_steps=0")


def pretrain(workdir, *flags, **environment):
    """Runs the command with the CPU as JAX finds it."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "byol_jax.cli", "pretrain", f"--workdir={workdir}"),
            *(f"--config={ROOT}/tests/faults/toy.py", *SHORT, *flags),
        ],
        env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)} | environment,
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
    found = record(workdir)
    assert found["computed_by"].startswith("1 device (cpu), convolutions by ")
    assert f"Computed by {found['computed_by']}" in output
    assert (found["local_devices"], found["platform"], found["xla_flags"]) == (1, "cpu", "")
    assert found["config"]["cpu_convolution"] == "auto"


def test_a_resumed_run_keeps_its_number_and_its_bits(one_device, tmp_path):
    workdir = shutil.copytree(one_device[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "6")
    done = pretrain(workdir)
    assert done.returncode == 0, done.stderr
    assert "Resuming from the checkpoint of step 3" in done.stdout
    assert "rounding" not in done.stdout and record(workdir)["local_devices"] == 1
    for got, want in zip(weights(workdir), weights(one_device[0]), strict=True):
        np.testing.assert_array_equal(got, want)


def test_another_number_is_reported_and_gives_the_same_result(one_device, tmp_path):
    workdir = shutil.copytree(one_device[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "6")
    # Like a new run, one whose number is not known takes a device for each core.
    before = record(workdir)
    del before["local_devices"]
    (workdir / "config.json").write_text(json.dumps(before))
    done = pretrain(workdir, "--config.cpu_convolution=xla")
    assert done.returncode == 0, done.stderr
    devices = min(backend.cores(), 2)  # each with 8 of 16 rows
    assert record(workdir)["local_devices"] == devices
    name = f"{devices} device{'s' * (devices > 1)} (cpu)"
    assert f"now is by {name}, convolutions by XLA: rounding differs" in done.stdout
    for got, want in zip(weights(workdir), weights(one_device[0]), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-4)


def test_a_number_that_jax_does_not_have_is_refused(tmp_path):
    config, _ = config_lib.resolve(toy.get_config())
    setup._use_cpu_devices(config, tmp_path, jax.local_device_count())
    with pytest.raises(ConfigError, match=r"^--cpu_devices=3, but JAX has 4: leave it out, or"):
        setup._use_cpu_devices(config, tmp_path, 3)
