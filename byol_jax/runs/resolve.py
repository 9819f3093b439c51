"""Fills in what a config leaves open, and refuses what cannot work, before anything is loaded."""

import functools
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict, FrozenConfigDict

from byol_jax import backend, models, objectives
from byol_jax.augment import corrupt, geometry
from byol_jax.errors import ConfigError, OwnEncoderError
from byol_jax.runs import config as config_lib
from byol_jax.runs import user_code

CHOICES = {
    "optimizer.name": tuple(config_lib.OPTIMIZER_DEFAULTS),
    "dtype": ("float32", "bfloat16"),
    "matmul_precision": ("default", "high", "highest"),
    "cpu_convolution": backend.CONVOLUTIONS,
    "target.rule": ("ema", "copy", "redraw", "frozen", "none"),
    "target.tau_schedule": ("cosine", "constant"),
    "crop.fit": ("clip", "retry"),
    "views.*.pad_mode": tuple(geometry.PAD_MODES),
    "views.*.fill": corrupt.FILLS,
    "data.channels": (1, 3),
    "data.on_decode_error": ("error", "skip"),
    "data.placement": ("auto", "host", "device"),
    "on_nonfinite": ("stop", "skip"),
}
# Where runs from before a key existed did not behave as its default today.
BEFORE_THE_KEY = {"crop.fit": "retry"}
MIN_BATCH_SIZE = 4  # batch norm over fewer examples leaves nothing to learn from
MIN_POSITIVE = 1e-6  # stands for "above 0"
MAX_FINITE = 1e12  # stands for "finite"


def _limit(value: float, keys: str) -> dict[str, float]:
    return dict.fromkeys(keys.split(), value)


# A number is at least 0 and at most MAX_FINITE, or 1 for a *_prob, except for these. "views.*" is
# both views, here and in CHOICES. A *_min is also at most its *_max.
AT_LEAST = {
    **_limit(MIN_BATCH_SIZE, "batch_size"),
    **_limit(1, "accum_steps data.image_size max_skipped_updates log_every_steps health.patience"),
    **_limit(1, "heads.hidden_size heads.predictor_hidden_size heads.output_size"),
    **_limit(1, "heads.projector_layers checkpoint.every_steps checkpoint.keep target.every_steps"),
    **_limit(1, "evaluation.train_examples evaluation.test_examples"),
    **_limit(MIN_POSITIVE, "crop.area_min crop.area_max crop.ratio_min crop.ratio_max"),
    **_limit(MIN_POSITIVE, "crop.local_area_min crop.local_area_max"),
    **_limit(1, "crop.local_size"),
    **_limit(MIN_POSITIVE, "views.*.blur_sigma_min views.*.blur_sigma_max views.*.blur_divider"),
    **_limit(MIN_POSITIVE, "views.*.erase_area_min views.*.erase_area_max"),
    **_limit(MIN_POSITIVE, "views.*.erase_ratio_min views.*.erase_ratio_max"),
    **_limit(1, "views.*.mask_patch_size augment.adversarial_iterations"),
    **_limit(MIN_POSITIVE, "crop.test_fraction optimizer.trust_coefficient"),
}
AT_MOST = {
    **_limit(2**31 - 1, "seed"),
    **_limit(2**16, "data.image_size"),
    **_limit(100, "heads.projector_layers heads.predictor_layers"),  # each takes time to compile
    **_limit(1, "crop.area_min crop.area_max crop.test_fraction optimizer.momentum"),
    **_limit(1, "crop.local_area_min crop.local_area_max"),
    **_limit(100, "crop.local_views"),  # each takes time to compile
    **_limit(1, "views.*.erase_area_min views.*.erase_area_max views.*.mask_share"),
    **_limit(180, "views.*.rotation_degrees"),
    **_limit(100, "augment.adversarial_iterations"),  # each takes time to compile
    **_limit(1, "target.tau_base"),
    **_limit(1e38, "optimizer.base_learning_rate"),
}
# The parts of the augmentation that config.disable_augmentations can name, and the keys that each
# of them sets; figure 3b of the paper, then what the paper does not have.
AUGMENTATION_ABLATIONS = {
    "crop": dict.fromkeys(
        ("crop.area_min", "crop.area_max", "crop.ratio_min", "crop.ratio_max"), 1.0
    ),
    "flip": {"crop.flip_prob": 0.0},
    "color": {"views.*.jitter_prob": 0.0, "views.*.gray_prob": 0.0},
    "jitter": {"views.*.jitter_prob": 0.0},
    "gray": {"views.*.gray_prob": 0.0},
    "blur": {"views.*.blur_prob": 0.0},
    "solarize": {"views.*.solarize_prob": 0.0},
    "asymmetry": {},  # both views get the mean of each field: _equalize
    "vertical_flip": {"views.*.vertical_flip_prob": 0.0},
    "quarter_turn": {"views.*.quarter_turn_prob": 0.0},
    "rotation": {"views.*.rotation_prob": 0.0},
    "pad": {"views.*.pad": 0},
    "noise": {"views.*.noise_prob": 0.0},
    "erase": {"views.*.erase_prob": 0.0},
    "mask": {"views.*.mask_share": 0.0},
    "function": {"augment.function": ""},
    "multi_crop": {"crop.local_views": 0},
    "adversarial": {"augment.adversarial_norm": 0.0},
}
# Settings of a view that are read only where one of others is not 0.
READ_WITH = {
    "pad_mode": ("pad",),
    "mask_patch_size": ("mask_share",),
    "fill": ("erase_prob", "mask_share"),
}


def from_record(record: dict[str, Any]) -> ConfigDict:
    """The resolved config of a record: `to_dict` of a resolved config, or parts of one.

    Raises:
      ConfigError: it has a key that this version does not know, or a value that cannot work.
      OwnEncoderError: an encoder is MODULE:CLASS of a module that the process has not imported.
    """
    config, found = config_lib.default(), config_lib.flat(record)
    for section in config_lib.ENCODERS:
        if models.is_own(name := found.get(f"{section}.name")):
            config_lib.open_encoder(config, section, name)
    unknown = sorted(found.keys() - config_lib.flat(config).keys())
    if unknown:
        raise ConfigError(
            f"this version of byol_jax has no {', '.join(f'config.{key}' for key in unknown)}."
        )
    for key, value in (BEFORE_THE_KEY | found).items():
        try:
            config_lib.put(config, key, value)  # with the types that JSON loses
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"config.{key}={value!r} is of another type.") from error
    return resolve(config)[0]


def resolve(config: ConfigDict) -> tuple[ConfigDict, list[str]]:
    """A copy with nothing left open, and warnings.

    Raises:
      ConfigError: a value that cannot work; the message names the key.
    """
    config = config.copy_and_resolve_references()
    _check_values(config)
    if not config.data.source:
        raise ConfigError(
            "config.data.source is empty: name the images, such as "
            "--config.data.source=folder:PATH or tfds:NAME."
        )
    if (
        config.batch_size % config.accum_steps
        or config_lib.micro_batch_size(config) < MIN_BATCH_SIZE
    ):
        raise ConfigError(
            f"config.accum_steps={config.accum_steps} must divide config.batch_size="
            f"{config.batch_size} into micro-batches of {MIN_BATCH_SIZE} images or more."
        )
    if (config.epochs > 0) == (config.steps > 0):
        raise ConfigError(
            f"config.epochs={config.epochs} and config.steps={config.steps}: set one of them to "
            "the length of the run and the other to 0, such as --config.epochs=0 "
            "--config.steps=100 (with --config.optimizer.warmup_epochs=0 for a run that short)."
        )
    for key in ("mean", "std"):
        values, low = config.views[key], MIN_POSITIVE if key == "std" else 0
        in_range = all(isinstance(v, int | float) and low <= v <= 1 for v in values)
        if len(values) != config.data.channels or not in_range:
            raise ConfigError(
                f"config.views.{key}={tuple(values)}: give {config.data.channels} number(s) "
                "between 0 and 1, one for each of config.data.channels, such as "
                f"--config.views.{key}={','.join(['0.5'] * config.data.channels)}."
            )
    encoder = _resolve_encoder(config.encoder, "encoder", config.data.image_size)
    _resolve_objective(config)
    _disable_augmentations(config)
    _check_own_encoders(config)
    _check_views(config, config.data.image_size, "data.image_size")
    if config.crop.local_views:
        _check_local_views(config, encoder)
        _check_views(config, config.crop.local_size, "crop.local_size")
    if config.heads.predictor_hidden_size is None:
        config.heads.predictor_hidden_size = config.heads.hidden_size
    if config.evaluation.patience and not config.evaluation.every_steps:
        raise ConfigError(
            f"config.evaluation.patience={config.evaluation.patience} counts evaluations, and "
            "config.evaluation.every_steps=0 makes none: set both, or neither."
        )
    if config.init.state and (config.init.encoder or config.init.target_encoder):
        raise ConfigError(
            "config.init.state brings a complete state: leave config.init.encoder and "
            "config.init.target_encoder empty, or leave out the state."
        )
    if config.init.target_encoder and config.target.rule in ("none", "redraw"):
        raise ConfigError(
            f"config.init.target_encoder has no use with config.target.rule="
            f"{config.target.rule}: choose ema, copy or frozen."
        )
    for key, value in config_lib.OPTIMIZER_DEFAULTS[config.optimizer.name].items():
        if config.optimizer[key] is None:
            config.optimizer[key] = value
    warnings = []
    rate = config.optimizer.base_learning_rate
    usual = config_lib.OPTIMIZER_DEFAULTS["adamw"]["base_learning_rate"]
    if config.optimizer.name == "adamw" and rate > 20 * usual:  # as most rates for LARS are
        warnings.append(
            f"warning: config.optimizer.base_learning_rate={rate:g} looks like a rate for LARS; "
            f"{usual:g} is usual under AdamW."
        )
    if config.optimizer.name != "adamw" and isinstance(encoder, models.ViT):
        # Its class token starts near 0, before a norm, so that its first gradients are huge.
        warnings.append(
            f"warning: config.optimizer.name={config.optimizer.name} can make a ViT's first steps "
            "much too long: ViTs are usually trained with --config.optimizer.name=adamw."
        )
    return config, warnings


def _check_values(config: ConfigDict) -> None:
    """Raises ConfigError for a value of a wrong type, out of range, or not among the choices."""
    usual = config_lib.default()
    for key, open_value in config_lib.flat(usual).items():
        # models.make_encoder and objectives.make_objective check these.
        if key.startswith(("encoder.", "target.encoder.", "objective.")):
            continue
        section, _, leaf = key.rpartition(".")
        value, kind = config_lib.get(config, key), config_lib.get(usual, section).get_type(leaf)
        if value is None and open_value is None:
            continue
        key_of_both = key.replace("view1", "*").replace("view2", "*")
        try:
            models.check_setting(key, value, kind, CHOICES.get(key_of_both, ()))
        except ValueError as error:
            raise ConfigError(f"config.{error}") from error
        low = AT_LEAST.get(key_of_both, 0)
        high = AT_MOST.get(key_of_both, 1 if key.endswith("_prob") else MAX_FINITE)
        if kind in (int, float) and not low <= value <= high:
            bounds = f"at least {low:g}" + (f" and at most {high:g}" if not value < low else "")
            raise ConfigError(f"config.{key}={value} must be {bounds}.")
    for key, low in config_lib.flat(config).items():
        if (
            key.endswith("_min")
            and config_lib.get(config, high := key.removesuffix("min") + "max") < low
        ):
            raise ConfigError(
                f"config.{high}={config_lib.get(config, high)} must be at least config.{key}={low}."
            )


def _check_local_views(config: ConfigDict, encoder: nn.Module) -> None:
    """Raises ConfigError for a size of the local views that does not fit."""
    size, of_image = config.crop.local_size, config.data.image_size
    given = f"config.crop.local_size={size}"
    if size > of_image:
        raise ConfigError(
            f"{given} must be at most config.data.image_size={of_image}: local views are the small "
            "ones."
        )
    try:
        models.check_image_size(encoder, size, size)
    except ValueError as error:
        raise ConfigError(f"{given} does not suit the encoder: config.encoder.{error}") from error
    shapes = [
        models.variable_shapes(encoder, side, config.data.channels) for side in (size, of_image)
    ]
    if shapes[0] != shapes[1]:  # as of a convnet, or of learned positions
        raise ConfigError(
            f"{given} differs from config.data.image_size={of_image}, but the parameters of "
            f"config.encoder.name={config.encoder.name} as it is set depend on the size: choose "
            "equal sizes, or another encoder."
        )


def _check_views(config: ConfigDict, size: int, size_key: str) -> None:
    """Raises ConfigError for settings of a view that do not fit images of a size."""
    for name in ("view1", "view2"):
        view = config.views[name]
        if view.pad >= size:
            raise ConfigError(
                f"config.views.{name}.pad={view.pad} must be below config.{size_key}={size}."
            )
        rows, columns = corrupt.patch_grid(size, size, view.mask_patch_size)
        masked = corrupt.masked_patches(size, size, view.mask_patch_size, view.mask_share)
        if view.mask_share and not 0 < masked < rows * columns:
            raise ConfigError(
                f"config.views.{name}.mask_share={view.mask_share:g} masks {masked} of the "
                f"{rows * columns} patches of {view.mask_patch_size} pixels of config.{size_key}="
                f"{size}: choose another share, or another config.views.{name}.mask_patch_size; 0 "
                "masks nothing."
            )


def _resolve_encoder(encoder: ConfigDict, key: str, image_size: int) -> nn.Module:
    """Resolves the settings of an encoder, which is at this key of the config, and returns it."""
    chosen = {key: value for key, value in encoder.items() if value is not None}
    try:
        module = models.make_encoder(**{"name": None} | chosen)
        models.check_image_size(module, image_size, image_size)
    except OwnEncoderError as error:
        raise OwnEncoderError(f"config.{key}.{error}") from error
    except ValueError as error:
        raise ConfigError(f"config.{key}.{error}") from error
    own = models.settings(encoder.name)
    if models.is_own(encoder.name) and set(encoder) != {"name", *own}:
        raise ConfigError(
            f"config.{key}.name={encoder.name} was set without its settings: choose it by "
            "byol_jax.runs.config.use_encoder."
        )
    _close(encoder, own)
    return module


def _check_own_encoders(config: ConfigDict) -> None:
    """Raises OwnEncoderError for an encoder of the user's own that a run could not use."""
    for section in config_lib.ENCODERS:
        encoder, shapes = config_lib.get(config, section), user_code.view_shapes(config)
        if not models.is_own(encoder.name):
            continue
        if section == "target.encoder":  # it sees no local views
            shapes = shapes[:1]
        for shape in shapes:
            kind = models.own_class(encoder.name)
            _check_own_encoder(section, kind, FrozenConfigDict(encoder), shape)


@functools.lru_cache(8)  # as a start reads the same settings several times
def _check_own_encoder(
    section: str, kind: type[nn.Module], encoder: FrozenConfigDict, shape: tuple[int, int, int]
) -> None:
    del kind  # of the name, for the cache alone
    given, module = f"config.{section}.name={encoder.name}", models.make_encoder(**encoder)
    user_code.check_encoder(given, module, shape, is_trained=section == "encoder")


def _resolve_objective(config: ConfigDict) -> None:
    """Resolves the settings of the objective, of the target, and whether there is a predictor."""
    chosen = {key: value for key, value in config.objective.items() if value is not None}
    try:
        objectives.make_objective(**{"name": None} | chosen)
    except ValueError as error:
        raise ConfigError(f"config.objective.{error}") from error
    name, kind = config.objective.name, objectives.OBJECTIVES[config.objective.name]
    _close(config.objective, objectives.settings(name))
    target, heads = config.target, config.heads
    if target.rule is None:
        target.rule = "ema" if kind.has_target else "none"
    if target.rule != "none" and not kind.has_target:
        raise ConfigError(
            f"config.target.rule={target.rule} has no use with config.objective.name={name}, "
            "which reads no target network: leave it out."
        )
    if target.rule not in ("copy", "redraw") and target.every_steps is not None:
        raise ConfigError(
            f"config.target.every_steps={target.every_steps} has no use with config.target.rule="
            f"{target.rule}: add --config.target.rule=copy or redraw, or leave it out."
        )
    if target.rule in ("copy", "redraw") and target.every_steps is None:
        target.every_steps = 1
    if heads.predictor_layers is None:
        heads.predictor_layers = 2 if kind.predicts else 0
    if heads.predictor_layers and not kind.predicts:
        raise ConfigError(
            f"config.heads.predictor_layers={heads.predictor_layers} has no use with "
            f"config.objective.name={name}, which reads no predictions: leave it out."
        )
    if target.encoder.name:
        if target.rule != "frozen":
            raise ConfigError(
                "config.target.encoder is another encoder than the online network's, whose weights "
                "do not fit it: add --config.target.rule=frozen, or leave it out."
            )
        _resolve_encoder(target.encoder, "target.encoder", config.data.image_size)
    else:
        _close(target.encoder, {})
        for key in (key for key in target.encoder if key != "name"):
            raise ConfigError(
                f"config.target.encoder.{key} belongs to an encoder of its own: name it too, by "
                "--config.target.encoder.name."
            )


def _close(section: ConfigDict, own: dict[str, Any]) -> None:
    """Fills in the defaults of open settings, and drops the open ones that are not own."""
    with section.unlocked():
        for key in [key for key, value in section.items() if value is None]:
            if key in own:
                section[key] = own[key]
            else:
                del section[key]


def _disable_augmentations(config: ConfigDict) -> None:
    """Sets the keys that `config.disable_augmentations` stands for."""
    parts = [*filter(None, config.disable_augmentations.replace(" ", "").split(","))]
    for part in parts:
        if part not in AUGMENTATION_ABLATIONS:
            raise ConfigError(
                f"config.disable_augmentations={part!r} is not one of "
                f"{', '.join(AUGMENTATION_ABLATIONS)}."
            )
        for key, value in AUGMENTATION_ABLATIONS[part].items():
            for view in ("view1", "view2") if "*" in key else ("",):
                config_lib.put(config, key.replace("*", view), value)
    if "asymmetry" in parts:
        _equalize(config.views.view1, config.views.view2)


def _equalize(view1: ConfigDict, view2: ConfigDict) -> None:
    """Gives both views the mean of each number.

    A key of READ_WITH is that of the view that reads it, or stays as it is if neither does.

    Raises:
      ConfigError: names differ, or the mean of two integers is none.
    """
    views = (view1.to_dict(), view2.to_dict())
    for key in view1:
        switches, kind = READ_WITH.get(key, ()), view1.get_type(key)
        values = {view[key] for view in views if not switches or any(view[k] for k in switches)}
        if not values:
            continue
        low, high = min(values), max(values)
        if low != high and (kind is str or (kind is int and (low + high) % 2)):
            what = "mean" if kind is str else "whole mean"
            raise ConfigError(
                f"config.disable_augmentations=asymmetry has no {what} of config.views.view1.{key}="
                f"{views[0][key]} and config.views.view2.{key}={views[1][key]}: choose one for "
                "both."
            )
        view1[key] = view2[key] = low if low == high else kind((low + high) / 2)
