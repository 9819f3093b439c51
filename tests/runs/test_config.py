"""Every refusal of a config names the key; what is described is what is built."""

import dataclasses
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_flags  # noqa: F401 (as the entry points read them)
from tiny import tiny_config

from byol_jax import byol, optim
from byol_jax.augment import image as image_augment
from byol_jax.errors import UserError
from byol_jax.presets import imagenet
from byol_jax.runs import build
from byol_jax.runs import config as config_lib

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.name", "lamb", r"optimizer.name='lamb' is not one of lars, adamw, sgd"),
        ("encoder.name", "vit", r"encoder.name='vit' is not one of resnet8"),
        ("encoder.stem", "deep", r"encoder.stem='deep' is not one of imagenet, cifar, strided"),
        ("encoder.padding", "valid", r"encoder.padding='valid' is not one of torch, same"),
        ("dtype", "float16", r"dtype='float16' is not one of float32, bfloat16"),
        ("data.channels", 4, r"data.channels=4 is not one of 1, 3"),
        ("data.source", "", r"data.source is empty"),
        ("epochs", 5, r"config.epochs=5 and config.steps=6: set one of them"),
        ("steps", 0, r"config.epochs=0 and config.steps=0: set one of them"),
        ("batch_size", 1, r"batch_size=1 must be at least 4"),
        ("data.image_size", -1, r"data.image_size=-1 must be at least 1"),
        ("log_every_steps", 0, r"log_every_steps=0 must be at least 1"),
        ("checkpoint.every_steps", 0, r"checkpoint.every_steps=0 must be at least 1"),
        ("knn.every_steps", -1, r"knn.every_steps=-1 must be at least 0"),
        ("seed", -1, r"seed=-1 must be at least 0"),
        ("tau_base", 1.5, r"tau_base=1.5 must be at least 0 and at most 1"),
        ("crop.area_min", 0.0, r"crop.area_min=0.0 must be at least"),
        ("crop.area_max", 0.01, r"crop.area_max=0.01 must be at least config.crop.area_min=0.08"),
        ("crop.ratio_max", 0.5, r"crop.ratio_max=0.5 must be at least config.crop.ratio_min=0.75"),
        ("crop.flip_prob", 2.0, r"crop.flip_prob=2.0 must be at least 0 and at most 1"),
        ("views.view2.gray_prob", -0.1, r"views.view2.gray_prob=-0.1 must be at least 0"),
        ("views.view1.hue", -0.1, r"views.view1.hue=-0.1 must be at least 0"),
        ("views.view1.blur_sigma_min", 0.0, r"views.view1.blur_sigma_min=0.0 must be at least"),
        ("views.mean", (0.5, 0.5), r"views.mean=\(0.5, 0.5\): give 1 number"),
        ("views.std", (0.0,), r"views.std=\(0.0,\): give 1"),
        ("optimizer.base_learning_rate", float("nan"), r"base_learning_rate=nan must be"),
        ("optimizer.weight_decay", "x", r"weight_decay='x' must be of type float"),
        ("encoder.width_multiplier", 0.001, r"width_multiplier=0.001 leaves no channel"),
        ("views.mean", ("x",), r"views.mean=\('x',\) must be of type numbers"),
        ("views.mean", (3,), r"views.mean=\(3,\): give 1 number"),
        ("heads.hidden_size", None, r"heads.hidden_size=None must be of type int"),
        ("log_every_steps", True, r"log_every_steps=True must be of type int"),
        ("batch_size", 16.5, r"batch_size=16.5 must be of type int"),
        ("accum_steps", 0, r"accum_steps=0 must be at least 1"),
        ("accum_steps", 3, r"accum_steps=3 must divide config.batch_size=16 into micro-batches of"),
        ("accum_steps", 8, r"accum_steps=8 must divide .* into micro-batches of 4 images or more"),
        ("tau_schedule", "linear", r"tau_schedule='linear' is not one of cosine, constant"),
        ("negatives.beta", -1.0, r"negatives.beta=-1.0 must be at least 0"),
        ("negatives.temperature", 0.0, r"negatives.temperature=0.0 must be at least"),
        ("heads.projector_layers", 0, r"heads.projector_layers=0 must be at least 1"),
        ("heads.predictor_layers", -1, r"heads.predictor_layers=-1 must be at least 0"),
        ("encoder.stage_channels", (8, 8), r"stage_channels=\(8, 8\) must be 3 whole numbers"),
        ("without", "crop,colour", r"without='colour' is not one of crop, flip, color, jitter"),
    ],
)
def test_what_cannot_work_is_refused_by_name(key, value, message):
    config = tiny_config()
    with config.ignore_type():
        parent, _, leaf = key.rpartition(".")
        (config_lib.get(config, parent) if parent else config)[leaf] = value
    with pytest.raises(UserError, match=message):
        config_lib.resolve(config)


def test_a_key_that_does_not_exist_cannot_be_set():
    with pytest.raises(AttributeError, match="wramup_epochs"):
        tiny_config().optimizer.wramup_epochs = 3.0


def test_every_number_has_a_range():
    def leaves(tree, prefix=""):
        for key, value in tree.items():
            if hasattr(value, "items"):
                yield from leaves(value, f"{prefix}{key}.")
            elif not isinstance(value, str | bool | tuple):
                yield f"{prefix}{key}"

    covered = {*config_lib.RANGES, *config_lib.CHOICES}
    assert set(leaves(config_lib.default())) - covered == set()


def test_a_warmup_longer_than_the_run_is_refused():
    config, _ = config_lib.resolve(tiny_config())
    config.optimizer.warmup_epochs = 2.0
    with pytest.raises(UserError, match="warmup_epochs=2 is 6 steps, but the whole run has 6"):
        build.learning_rate(config, steps_per_epoch=3)


def test_epochs_or_steps():
    config = tiny_config()
    assert config_lib.total_steps(config, steps_per_epoch=7) == 6
    config.steps, config.epochs = 0, 3
    assert config_lib.total_steps(config, steps_per_epoch=7) == 21


@pytest.mark.parametrize("name", ["lars", "adamw", "sgd"])
def test_optimisers_have_defaults_of_their_own(name):
    config = config_lib.default()
    config.steps, config.data.source, config.optimizer.name = 1, "embedded", name
    resolved, warnings = config_lib.resolve(config)
    expected = config_lib.OPTIMIZER_DEFAULTS[name]
    assert resolved.optimizer.base_learning_rate == expected["base_learning_rate"]
    assert resolved.optimizer.weight_decay == expected["weight_decay"]
    assert not warnings and config.optimizer.base_learning_rate is None


def test_a_rate_for_lars_under_adamw_is_warned_of():
    config = tiny_config()
    config.optimizer.base_learning_rate = 0.45
    _, (warning,) = config_lib.resolve(config)
    assert "base_learning_rate=0.45 looks like a rate for LARS" in warning


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lars", {"weight_decay": 0.2, "momentum": 0.3, "trust_coefficient": 0.4} | {"clip": True}),
        ("sgd", {"weight_decay": 0.2, "momentum": 0.3}),
        ("adamw", {"weight_decay": 0.2}),
    ],
)
def test_optimiser_knobs_reach_the_optimiser(monkeypatch, name, expected):
    plain = getattr(optim, name)
    seen = {}

    def spy(*args):
        seen.update(inspect.signature(plain).bind(*args).arguments)
        return plain(*args)

    monkeypatch.setattr(optim, name, spy)
    config = tiny_config()
    config.optimizer.update({"name": name, "momentum": 0.3, "trust_coefficient": 0.4})
    config.optimizer.clip = True
    config.optimizer.weight_decay = 0.2
    build.optimizer(config_lib.resolve(config)[0], schedule=0.5)
    assert seen == {"learning_rate": 0.5} | expected


def test_heads_and_encoder_knobs_reach_the_networks():
    config = tiny_config()
    config.heads.hidden_size, config.heads.output_size = 11, 7
    config.encoder.zero_init_scale = config.encoder.first_shortcut = config.encoder.remat = True
    config.encoder.stem_channels, config.encoder.stage_channels = 8, (8, 12, 16)
    config, _ = config_lib.resolve(config)
    schedule = build.learning_rate(config, 3)
    learner = build.make_learner(config, schedule, 6, num_classes=3, axis_name="batch")
    for head in (learner.online.projector, learner.online.predictor, learner.target.projector):
        assert (head.hidden_size, head.output_size, head.axis_name) == (11, 7, "batch")
    for encoder in (learner.online.encoder, learner.target.encoder):
        assert (encoder.width_multiplier, encoder.stem) == (0.25, "strided")
        assert encoder.zero_init_scale and encoder.axis_name == "batch"
        assert encoder.first_shortcut and encoder.remat
        assert (encoder.stem_channels, encoder.stage_channels) == (8, (8, 12, 16))
    np.testing.assert_allclose([learner.tau(0), learner.tau(6)], [0.996, 1.0], rtol=1e-6)


def test_ablations_reach_the_learner():
    config = tiny_config()
    config.heads.predictor_layers, config.target_network = 0, False
    config.negatives.beta, config.negatives.temperature = 0.5, 0.2
    config.accum_steps, config.heads.projector_layers = 2, 3
    config, _ = config_lib.resolve(config)
    learner = build.make_learner(config, 0.1, 6, num_classes=None, axis_name=None)
    assert learner.target is None and learner.online.predictor is None
    assert (learner.beta, learner.temperature, learner.accum_steps) == (0.5, 0.2, 2)
    assert learner.online.projector.layers == 3


def test_a_predictor_of_its_own_size():
    config = tiny_config()
    config.heads.predictor_hidden_size, config.heads.predictor_layers = 5, 1
    resolved, _ = config_lib.resolve(config)
    projector, predictor = build.heads(resolved)
    assert (projector.hidden_size, predictor.hidden_size) == (8, 5)
    assert (projector.layers, predictor.layers, predictor.output_size) == (2, 1, 4)
    assert config_lib.resolve(tiny_config())[0].heads.predictor_hidden_size == 8


def test_tau_may_stay_constant():
    config = tiny_config()
    config.tau_base, config.tau_schedule = 0.5, "constant"
    tau = build.target_decay(config_lib.resolve(config)[0], total=6)
    assert [float(tau(step)) for step in (0, 3, 6)] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("part", config_lib.AUGMENTATION_ABLATIONS)
def test_without_takes_away_its_part_alone(part):
    config = config_lib.default()
    config.steps, config.data.source = 1, "embedded"
    before, _ = config_lib.resolve(config)
    config.disable_augmentations = part
    after, _ = config_lib.resolve(config)
    assert after == config_lib.resolve(after)[0]  # a second start means the same
    before, after = (dict(_leaves(c)) for c in (before, after))
    changed = {key: after[key] for key in before if before[key] != after[key]} | {"without": part}
    fields = {
        "crop": {"crop.area_min": 1.0, "crop.ratio_min": 1.0, "crop.ratio_max": 1.0},
        "flip": {"crop.flip_prob": 0.0},
        "color": _both(jitter_prob=0.0, gray_prob=0.0),
        "jitter": _both(jitter_prob=0.0),
        "gray": _both(gray_prob=0.0),
        "blur": _both(blur_prob=0.0),
        "solarize": {"views.view2.solarize_prob": 0.0},  # view 1 has none
        "asymmetry": _both(blur_prob=0.55, solarize_prob=0.1),
    }
    assert changed == pytest.approx(fields[part] | {"without": part})


def _both(**fields):
    return {f"views.view{n}.{key}": value for n in (1, 2) for key, value in fields.items()}


def _leaves(config, prefix=""):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_a_whole_state_leaves_no_room_for_other_weights():
    config = tiny_config()
    config.init.state, config.init.encoder = "a", "b"
    with pytest.raises(UserError, match=r"config.init.state brings a whole state"):
        config_lib.resolve(config)


def test_learning_rate_scales_with_the_batch():
    config, _ = config_lib.resolve(tiny_config())
    config.optimizer.base_learning_rate, config.batch_size = 0.3, 4096
    assert config_lib.learning_rate_peak(config) == pytest.approx(4.8)


def test_every_knob_of_the_views_reaches_the_policy():
    config = config_lib.default()
    assert build.policy(config) == image_augment.IMAGENET
    for field in dataclasses.fields(image_augment.View):
        config.views.view2[field.name] = 0.25
        assert getattr(build.policy(config).view2, field.name) == 0.25


@pytest.mark.parametrize(
    ("key", "value"),
    [("encoder.padding", "same"), ("encoder.stem", "imagenet"), ("dtype", "bfloat16")],
)
def test_encoder_settings_reach_the_encoder(key, value):
    config, _ = config_lib.resolve(tiny_config())
    parent, _, leaf = key.rpartition(".")
    (config_lib.get(config, parent) if parent else config)[leaf] = value
    assert getattr(build.encoder(config), leaf) == value


def test_bfloat16_keeps_state_and_loss_in_float32():
    config, _ = config_lib.resolve(tiny_config())
    config.dtype = "bfloat16"
    schedule = build.learning_rate(config, 3)
    learner = build.make_learner(config, schedule, 6, num_classes=10, axis_name=None)
    assert learner.online.projector.dtype == jnp.bfloat16
    state = jax.eval_shape(lambda: byol.init(learner, 0, build.image_shape(config)))
    batch = byol.Batch(
        jax.ShapeDtypeStruct((2, 4, 16, 16, 1), jnp.uint8),
        jax.ShapeDtypeStruct((4,), jnp.int32),
        jax.ShapeDtypeStruct((4,), jnp.int32),
    )
    after, metrics = jax.eval_shape(lambda s, b: byol.update(learner, s, b), state, batch)
    floats = [x for x in jax.tree.leaves((after, metrics)) if jnp.issubdtype(x.dtype, np.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_presets_resolve_without_a_warning(path):
    namespace = {}
    exec(compile(path.read_text(), path, "exec"), namespace)
    assert f"byol_jax/presets/{path.name}" in namespace["__doc__"]  # the command
    config = namespace["get_config"]()
    config.data.source = config.data.source or "folder:images"
    resolved, warnings = config_lib.resolve(config)
    assert not warnings
    build.learning_rate(resolved, steps_per_epoch=max(1, 50_000 // resolved.batch_size))


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        ("40", (0.45, 1e-6, 0.97)),
        ("100", (0.45, 1e-6, 0.99)),
        ("300", (0.3, 1e-6, 0.99)),
        ("1000", (0.2, 1.5e-6, 0.996)),
    ],
)
def test_imagenet_presets_are_the_authors(epochs, expected, capsys):
    config = imagenet.get_config(epochs)
    chosen = config.optimizer
    assert (chosen.base_learning_rate, chosen.weight_decay, config.tau_base) == expected
    assert (config.batch_size, chosen.warmup_epochs, config.epochs) == (4096, 10, int(epochs))
    assert not capsys.readouterr().err


def test_other_lengths_on_imagenet_are_interpolated_and_said(capsys):
    config = imagenet.get_config("200")
    share = np.log(200 / 100) / np.log(300 / 100)
    want = 0.45 + share * (0.3 - 0.45)
    assert config.optimizer.base_learning_rate == pytest.approx(want, rel=5e-3)
    assert config.optimizer.weight_decay == 1e-6 and config.tau_base == pytest.approx(0.99)
    assert "no settings for 200 epochs" in capsys.readouterr().err
    beyond = imagenet.get_config("2000")
    assert (beyond.optimizer.base_learning_rate, beyond.tau_base) == (0.2, 0.996)
    with pytest.raises(UserError, match=r"imagenet.py:ten must end in a number of epochs"):
        imagenet.get_config("ten")
