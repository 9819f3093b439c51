"""A longer run from where the learning rate of a finished one began to fall."""

import jax
import numpy as np
import pytest
from tiny import tiny_config

from byol_jax import data
from byol_jax.errors import ConfigError
from byol_jax.runs import run as run_lib
from byol_jax.train import extend, loop
from byol_jax.train.metrics import read_rows


def constant_config(steps):
    config = tiny_config()
    config.steps, config.evaluation.every_steps = steps, 0
    config.optimizer.schedule = "constant"
    config.optimizer.cooldown_share = 0.4
    config.target.tau_schedule, config.target.tau_base = "constant", 0.9
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Five steps, of which the last two are the cool-down."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    config = constant_config(5)
    config.checkpoint.every_steps, config.checkpoint.keep = 100, 1
    loop.train(config, workdir)
    return workdir


def test_the_checkpoint_before_the_cool_down_is_kept(finished):
    run = run_lib.read(finished)
    assert run.cooldown_start == 3
    names = {path.name for path in (finished / "checkpoints").iterdir() if path.name.isdigit()}
    assert names == {"3", "5"}
    rates = {row["step"]: row["learning_rate"] for row in read_rows(finished / "metrics.jsonl")}
    peak = 0.01 * 16 / 256
    np.testing.assert_allclose(rates[3], peak, rtol=1e-6)
    np.testing.assert_allclose(rates[5], peak * (1 - 0.5**0.5), rtol=1e-6)


def test_a_longer_run_equals_one_that_was_planned_so(finished, tmp_path):
    steps_per_epoch = run_lib.read(finished).steps_per_epoch
    config = extend.longer(finished, epochs=1)
    assert config.steps == 5 + steps_per_epoch
    config.steps = 8  # to be done soon
    loop.train(config, tmp_path / "longer")
    loop.train(constant_config(8), tmp_path / "planned")
    states = [run_lib.restore(tmp_path / name).state for name in ("longer", "planned")]
    assert int(states[0].step) == 8
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_what_cannot_be_lengthened_is_refused(finished, tmp_path):
    cosine = tiny_config()
    cosine.steps, cosine.evaluation.every_steps = 1, 0
    loop.train(cosine, tmp_path / "cosine")
    with pytest.raises(ConfigError, match=r"its schedules end with it.*init.encoder="):
        extend.longer(tmp_path / "cosine", epochs=1)
    lost = finished / "checkpoints" / "3"
    lost.rename(finished / "moved")
    with pytest.raises(ConfigError, match="no checkpoint of step 3"):
        extend.longer(finished, epochs=1)
    (finished / "moved").rename(lost)


def test_a_cool_down_share_needs_its_schedule(tmp_path):
    config = tiny_config()
    config.optimizer.cooldown_share = 0.5
    with pytest.raises(ConfigError, match=r"has no use with config.optimizer.schedule=cosine"):
        loop.train(config, tmp_path)
    config = constant_config(5)
    source = data.open_source("embedded", "train", channels=1)
    config.optimizer.warmup_epochs = 4 / data.steps_per_epoch(source, 16)
    with pytest.raises(ConfigError, match=r"is 4 steps, but the cool-down begins at step 3"):
        loop.train(config, tmp_path)
