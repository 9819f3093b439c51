"""An encoder of the user's own in a file outside of the package: a run's whole life, and mistakes.

Nothing that is read from a folder imports it.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from encoders import random_encoder
from tiny import tiny_config

import byol_jax
from byol_jax.cli import app, config_flag
from byol_jax.errors import CheckpointError, ConfigError, UserError
from byol_jax.export import inference, stablehlo, timm, torchvision
from byol_jax.runs import config as config_lib
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import processes
from byol_jax.runs import run as run_lib
from byol_jax.runs.resolve import resolve
from byol_jax.train import loop

ROOT = Path(__file__).parents[2]
CODE = """
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from byol_jax import models


class Net(nn.Module):
    width: int = 3
    rate: float = 0.0
    norm: bool = True
    act: Literal["relu", "gelu"] = "relu"
    strides: tuple = (2, 2)
    initial: Callable = nn.initializers.lecun_normal()
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    convolution: Callable | None = None

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(
            self.width, (3, 3), self.strides, dtype=self.dtype, kernel_init=self.initial,
            conv_general_dilated=self.convolution,
        )(x)
        if self.norm:
            x = models.BatchNorm(not train, self.axis_name)(x)
        x = getattr(nn, self.act)(x)
        self.sow("intermediates", "features", x)
        x = x.mean((1, 2))
        return nn.Dropout(self.rate, deterministic=not train)(x)


class Odd(nn.Module):
    width: int = 3

    def __post_init__(self):
        if self.width % 2 == 0:
            raise RuntimeError("the width is\\neven")
        super().__post_init__()

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width)(x.mean((1, 2)))


class Needs(nn.Module):
    width: int


class Items(Odd):
    items: int = 3


class Frozen(Odd):
    frozen: bool = True


class Length(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x.reshape(len(x), -1))


class Map(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x)


class Traced(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(2)(x.mean((1, 2)))
        return x if x.mean() > 0 else -x


class Always(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=False)(nn.Dense(2)(x.mean((1, 2))))


class Loop(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(2)(x.mean((1, 2)))
        return jax.lax.while_loop(lambda y: y.sum() < 1, lambda y: y + 1, x)


class Cache(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.variable("cache", "n", jnp.zeros, ())
        return nn.Dense(2)(x.mean((1, 2)))


class Mean(nn.Module):
    def __call__(self, x):
        return x.mean((1, 2))


class Half(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, param_dtype=jnp.bfloat16)(x.mean((1, 2)))


class Ours(models.ResNet):
    stage_sizes: tuple = (1,)
    stage_channels: tuple = (64,)
    block: type = models.BasicBlock


class Plain:
    pass


def function(x):
    return x


instance = Mean()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_net.py").write_text(CODE)
    return folder


@pytest.fixture(autouse=True)
def in_folder(folder, monkeypatch):
    """As in a command that starts there, and has imported nothing of the user's."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "own_net", raising=False)
    yield
    sys.modules.pop("own_net", None)


def own_config():
    """A run whose encoder and frozen target are the user's."""
    config = tiny_config()
    config.evaluation.every_steps, config.checkpoint.every_steps = 0, 2
    config.optimizer.name, config.optimizer.base_learning_rate = "sgd", 0.1  # compile faster,
    config.heads.projector_layers = config.heads.predictor_layers = 1  # and so do these
    config_lib.use_encoder(config, "own_net:Net", width=6, rate=0.5, strides=(4, 2))
    config_lib.use_encoder(config, "own_net:Net", "target.encoder", act="gelu")
    config.target.rule = "frozen"
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory, folder):
    """The folder of a run, and of one that was killed at step 4 before that was saved."""
    workdir, killed = (tmp_path_factory.mktemp("trained") / name for name in ("run", "killed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        config = own_config()
        assert loop.train(config, workdir)
        shutil.copytree(workdir, killed)
        for step in (4, 6):
            shutil.rmtree(killed / "checkpoints" / str(step))
        assert loop.train(config, killed)
        config.encoder.width = 7
        with pytest.raises(ConfigError, match=r"other settings: config.encoder.width \(6 -> 7\)"):
            loop.train(config, killed)
    del sys.modules["own_net"]
    return workdir, killed


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 1), np.uint8)


def test_a_run_records_name_and_settings_and_resumes_to_the_bit(trained):
    config_lib.use_encoder(tiny_config(), "own_net:Net")  # imports it
    record = json.loads((trained[0] / "config.json").read_text())["config"]
    online = {"width": 6, "rate": 0.5, "norm": True, "act": "relu", "strides": [4, 2]}
    target = {"width": 3, "rate": 0.0, "norm": True, "act": "gelu", "strides": [2, 2]}
    assert record["encoder"] == {"name": "own_net:Net"} | online
    assert record["target"]["encoder"] == {"name": "own_net:Net"} | target

    states = [run_lib.restore(workdir) for workdir in trained]
    assert states[0].learner.target.encoder.act == "gelu"
    assert states[0].state.online_stats["encoder"]["BatchNorm_0"]["count"] == 12  # 6 steps, 2 views
    want, got = ([np.asarray(x) for x in jax.tree.leaves(state.state)] for state in states)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_exports_have_the_same_features_and_need_no_file_where_they_hold_the_computation(
    trained, folder, tmp_path, monkeypatch
):
    run, _ = trained
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(CheckpointError, match=rf"^{run}: .*'own_net:Net' .* not imported, .*"):
        byol_jax.load(run)
    assert "own_net" not in sys.modules
    own_net = importlib.import_module("own_net")

    model = byol_jax.load(run)
    assert isinstance(model.module, own_net.Net) and model.module.strides == (4, 2)
    want = model.embed(IMAGES)
    assert want.shape == (5, 6) and np.ptp(want, axis=0).min() > 0
    maps = model.embed_dense(IMAGES)
    assert maps.shape == (5, 4, 8, 6)
    np.testing.assert_allclose(maps.mean((1, 2)), want, rtol=1e-5, atol=1e-6)
    encoder_lib.save(model, tmp_path / "native")
    np.testing.assert_array_equal(byol_jax.load(tmp_path / "native").embed(IMAGES), want)
    stablehlo.save(model, tmp_path / "stablehlo")
    for save in (torchvision.save, timm.save):
        with pytest.raises(CheckpointError, match="it is a Net, not a ResNet; use --format="):
            save(model, tmp_path / "none")

    del sys.modules["own_net"]
    exported = (tmp_path / "stablehlo" / "encoder.stablehlo").read_bytes()
    got = jax.export.deserialize(bytearray(exported)).call(IMAGES)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/native: .* a command by --import=own"):
        byol_jax.load(tmp_path / "native")
    assert "own_net" not in sys.modules


def test_the_command_evaluates_it_where_it_says_import(trained, tmp_path, folder):
    labels = np.arange(40) % 2
    images = np.where(labels[:, None, None, None] == 1, 200, 20) + np.zeros((40, 16, 16, 1))
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=images.astype(np.uint8), labels=labels)
    command = [sys.executable, "-m", "byol_jax.cli", "evaluate", "--protocol=knn", "--baselines="]
    command += [f"--checkpoint={trained[0]}", f"--data=npz:{tmp_path}", "--import=own_net"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "40 images, step 6\n" in done.stdout, done.stderr


def test_what_is_no_longer_there_or_changed_is_one_line(trained, folder, monkeypatch, tmp_path):
    config = tiny_config()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(folder)])
    with pytest.raises(ConfigError, match=r"^config.encoder.name=own_net:Net cannot be imported"):
        config_lib.use_encoder(config, "own_net:Net")

    (tmp_path / "own_net.py").write_text(CODE.replace("self.width, (3, 3)", "self.width, (5, 5)"))
    config_lib.use_encoder(config, "own_net:Net")
    with pytest.raises(CheckpointError, match=r"another network: .*kernel is float32 \(3, 3, 1"):
        run_lib.restore(trained[0])
    monkeypatch.delattr(sys.modules["own_net"], "Net")
    with pytest.raises(CheckpointError, match=rf"^{trained[0]}: .* is no subclass of flax"):
        run_lib.restore(trained[0])


def test_a_class_that_is_defined_anew_is_another_encoder(monkeypatch):
    """As in a notebook, under the same name."""
    config = resolve(own_config())[0]
    run = run_lib.Run(config, {"num_classes": None}, steps_per_epoch=9)
    before = run.learner()
    assert run.learner() is before
    old = sys.modules["own_net"].Net
    monkeypatch.setattr(sys.modules["own_net"], "Net", type("Net", (old,), {}))
    assert type(run.learner().online.encoder) is sys.modules["own_net"].Net is not old


def parse(*arguments):
    """The resolved config of flags after --config=quickstart."""
    argv = ["byol-jax", "--config=quickstart", *arguments]
    values = flags.FlagValues()
    config_flag.define(flag_values=values, sys_argv=argv)
    values(argv)
    config, preset = values["config"].value, values["config"].parser.preset
    config_lib.use_other_encoder(config, preset)
    return resolve(config)[0]


def test_flags_set_it_in_any_order(tmp_path):
    own = {"width": 3, "rate": 0.0, "norm": True, "act": "relu", "strides": (2, 2)}
    name = "--config.encoder.name=own_net:Net"
    config = parse("--config.encoder.width=9", name, "--config.encoder.strides=4,4")
    changed = {"name": "own_net:Net", "width": 9, "strides": (4, 4)}
    assert config.encoder.to_dict() == own | changed
    config = parse("--config.encoder.name", "own_net:Net", "--noconfig.encoder.norm")
    assert config.encoder.to_dict() == own | {"name": "own_net:Net", "norm": False}
    (tmp_path / "flags").write_text(f"{name}\n--config.encoder.act=gelu\n")
    assert parse(f"--flagfile={tmp_path / 'flags'}").encoder.act == "gelu"
    target = "--config.target.encoder.name=own_net:Net"
    config = parse(target, "--config.target.encoder.rate=.5", "--config.target.rule=frozen")
    assert config.target.encoder.rate == 0.5 and config.encoder.name == "resnet8"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("name=nothing:Net", r"config.encoder.name=nothing:Net cannot be imported \(ModuleNotFou"),
        ("name=own_net:Nett", r"config.encoder.name=own_net:Nett cannot be imported \(Attribute"),
        ("name=own_net:Net:x", r"config.encoder.name=own_net:Net:x cannot be imported \(ValueErr"),
        ("name=own_net:", r"config.encoder.name='own_net:' is no subclass of flax.linen.Module"),
        ("name=own_net:Plain", r"config.encoder.name='own_net:Plain' is no subclass of flax.linen"),
        ("name=own_net:function", r"config.encoder.name='own_net:function' is no subclass of flax"),
        ("name=own_net:instance", r"config.encoder.name='own_net:instance' is no subclass of flax"),
        ("name=flax.linen:Module", r"config.encoder.name='flax.linen:Module' is no subclass of"),
        ("name=own_net:Needs", r"config.encoder.name='own_net:Needs' has a field 'width' without"),
        ("name=own_net:Items", r"config.encoder.name='own_net:Items' has a field 'items': give it"),
        ("name=own_net:Odd width=4", r"config.encoder.name='own_net:Odd' .* \(RuntimeError: the w"),
        ("name=own_net:Map", r"config.encoder.name=own_net:Map cannot be traced on .* must return"),
        ("name=own_net:Traced", r"config.encoder.name=own_net:Traced cannot .*: TracerBoolConv"),
        ("name=own_net:Always", r"config.encoder.name=own_net:Always cannot .*: InvalidRngError"),
        (
            "name=own_net:Loop",
            r"config.encoder.name=own_net:Loop cannot .*: Reverse-mode different",
        ),
        ("name=own_net:Cache", r"config.encoder.name=own_net:Cache cannot .*: ScopeCollectionNotF"),
        ("name=own_net:Mean", r"config.encoder.name=own_net:Mean has no parameters"),
        ("name=own_net:Half", r"config.encoder.name=own_net:Half has bfloat16 params/Dense_0/bias"),
        ("name=own_net:Frozen", r"config.encoder.name=own_net:Frozen has a 'frozen' that is not a"),
        (
            "name=own_net:Net depth=1",
            r"config.encoder.depth is not a setting of own_net:Net, which",
        ),
        ("name=own_net:Net stem=cifar", r"config.encoder.stem is not a setting of own_net:Net"),
        ("name=own_net:Net dtype=x", r"config.encoder.dtype is not a setting of own_net:Net"),
        ("name=own_net:Net width=2.5", r"flag --config.encoder.width=2.5: invalid literal for int"),
        ("name=own_net:Net act=tanh", r"config.encoder.act='tanh' is not one of relu, gelu"),
    ],
)
def test_a_mistake_is_one_line_with_the_flag(given, message):
    with pytest.raises((UserError, flags.Error)) as caught:
        parse(*(f"--config.encoder.{flag}" for flag in given.split()))
    text = app.format_error(caught.value)
    assert re.match(message, text) and "\n" not in text and len(text) < 500, text


def test_a_mistake_from_python_is_one_line():
    config = tiny_config()
    config.encoder.update({"name": "own_net:Net", "channels": None, "features": None})
    with pytest.raises(ConfigError, match=r"^config.encoder.name='own_net:Net' .* not imported"):
        resolve(config)
    with pytest.raises(ConfigError, match=r"^config.encoder.width='q' is of another type"):
        config_lib.use_encoder(tiny_config(), "own_net:Net", width="q")
    with pytest.raises(ConfigError, match=r"^config.encoder.name=own_net:Net was set without its"):
        resolve(config)  # it is imported now
    with pytest.raises(ConfigError, match=r"^config.encoder.depth is not a setting of own_net"):
        byol_jax.pretrain(IMAGES, "none", encoder={"name": "own_net:Net", "depth": 3})


def test_formats_that_cannot_take_it_say_so():
    config_lib.use_encoder(tiny_config(), "own_net:Net")
    length = random_encoder("own_net:Length", image_size=16)
    assert inference.num_features(length) == 2
    with pytest.raises(CheckpointError, match=r"^own_net:Length takes no unknown number of images"):
        inference.record(length, "format", "")
    # It may compute something else than the ResNet that it inherits from.
    with pytest.raises(CheckpointError, match="it is a Ours, not a ResNet"):
        torchvision.state_dict(random_encoder("own_net:Ours", image_size=16), "torchvision")


def test_a_module_that_computes_while_it_is_imported_is_one_line():
    jax.block_until_ready(jax.numpy.ones(1))
    with pytest.raises(ConfigError, match=r"top of your encoder's module: make it a NumPy array"):
        processes.join(None, None, None)
