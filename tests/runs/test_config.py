"""Every ConfigError names the key, and every setting reaches the object that it describes."""

import dataclasses
import functools
import inspect
import json
from pathlib import Path
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_flags  # noqa: F401 (as the entry points read them)
from tiny import tiny_config, tiny_resnet_config

from byol_jax import adversarial, byol, models, objectives, optim
from byol_jax.augment import image as image_augment
from byol_jax.errors import ConfigError, UserError
from byol_jax.presets import imagenet
from byol_jax.runs import build, kinds, tree
from byol_jax.runs import config as config_lib
from byol_jax.runs.kinds.image_settings import AUGMENTATION_ABLATIONS
from byol_jax.runs.resolve import from_record, resolve

PRESETS = Path(__file__).parents[2] / "byol_jax" / "presets"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.name", "lamb", r"optimizer.name='lamb' is not one of lars, adamw, sgd"),
        ("encoder.name", "vit", r"encoder.name='vit' is not one of resnet8"),
        ("encoder.stem", "deep", r"encoder.stem='deep' is not one of imagenet, cifar, strided"),
        ("encoder.padding", "valid", r"encoder.padding='valid' is not one of torch, same"),
        ("dtype", "float16", r"dtype='float16' is not one of float32, bfloat16"),
        ("data.channels", 0, r"data.channels=0 must be at least 1"),
        ("data.source", "", r"data.source is empty"),
        ("epochs", 5, r"config.epochs=5 and config.steps=6: set one of them"),
        ("steps", 0, r"config.epochs=0 and config.steps=0: set one of them"),
        ("batch_size", 1, r"batch_size=1 must be at least 4"),
        ("data.image_size", -1, r"data.image_size=-1 must be at least 1"),
        ("log_every_steps", 0, r"log_every_steps=0 must be at least 1"),
        ("checkpoint.every_steps", 0, r"checkpoint.every_steps=0 must be at least 1"),
        ("evaluation.every_steps", -1, r"evaluation.every_steps=-1 must be at least 0"),
        ("seed", -1, r"seed=-1 must be at least 0"),
        ("target.tau_base", 1.5, r"target.tau_base=1.5 must be at least 0 and at most 1"),
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
        ("views.mean", ("x",), r"views.mean=\('x',\): give 1 number"),
        ("views.mean", 0.5, r"views.mean=0.5 must be of type tuple"),
        ("views.mean", (3,), r"views.mean=\(3,\): give 1 number"),
        ("data.value_range", (1,), r"value_range=\(1,\): give two numbers, the lower one first"),
        ("data.value_range", (2, 1), r"value_range=\(2, 1\): give two numbers"),
        (
            "data.value_range",
            (0, 9),
            r"value_range=\(0, 9\) is for image files of more than 8 bits",
        ),
        ("heads.hidden_size", None, r"heads.hidden_size=None must be of type int"),
        ("log_every_steps", True, r"log_every_steps=True must be of type int"),
        ("batch_size", 16.5, r"batch_size=16.5 must be of type int"),
        ("accum_steps", 0, r"accum_steps=0 must be at least 1"),
        ("accum_steps", 3, r"accum_steps=3 must divide config.batch_size=16 into micro-batches of"),
        (
            "accum_steps",
            8,
            r"accum_steps=8 must divide .* into micro-batches of 4 examples or more",
        ),
        (
            "target.tau_schedule",
            "linear",
            r"target.tau_schedule='linear' is not one of cosine, constant",
        ),
        ("target.rule", "mean", r"target.rule='mean' is not one of ema, copy, redraw, frozen"),
        ("target.every_steps", 0, r"target.every_steps=0 must be at least 1"),
        ("objective.name", "nce", r"objective.name='nce' is not one of byol, byol_negatives"),
        ("objective.margin", 1.0, r"objective.margin=1.0 is not a setting of byol, which has none"),
        ("heads.projector_layers", -1, r"heads.projector_layers=-1 must be at least 0"),
        ("heads.predictor_layers", -1, r"heads.predictor_layers=-1 must be at least 0"),
        ("encoder.stage_channels", (8, 8), r"stage_channels=\(8, 8\) must be 3 whole numbers"),
        ("encoder.stage_channels", (8, 8, 8.5), r"stage_channels=.* must be 3 whole numbers"),
        ("encoder.stem_channels", 0, r"encoder.stem_channels=0 must be at least 1"),
        ("encoder.width_multiplier", float("inf"), r"encoder.width_multiplier=inf must be"),
        ("encoder.remat", 1, r"encoder.remat=1 must be of type bool"),
        ("disable_augmentations", "crop,colour", r"='colour' is not one of crop, flip, color"),
        ("views.view1.rotation_degrees", 181.0, r"rotation_degrees=181.0 must be .* at most 180"),
        ("views.view2.pad", 16, r"view2.pad=16 must be below config.data.image_size=16"),
        ("views.view1.pad", 1.5, r"views.view1.pad=1.5 must be of type int"),
        ("views.view2.pad_mode", "edge", r"view2.pad_mode='edge' is not one of zero, reflect"),
        ("views.view1.fill", "black", r"view1.fill='black' is not one of mean, zero, noise"),
        ("views.view1.erase_area_min", 0.5, r"erase_area_max=0.4 must be at least config.views"),
        ("views.view1.erase_area_max", 1.5, r"erase_area_max=1.5 must be .* at most 1"),
        ("views.view2.erase_ratio_min", 0.0, r"erase_ratio_min=0.0 must be at least"),
        ("views.view2.mask_share", 1.1, r"mask_share=1.1 must be at least 0 and at most 1"),
        ("views.view2.mask_share", 0.99, r"view2.mask_share=0.99 masks 16 of the 16 patches of 4"),
        ("views.view1.mask_share", 0.01, r"view1.mask_share=0.01 masks 0 of the 16 patches of 4"),
        ("views.view1.mask_patch_size", 0, r"mask_patch_size=0 must be at least 1"),
        ("augment.function", None, r"augment.function=None must be of type str"),
    ],
)
def test_a_wrong_value_is_refused_by_key(key, value, message):
    config = tiny_resnet_config()
    with config.ignore_type():
        tree.put(config, key, value)
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(config)
    assert str(caught.value).startswith("config.") and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 10**39])
def test_every_number_has_a_range(value):
    for key, default in tree.flat(resolve(tiny_resnet_config())[0]).items():
        if isinstance(default, int | float) and not isinstance(default, bool):
            config = tiny_resnet_config()
            with config.ignore_type():
                tree.put(config, key, value)
            with pytest.raises(ConfigError, match=f"^config.{key}="):
                resolve(config)


class Linear(nn.Module):
    """Another encoder, for the tests of settings."""

    patch: int = 4
    pooling: Literal["mean", "max"] = "mean"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """Images -> (batch, 8)."""
        return nn.Dense(8, dtype=self.dtype)(x.reshape(len(x), -1))


@pytest.fixture
def linear(monkeypatch):
    """Names another encoder: all that a config needs to know about it."""
    monkeypatch.setitem(models.ENCODERS, "linear", Linear)


def test_an_encoder_brings_its_own_settings(linear):
    config = tiny_resnet_config()
    config.encoder.update(name="linear", patch=2, stem=None, width_multiplier=None)
    config.dtype = "bfloat16"
    resolved, _ = resolve(config)
    assert resolved.encoder.to_dict() == {"name": "linear", "patch": 2, "pooling": "mean"}
    assert resolve(resolved)[0] == resolved
    assert from_record(resolved.to_dict()) == resolved
    assert build.encoder(resolved, axis_name="batch") == Linear(2, dtype=jnp.bfloat16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stem": "cifar"}, "stem='cifar' is not a setting of linear, which has patch, pooling"),
        ({"pooling": "sum"}, "pooling='sum' is not one of mean, max"),
        ({"patch": "x"}, "patch='x' must be of type int"),
    ],
)
def test_settings_of_another_encoder_are_refused(linear, settings, message):
    config = tiny_resnet_config()
    with config.ignore_type():
        config.encoder.update(dict.fromkeys(("stem", "width_multiplier")), name="linear")
        config.encoder.update(settings)
    with pytest.raises(ConfigError, match=f"config.encoder.{message}"):
        resolve(config)


def test_settings_of_other_encoders_stay_out_of_the_config(linear):
    assert "patch" in config_lib.default().encoder
    assert "patch" not in resolve(tiny_resnet_config())[0].encoder


def test_a_record_of_an_earlier_version_keeps_its_behaviour():
    config = tiny_resnet_config()
    config.crop.fit, config.disable_augmentations = "retry", "gray"
    resolved, _ = resolve(config)
    record = resolved.to_dict()
    del record["crop"]["fit"], record["matmul_precision"], record["checkpoint"]["every_minutes"]
    del record["encoder"]["stem_channels"], record["augment"]
    for view in (record["views"]["view1"], record["views"]["view2"]):
        for key in ("vertical_flip_prob", "rotation_prob", "pad", "pad_mode", "mask_share", "fill"):
            del view[key]
    assert from_record(json.loads(json.dumps(record))) == resolved


def test_a_record_with_unknown_keys_is_refused():
    record = resolve(tiny_resnet_config())[0].to_dict()
    record["crop"]["angle"] = record["noise"] = 1
    with pytest.raises(ConfigError, match=r"has no config\.crop\.angle, config\.noise"):
        from_record(record)


@pytest.mark.parametrize("ablation", [{}, {"target.rule": "none"}, {"objective.name": "moco_v3"}])
def test_matmul_precision_reaches_every_product(ablation):
    def products(precision):
        config = tiny_config()
        config.matmul_precision = precision
        for key, value in ablation.items():
            tree.put(config, key, value)
        config, _ = resolve(config)
        learner = build.make_learner(config, lambda step: 0.1, 6, num_classes=3, axis_name=None)
        batch = kinds.of(config).example_batch(config)._replace(labels=np.zeros(2, np.int32))
        state = jax.eval_shape(lambda: byol.init(learner, 0, batch))
        text = jax.jit(functools.partial(byol.update, learner)).lower(state, batch).as_text()
        names = ("stablehlo.dot_general", "stablehlo.convolution")
        return [line for line in text.splitlines() if any(name in line for name in names)]

    assert jax.config.jax_default_matmul_precision is None
    assert not any("HIGHEST" in line for line in products("default"))
    lines = products("highest")
    assert len(lines) > 20 and all("HIGHEST" in line for line in lines)
    assert jax.config.jax_default_matmul_precision is None


def test_a_warmup_longer_than_the_run_is_refused():
    config, _ = resolve(tiny_resnet_config())
    config.optimizer.warmup_epochs = 2.0
    with pytest.raises(UserError, match="warmup_epochs=2 is 6 steps, but the run has 6"):
        build.learning_rate(config, steps_per_epoch=3)


def test_the_length_is_in_epochs_or_steps():
    config = tiny_resnet_config()
    assert config_lib.total_steps(config, steps_per_epoch=7) == 6
    config.steps, config.epochs = 0, 3
    assert config_lib.total_steps(config, steps_per_epoch=7) == 21


@pytest.mark.parametrize("name", ["lars", "adamw", "sgd"])
def test_each_optimizer_has_its_own_defaults(name):
    config = config_lib.default()
    config.steps, config.data.source, config.optimizer.name = 1, "embedded", name
    resolved, warnings = resolve(config)
    expected = config_lib.OPTIMIZER_DEFAULTS[name]
    assert resolved.optimizer.base_learning_rate == expected["base_learning_rate"]
    assert resolved.optimizer.weight_decay == expected["weight_decay"]
    assert not warnings and config.optimizer.base_learning_rate is None


@pytest.mark.parametrize(("optimizer", "count"), [("lars", 1), ("sgd", 1), ("adamw", 0)])
def test_a_vit_without_adamw_warns(optimizer, count):
    config = tiny_resnet_config()
    config.encoder.update(dict.fromkeys(("stem", "width_multiplier")), name="vit_ti")
    config.optimizer.name = optimizer
    _, warnings = resolve(config)
    assert len(warnings) == count
    assert all(f"optimizer.name={optimizer} can make a ViT's first" in line for line in warnings)


def test_a_lars_rate_under_adamw_warns():
    config = tiny_resnet_config()
    config.optimizer.base_learning_rate = 0.45
    _, (warning,) = resolve(config)
    assert "base_learning_rate=0.45 looks like a rate for LARS" in warning


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lars", {"weight_decay": 0.2, "momentum": 0.3, "trust_coefficient": 0.4} | {"clip": True}),
        ("sgd", {"weight_decay": 0.2, "momentum": 0.3}),
        ("adamw", {"weight_decay": 0.2}),
    ],
)
def test_optimizer_settings_reach_the_optimizer(monkeypatch, name, expected):
    plain = getattr(optim, name)
    seen = {}

    def spy(*args):
        seen.update(inspect.signature(plain).bind(*args).arguments)
        return plain(*args)

    monkeypatch.setattr(optim, name, spy)
    config = tiny_resnet_config()
    config.optimizer.update({"name": name, "momentum": 0.3, "trust_coefficient": 0.4})
    config.optimizer.clip = True
    config.optimizer.weight_decay = 0.2
    build.optimizer(resolve(config)[0], schedule=0.5)
    assert seen == {"learning_rate": 0.5} | expected


def test_settings_of_heads_and_encoder_reach_the_networks():
    config = tiny_resnet_config()
    config.heads.hidden_size, config.heads.output_size = 11, 7
    config.encoder.zero_init_scale = config.encoder.first_shortcut = config.encoder.remat = True
    config.encoder.stem_channels, config.encoder.stage_channels = 8, (8, 12, 16)
    config, _ = resolve(config)
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
    config = tiny_resnet_config()
    config.heads.predictor_layers, config.target.rule = 0, "none"
    config.accum_steps, config.heads.projector_layers = 2, 3
    config, _ = resolve(config)
    learner = build.make_learner(config, 0.1, 6, num_classes=None, axis_name=None)
    assert isinstance(learner.target, objectives.NoTarget) and learner.online.predictor is None
    assert learner.accum_steps == 2
    assert learner.online.projector.layers == 3


def test_the_predictor_can_have_another_size():
    config = tiny_resnet_config()
    config.heads.predictor_hidden_size, config.heads.predictor_layers = 5, 1
    resolved, _ = resolve(config)
    projector, predictor = build.heads(resolved)
    assert (projector.hidden_size, predictor.hidden_size) == (8, 5)
    assert (projector.layers, predictor.layers, predictor.output_size) == (2, 1, 4)
    assert resolve(tiny_resnet_config())[0].heads.predictor_hidden_size == 8


def test_another_encoder_drops_the_presets_settings_of_its_own():
    preset = tiny_resnet_config()
    config = preset.copy_and_resolve_references()
    config.encoder.name = "vit_ti"
    config_lib.use_other_encoder(config, preset)
    assert resolve(config)[0].encoder.to_dict() == {"name": "vit_ti"} | models.settings("vit_ti")
    # What was changed as well is kept, and refused.
    config = preset.copy_and_resolve_references()
    config.encoder.update({"name": "vit_ti", "stem": "cifar"})
    config_lib.use_other_encoder(config, preset)
    with pytest.raises(ConfigError, match=r"^config.encoder.stem='cifar' is not a setting of vit_"):
        resolve(config)
    # An encoder of the same name keeps all.
    config = preset.copy_and_resolve_references()
    config_lib.use_other_encoder(config, preset)
    assert config.encoder == preset.encoder


OUTPUTS = models.Outputs(None, *np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32))


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_objectives_reach_the_learner_with_the_networks_that_they_read(name):
    config = tiny_resnet_config()
    config.objective.name = name
    for key, value in objectives.settings(name).items():
        config.objective[key] = value if isinstance(value, str) else value / 2
    config, _ = resolve(config)
    kind = objectives.OBJECTIVES[name]
    assert config.target.rule == ("ema" if kind.has_target else "none")
    assert config.heads.predictor_layers == (2 if kind.predicts else 0)
    learner = build.make_learner(config, lambda step: 0.1, 6, num_classes=None, axis_name=None)
    assert isinstance(learner.target, objectives.NoTarget) == (not kind.has_target)
    assert (learner.online.predictor is None) == (not kind.predicts)
    pair = (OUTPUTS, models.Outputs(None, OUTPUTS.prediction, OUTPUTS.projection))
    want, _ = objectives.make_objective(**config.objective)(pair, pair[::-1], None)
    assert learner.objective(pair, pair[::-1], None)[0] == want
    assert from_record(config.to_dict()) == config


@pytest.mark.parametrize("update", ["ema", "copy", "redraw", "frozen", "none"])
def test_targets_reach_the_learner(update):
    config = tiny_resnet_config()
    config.target.rule = update
    config.target.every_steps = 3 if update in ("copy", "redraw") else None
    config, _ = resolve(config)
    learner = build.make_learner(config, lambda step: 0.1, 6, num_classes=None, axis_name=None)
    assert isinstance(learner.target, objectives.NoTarget) == (update == "none")
    assert (learner.next_target is None) == (update == "ema")
    batch = kinds.of(config).example_batch(config)
    state = jax.eval_shape(build.init_fn(config, learner), 0, batch)
    after, metrics = jax.eval_shape(functools.partial(byol.update, learner), state, batch)
    assert ("tau" in metrics) == (update == "ema")
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_a_frozen_target_can_have_another_encoder():
    config = tiny_resnet_config()
    config.target.rule = "frozen"
    config.target.encoder.update({"name": "convnet", "channels": (2, 3), "features": 7})
    config, _ = resolve(config)
    assert config.target.encoder.to_dict() == {
        "name": "convnet",
        "channels": (2, 3),
        "features": 7,
    }
    assert from_record(config.to_dict()) == config
    learner = build.make_learner(config, lambda step: 0.1, 6, num_classes=None, axis_name=None)
    assert isinstance(learner.target.encoder, models.ConvNet)
    assert isinstance(learner.online.encoder, models.ResNet)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"objective.name": "vicreg", "target.rule": "ema"},
            "config.target.rule=ema has no use with config.objective.name=vicreg, which reads no",
        ),
        (
            {"objective.name": "info_nce", "heads.predictor_layers": 2},
            "config.heads.predictor_layers=2 has no use with config.objective.name=info_nce, which",
        ),
        (
            {"target.every_steps": 100},
            "config.target.every_steps=100 has no use with config.target.rule=ema: add --config.ta",
        ),
        (
            {"target.encoder.name": "convnet"},
            "config.target.encoder is another encoder than the online network's, .* add --config",
        ),
        (
            {"target.encoder.stem": "cifar", "target.rule": "frozen"},
            "config.target.encoder.stem belongs to an encoder of its own: name it too",
        ),
        (
            {"target.encoder.name": "vit", "target.rule": "frozen"},
            "config.target.encoder.name='vit' is not one of resnet8",
        ),
        (
            {"init.target_encoder": "somewhere", "target.rule": "none"},
            "config.init.target_encoder has no use with config.target.rule=none: choose ema",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(settings, message):
    config = tiny_resnet_config()
    for key, value in settings.items():
        tree.put(config, key, value)
    with pytest.raises(ConfigError, match=f"^{message}"):
        resolve(config)


def test_adversarial_settings_reach_the_learner(monkeypatch):
    config, _ = resolve(tiny_resnet_config())
    assert kinds.of(config).perturb(config) is None
    config.augment.adversarial_norm, config.augment.adversarial_iterations = 0.5, 3
    monkeypatch.setattr(adversarial, "perturb", lambda *settings: settings)
    learner = build.make_learner(config, 0.1, 6, num_classes=None, axis_name=None)
    assert learner.perturb == (0.5, 3)


def test_tau_can_be_constant():
    config = tiny_resnet_config()
    config.target.tau_base, config.target.tau_schedule = 0.5, "constant"
    tau = build.target_decay(resolve(config)[0], total=6)
    assert [float(tau(step)) for step in (0, 3, 6)] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("part", AUGMENTATION_ABLATIONS)
def test_disable_augmentations_changes_one_part_alone(part):
    config = config_lib.default()
    config.steps, config.data.source = 1, "embedded"
    config.encoder.name, config.encoder.width_multiplier = "resnet8", 0.25  # sooner checked
    for view in (config.views.view1, config.views.view2):  # what is off by default
        for key in ("vertical_flip", "quarter_turn", "rotation", "noise", "erase"):
            view[f"{key}_prob"] = 0.5
        view.pad, view.mask_share = 4, 0.5
    config.augment.function, config.augment.adversarial_norm = "mine:augment", 1.0
    config.crop.local_views = 2
    before, _ = resolve(config)
    config.disable_augmentations = part
    after, _ = resolve(config)
    assert after == resolve(after)[0]  # on resume nothing changes
    before, after = tree.flat(before), tree.flat(after)
    changed = {key: after[key] for key in before if before[key] != after[key]}
    fields = {
        "crop": {"crop.area_min": 1.0, "crop.ratio_min": 1.0, "crop.ratio_max": 1.0},
        "flip": {"crop.flip_prob": 0.0},
        "color": _both(jitter_prob=0.0, gray_prob=0.0),
        "jitter": _both(jitter_prob=0.0),
        "gray": _both(gray_prob=0.0),
        "blur": _both(blur_prob=0.0),
        "solarize": {"views.view2.solarize_prob": 0.0},  # view 1 has none
        "asymmetry": _both(blur_prob=0.55, solarize_prob=0.1),
        "vertical_flip": _both(vertical_flip_prob=0.0),
        "quarter_turn": _both(quarter_turn_prob=0.0),
        "rotation": _both(rotation_prob=0.0),
        "pad": _both(pad=0),
        "noise": _both(noise_prob=0.0),
        "erase": _both(erase_prob=0.0),
        "mask": _both(mask_share=0.0),
        "function": {"augment.function": ""},
        "adversarial": {"augment.adversarial_norm": 0.0},
        "multi_crop": {"crop.local_views": 0},
    }
    assert changed == pytest.approx(fields[part] | {"disable_augmentations": part})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop.local_size": 17}, r"local_size=17 must be at most config.data.image_size=16"),
        ({"encoder.positions": "learned"}, r"local_size=8 differs .*image_size=16, but the param"),
        (
            {"encoder.patch_size": 16},
            r"local_size=8 does not suit the encoder: config.encoder.patch_size=16 does not divide",
        ),
        ({"views.view1.pad": 8}, r"views.view1.pad=8 must be below config.crop.local_size=8"),
        (
            {"views.view2.mask_share": 0.1, "views.view2.mask_patch_size": 4},
            r"view2.mask_share=0.1 masks 0 of the 4 patches of 4 pixels of config.crop.loc",
        ),
        (
            {"crop.local_area_min": 0.2},
            r"local_area_max=0.14 must be at least config.crop.local_ar",
        ),
        ({"crop.local_views": 101}, r"local_views=101 must be at least 0 and at most 100"),
    ],
)
def test_local_views_that_do_not_fit_are_refused(settings, message):
    config = tiny_resnet_config()
    config.encoder.update(dict.fromkeys(("stem", "width_multiplier")), name="vit_ti")
    config.encoder.update(width=16, heads=2, depth=1, patch_size=4)
    config.optimizer.name = "adamw"
    config.crop.local_views, config.crop.local_size = 2, 8
    resolve(config)
    for key, value in settings.items():
        tree.put(config, key, value)
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("view1", "view2", "want"),
    [
        ({"pad": 7}, {"pad": 1}, {"pad": 4}),
        ({"pad": 7}, {"pad": 0}, "no whole mean of config.views.view1.pad=7 and .*view2.pad=0: ch"),
        # What a view does not read does not count.
        ({"pad_mode": "zero"}, {"pad_mode": "reflect"}, {}),
        ({"pad": 0}, {"pad": 4, "pad_mode": "reflect"}, {"pad": 2, "pad_mode": "reflect"}),
        ({"pad": 4}, {"pad": 4, "pad_mode": "reflect"}, "no mean of .*view1.pad_mode=zero and"),
        ({"fill": "zero", "erase_prob": 1.0}, {"fill": "noise"}, {"fill": "zero"}),
        (
            {"fill": "zero", "erase_prob": 1.0},
            {"fill": "noise", "mask_share": 0.5},
            "no mean of config.views.view1.fill=zero and config.views.view2.fill=noise: choose one",
        ),
        ({"mask_patch_size": 7}, {"mask_share": 0.5}, {"mask_patch_size": 4, "mask_share": 0.25}),
    ],
)
def test_asymmetry_takes_means_and_needs_the_same_names(view1, view2, want):
    config = config_lib.default()
    config.steps, config.data.source, config.disable_augmentations = 1, "embedded", "asymmetry"
    config.views.view1.update(view1)
    config.views.view2.update(view2)
    if isinstance(want, str):
        with pytest.raises(ConfigError, match=want):
            resolve(config)
        return
    resolved, _ = resolve(config)
    for view in (resolved.views.view1, resolved.views.view2):
        assert {key: view[key] for key in want} == want


def test_asymmetry_sees_what_else_is_disabled():
    config = config_lib.default()
    config.steps, config.data.source = 1, "embedded"
    config.views.view1.pad, config.disable_augmentations = 7, "asymmetry,pad"
    resolved, _ = resolve(config)
    assert (resolved.views.view1.pad, resolved.views.view2.pad) == (0, 0)


def _both(**fields):
    return {f"views.view{n}.{key}": value for n in (1, 2) for key, value in fields.items()}


def test_an_initial_state_excludes_other_initial_weights():
    config = tiny_resnet_config()
    config.init.state, config.init.encoder = "a", "b"
    with pytest.raises(UserError, match=r"config.init.state brings a complete state"):
        resolve(config)


def test_learning_rate_scales_with_the_batch_size():
    config, _ = resolve(tiny_resnet_config())
    config.optimizer.base_learning_rate, config.batch_size = 0.3, 4096
    assert build.learning_rate(config, steps_per_epoch=3)(0) == pytest.approx(4.8)


def test_every_setting_of_the_views_reaches_the_policy():
    config = config_lib.default()
    assert kinds.of(config).policy(config) == image_augment.IMAGENET
    for field in dataclasses.fields(image_augment.View):
        value = {float: 0.25, int: 3, str: "other"}[field.type]
        config.views.view2[field.name] = value
        assert getattr(kinds.of(config).policy(config).view2, field.name) == value


@pytest.mark.parametrize(
    ("key", "value"),
    [("encoder.padding", "same"), ("encoder.stem", "imagenet"), ("dtype", "bfloat16")],
)
def test_encoder_settings_reach_the_encoder(key, value):
    config, _ = resolve(tiny_resnet_config())
    tree.put(config, key, value)
    assert getattr(build.encoder(config), key.rpartition(".")[-1]) == value


def test_bfloat16_keeps_state_and_loss_in_float32():
    config, _ = resolve(tiny_resnet_config())
    config.dtype = "bfloat16"
    schedule = build.learning_rate(config, 3)
    learner = build.make_learner(config, schedule, 6, num_classes=10, axis_name=None)
    assert learner.online.projector.dtype == jnp.bfloat16
    batch = kinds.of(config).example_batch(config)._replace(labels=np.zeros(2, np.int32))
    state = jax.eval_shape(lambda: byol.init(learner, 0, batch))
    after, metrics = jax.eval_shape(lambda s, b: byol.update(learner, s, b), state, batch)
    floats = [x for x in jax.tree.leaves((after, metrics)) if jnp.issubdtype(x.dtype, np.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}


@pytest.mark.parametrize("path", sorted(PRESETS.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_presets_resolve_without_a_warning(path):
    namespace = {}
    exec(compile(path.read_text(), path, "exec"), namespace)
    assert f"byol-jax pretrain --config={path.stem}" in namespace["__doc__"]  # the command
    config = namespace["get_config"]()
    config.data.source = config.data.source or "folder:images"
    resolved, warnings = resolve(config)
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
def test_imagenet_presets_have_the_authors_values(epochs, expected, capsys):
    config = imagenet.get_config(epochs)
    chosen = config.optimizer
    assert (chosen.base_learning_rate, chosen.weight_decay, config.target.tau_base) == expected
    assert (config.batch_size, chosen.warmup_epochs, config.epochs) == (4096, 10, int(epochs))
    assert not capsys.readouterr().err


def test_other_lengths_on_imagenet_are_interpolated_with_a_warning(capsys):
    config = imagenet.get_config("200")
    share = np.log(200 / 100) / np.log(300 / 100)
    want = 0.45 + share * (0.3 - 0.45)
    assert config.optimizer.base_learning_rate == pytest.approx(want, rel=5e-3)
    assert config.optimizer.weight_decay == 1e-6 and config.target.tau_base == pytest.approx(0.99)
    assert "no settings for 200 epochs" in capsys.readouterr().err
    beyond = imagenet.get_config("2000")
    assert (beyond.optimizer.base_learning_rate, beyond.target.tau_base) == (0.2, 0.996)
    with pytest.raises(UserError, match=r"imagenet:ten must end in a number of epochs"):
        imagenet.get_config("ten")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "vit_s"}, "encoder.patch_size=16 does not divide images of 20 x 20 pixels"),
        ({"name": "convnext_t"}, r"encoder.stage_sizes=\(3, 3, 9, 3\) needs images of at least 32"),
        ({"name": "convnet", "channels": (4,) * 5}, "encoder.channels=.* at least 32 x 32"),
    ],
)
def test_images_that_an_encoder_cannot_take_are_refused(settings, message):
    config = tiny_resnet_config()
    config.data.image_size = 20
    config.encoder.update(dict.fromkeys(("stem", "width_multiplier")) | settings)
    with pytest.raises(ConfigError, match=f"config.{message}"):
        resolve(config)


def test_a_frozen_patch_embedding_reaches_network_and_optimizer():
    config = tiny_resnet_config()
    tiny = {"name": "vit_ti", "width": 8, "heads": 2, "depth": 1, "freeze_patch_embedding": True}
    config.encoder.update(dict.fromkeys(("stem", "width_multiplier")) | tiny)
    config, _ = resolve(config)
    assert build.encoder(config).frozen == ("patch_embedding",)
    leaf = {"kernel": jnp.ones((2, 2))}
    params = {"encoder": {"patch_embedding": leaf, "norm": leaf}, "patch_embedding": leaf}
    optimizer = build.optimizer(config, schedule=0.5)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    moved = jax.tree.map(lambda x: bool(np.any(x)), updates)
    assert moved["encoder"] == {"patch_embedding": {"kernel": False}, "norm": {"kernel": True}}
    assert moved["patch_embedding"] == {"kernel": True}  # of another part
