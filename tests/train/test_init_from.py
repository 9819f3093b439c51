"""A new run from another run's state, and from encoders of every kind that can be read."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from encoders import random_encoder
from etils import epath
from tiny import tiny_resnet_config

from byol_jax import byol
from byol_jax.errors import UserError
from byol_jax.export.convert import timm, torchvision
from byol_jax.runs import build, kinds, paths, tree
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import run as run_lib
from byol_jax.runs.resolve import resolve
from byol_jax.train import init_from, loop
from byol_jax.train.metrics import read_rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of six steps, with checkpoints of 3 and 6."""
    workdir = tmp_path_factory.mktemp("finished")
    config = tiny_resnet_config()
    config.evaluation.every_steps = 0
    loop.train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def halfway(finished, tmp_path_factory):
    """The same run without its last checkpoint."""
    workdir = tmp_path_factory.mktemp("runs") / "halfway"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    return workdir


def placeholders(learner, config):
    """0.5 everywhere, because random initial weights take seconds to compile."""
    batch = kinds.of(config).example_batch(config)
    shapes = jax.eval_shape(lambda: byol.init(learner, config.seed, batch))
    state = jax.tree.map(lambda x: jnp.full(x.shape, 0.5, x.dtype), shapes)
    return state._replace(seed=jnp.asarray(config.seed, jnp.uint32))


def started(num_classes=10, **settings):
    """The state that a new run with these settings starts from."""
    config = tiny_resnet_config()
    for key, value in settings.items():
        parent, _, leaf = key.replace("__", ".").rpartition(".")
        (tree.get(config, parent) if parent else config)[leaf] = value
    config, _ = resolve(config)
    learner = build.make_learner(config, lambda step: 0.1, 6, num_classes, axis_name=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_lib, "initial_state", placeholders)
        return init_from.new_state(learner, config, init_from.first_step(config, 6))


def assert_equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_run_from_a_state_ends_as_the_first_would_have(finished, halfway, tmp_path):
    config = tiny_resnet_config()
    config.evaluation.every_steps = 0
    config.init.state = str(halfway)
    loop.train(config, tmp_path / "second")
    want, got = run_lib.restore(finished).state, run_lib.restore(tmp_path / "second").state
    assert int(got.step) == 6
    assert_equal(got, want)
    assert [row["step"] for row in read_rows(tmp_path / "second" / "metrics.jsonl")] == [4, 6]


def test_the_seed_is_the_new_runs_own(halfway):
    assert int(started(init__state=str(halfway), seed=5).seed) == 5


def test_a_probe_of_other_classes_is_not_used(halfway):
    state = started(num_classes=4, init__state=str(halfway))
    theirs = run_lib.restore(halfway).state
    assert int(state.step) == 3
    assert state.online_params["probe"]["kernel"].shape == (16, 4)
    assert_equal(state.online_params["encoder"], theirs.online_params["encoder"])
    without = started(num_classes=None, init__state=str(halfway))
    assert "probe" not in without.online_params


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder__width_multiplier": 0.5}, r"does not fit this run's networks: its .*encoder/"),
        ({"heads__output_size": 5}, r"does not fit .*is float32 \(4, 8\) and should be float32"),
        ({"encoder__padding": "same"}, r"trained with config.encoder.padding=torch, but this run"),
        ({"optimizer__name": "lars"}, r"trained with config.optimizer.name=adamw, but this run"),
        ({"target__rule": "none"}, r"trained with config.target.rule=ema"),
        ({"heads__predictor_layers": 0}, r"its .*predictor/.* and should be absent"),
    ],
)
def test_a_state_of_other_networks_is_refused(halfway, settings, message):
    with pytest.raises(UserError, match=message):
        started(init__state=str(halfway), **settings)


def test_a_state_at_or_beyond_the_end_is_refused(finished, tmp_path):
    config = tiny_resnet_config()
    config.init.state = str(finished)
    with pytest.raises(UserError, match=r"is at step 6 and this run ends at 6: make it longer"):
        loop.train(config, tmp_path / "new")


def test_a_folder_without_a_run_is_named(tmp_path):
    config = tiny_resnet_config()
    config.init.state = str(tmp_path)
    with pytest.raises(UserError, match=r"holds no run"):
        loop.train(config, tmp_path / "new")


def test_a_missing_path_is_named_before_anything_is_written(tmp_path):
    config = tiny_resnet_config()
    config.init.encoder = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"init.encoder=.*nowhere does not exist: name a run"):
        loop.train(config, tmp_path / "new")


@pytest.mark.parametrize("key", ["state", "encoder", "target_encoder"])
def test_a_run_in_a_bucket_can_be_the_start(halfway, monkeypatch, key):
    """gs://bucket is a local folder here, under a path as for a bucket."""
    real, opened = paths.path, []

    def path(name):
        if not str(name).startswith("gs://"):
            return real(name)
        opened.append(name)
        return epath.Path(str(name).replace("gs://bucket", str(halfway)))

    monkeypatch.setattr(paths, "path", path)
    state = started(**{f"init__{key}": "gs://bucket"})
    assert opened
    trained = run_lib.restore(halfway).state
    from_online = key != "state"
    assert int(state.step) == (0 if from_online else 3)
    want = trained.online_params if from_online else trained.target_params
    assert_equal(state.target_params["encoder"], want["encoder"])


def test_an_export_has_no_state(halfway, tmp_path):
    encoder_lib.save(encoder_lib.load(halfway), tmp_path / "export")
    config = tiny_resnet_config()
    config.init.state = str(tmp_path / "export")
    with pytest.raises(UserError, match=r"is an export, .* use config.init.encoder"):
        loop.train(config, tmp_path / "new")


def test_flags_of_other_networks_are_named(halfway):
    with pytest.raises(UserError, match=r"trained with --config.encoder.width_multiplier=0.25\.$"):
        started(init__encoder=str(halfway), encoder__width_multiplier=0.5)


@pytest.mark.parametrize("kind", ["run", "export"])
def test_an_encoder_starts_both_networks(halfway, tmp_path, kind):
    path = halfway
    if kind == "export":
        path = tmp_path / "export"
        encoder_lib.save(encoder_lib.load(halfway), path)
    theirs, fresh = run_lib.restore(halfway).state, started()
    state = started(init__encoder=str(path))
    assert int(state.step) == 0
    for params in (state.online_params, state.target_params):
        assert_equal(params["encoder"], theirs.online_params["encoder"])
        assert_equal(params["projector"], fresh.online_params["projector"])
    for stats in (state.online_stats, state.target_stats):
        assert_equal(stats["encoder"], theirs.online_stats["encoder"])


def test_torchvision_weights_start_a_run_or_its_target(tmp_path):
    other = random_encoder("resnet10", width_multiplier=0.125)
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(torchvision.to_state_dict(other.variables), path)
    network = {
        "encoder__name": "resnet10",
        "encoder__stem": "imagenet",
        "encoder__width_multiplier": 0.125,
        "data__channels": 3,
        "views__mean": (0.5,) * 3,
        "views__std": (0.25,) * 3,
    }
    state = started(init__target_encoder=str(path), **network)
    assert_equal(state.target_params["encoder"], other.variables["params"])
    assert_equal(state.target_stats["encoder"], other.variables["batch_stats"])
    assert_equal(state.online_params["encoder"], started(**network).online_params["encoder"])
    state = started(init__encoder=str(path), **network)
    assert_equal(state.online_params["encoder"], other.variables["params"])

    network["encoder__padding"] = "same"
    with pytest.raises(UserError, match=r"padding 'torch': add --config.encoder.padding=torch"):
        started(init__encoder=str(path), **network)
    network |= {"encoder__padding": "torch", "encoder__width_multiplier": 0.25}
    with pytest.raises(UserError, match=r"does not fit this run's networks: its .* is float32 "):
        started(init__encoder=str(path), **network)


VIT = {
    **{"encoder__name": "vit_ti", "encoder__width": 24, "encoder__heads": 2, "encoder__depth": 2},
    **{"encoder__patch_size": 4, "encoder__pool": "mean"},
}
CONVNEXT = {
    **{"encoder__name": "convnext_t", "encoder__stage_sizes": (1, 2)},
    "encoder__stage_channels": (4, 6),
}


def settings_of(network):
    return {key.removeprefix("encoder__"): value for key, value in network.items()}


@pytest.mark.parametrize(
    "network",
    [VIT, VIT | {"encoder__positions": "learned"}, CONVNEXT],
    ids=["vit", "learned positions", "convnext"],
)
@pytest.mark.parametrize("kind", ["weights", "export"])
def test_transformers_and_convnexts_start_a_run(network, kind, tmp_path):
    """From a file under timm's names, or from an export in our own format."""
    other = random_encoder(**settings_of(network), image_size=16, channels=1)
    path = tmp_path / "weights.safetensors"
    if kind == "weights":
        arrays = timm.to_state_dict(other.module, other.variables, image_size=16)
        safetensors.numpy.save_file(arrays, path)
    else:
        encoder_lib.save(other, path)
    network = network | {"encoder__stem": None, "encoder__width_multiplier": None}
    state = started(init__encoder=str(path), **network)
    for params in (state.online_params, state.target_params):
        assert_equal(params["encoder"], other.variables["params"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder__pool": "class"}, "pool 'mean': add --config.encoder.pool=mean"),
        ({"encoder__depth": 1}, "trained with --config.encoder.depth=2"),
        ({"encoder__name": "resnet8"}, "does not fit this run's networks: its "),
    ],
)
def test_another_network_than_that_of_the_weights_is_refused(settings, message, tmp_path):
    other = random_encoder(**settings_of(VIT), image_size=16, channels=1)
    path = tmp_path / "weights.safetensors"
    arrays = timm.to_state_dict(other.module, other.variables, image_size=16)
    safetensors.numpy.save_file(arrays, path)
    network = VIT | {"encoder__stem": None, "encoder__width_multiplier": None} | settings
    if settings.get("encoder__name") == "resnet8":
        network = settings
    with pytest.raises(UserError, match=message):
        started(init__encoder=str(path), **network)


def test_other_positions_than_those_of_the_weights_are_refused(tmp_path):
    network = VIT | {"encoder__positions": "learned"}
    other = random_encoder(**settings_of(network), image_size=16, channels=1)
    path = tmp_path / "weights.safetensors"
    arrays = timm.to_state_dict(other.module, other.variables, image_size=16)
    safetensors.numpy.save_file(arrays, path)
    network |= {"encoder__stem": None, "encoder__width_multiplier": None}
    network["encoder__positions"] = "sincos"
    with pytest.raises(UserError, match=r"positions 'learned': add --config.encoder.positions=lea"):
        started(init__encoder=str(path), **network)


def test_an_export_with_other_heads_is_refused(tmp_path):
    """The shapes of the weights do not depend on the number of heads."""
    encoder_lib.save(random_encoder(**settings_of(VIT), image_size=16, channels=1), tmp_path)
    network = VIT | {"encoder__stem": None, "encoder__width_multiplier": None}
    with pytest.raises(UserError, match=r"heads 2: add --config.encoder.heads=2"):
        started(init__encoder=str(tmp_path), **(network | {"encoder__heads": 3}))
