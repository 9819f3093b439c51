"""Fills in what a config leaves open, and refuses what cannot work, before anything is loaded."""

import functools
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict, FrozenConfigDict

from byol_jax import backend, models, objectives
from byol_jax.errors import ConfigError, OwnEncoderError
from byol_jax.runs import config as config_lib
from byol_jax.runs import kinds, tree, user_code
from byol_jax.runs.limits import MAX_FINITE, MIN_POSITIVE, limit

CHOICES = {
    "optimizer.name": tuple(config_lib.OPTIMIZER_DEFAULTS),
    "optimizer.schedule": ("cosine", "constant"),
    "dtype": ("float32", "bfloat16"),
    "matmul_precision": ("default", "high", "highest"),
    "cpu_convolution": backend.CONVOLUTIONS,
    "target.rule": ("ema", "copy", "redraw", "frozen", "none"),
    "target.tau_schedule": ("cosine", "constant"),
    "data.on_decode_error": ("error", "skip"),
    "on_nonfinite": ("stop", "skip"),
}
LOG_TO = ("wandb", "mlflow")
COOLDOWN_SHARE = 0.2  # of a run (arXiv 2405.18392, section 3)
MIN_BATCH_SIZE = 4  # batch norm over fewer examples leaves nothing to learn from
# A number is at least 0 and at most MAX_FINITE, or 1 for a *_prob, except for these. "views.*" is
# both views, here and in CHOICES. A *_min is also at most its *_max.
AT_LEAST = {
    **limit(MIN_BATCH_SIZE, "batch_size"),
    **limit(1, "accum_steps max_skipped_updates log_every_steps health.patience"),
    **limit(1, "heads.hidden_size heads.predictor_hidden_size heads.output_size"),
    **limit(1, "checkpoint.every_steps checkpoint.keep target.every_steps"),
    **limit(1, "evaluation.train_examples evaluation.test_examples"),
    **limit(MIN_POSITIVE, "optimizer.trust_coefficient"),
}
AT_MOST = {
    **limit(2**31 - 1, "seed"),
    **limit(100, "heads.projector_layers heads.predictor_layers"),  # each takes time to compile
    **limit(1, "optimizer.momentum optimizer.cooldown_share target.tau_base"),
    **limit(1e38, "optimizer.base_learning_rate"),
}


def from_record(record: dict[str, Any]) -> ConfigDict:
    """The resolved config of a record: `to_dict` of a resolved config, or parts of one.

    Raises:
      ConfigError: it has a key that this version does not know, or a value that cannot work.
      OwnEncoderError: an encoder is MODULE:CLASS of a module that the process has not imported.
    """
    found = tree.flat(record)
    config = config_lib.default(found.get("data.kind", kinds.Images.name))
    kind = kinds.of(config)
    for section in config_lib.encoder_sections(config):
        if models.is_own(name := found.get(f"{section}.name")):
            config_lib.open_encoder(config, section, name)
    unknown = sorted(found.keys() - tree.flat(config).keys())
    if unknown:
        raise ConfigError(
            f"this version of byol_jax has no {', '.join(f'config.{key}' for key in unknown)}."
        )
    for key, value in (kind.before_the_key | found).items():
        try:
            tree.put(config, key, value)  # with the types that JSON loses
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
            "config.data.source is empty: name the data, such as --config.data.source=folder:PATH "
            "or tfds:NAME."
        )
    if (
        config.batch_size % config.accum_steps
        or config_lib.micro_batch_size(config) < MIN_BATCH_SIZE
    ):
        raise ConfigError(
            f"config.accum_steps={config.accum_steps} must divide config.batch_size="
            f"{config.batch_size} into micro-batches of {MIN_BATCH_SIZE} examples or more."
        )
    if (config.epochs > 0) == (config.steps > 0):
        raise ConfigError(
            f"config.epochs={config.epochs} and config.steps={config.steps}: set one of them to "
            "the length of the run and the other to 0, such as --config.epochs=0 "
            "--config.steps=100 (with --config.optimizer.warmup_epochs=0 for a run that short)."
        )
    encoder = _resolve_encoder(config, "encoder")
    for section in kinds.of(config).more_encoders:
        _resolve_encoder(config, section)
    _resolve_objective(config)
    kinds.of(config).resolve(config)
    _check_own_encoders(config)
    kinds.of(config).check(config, encoder)
    if config.heads.predictor_hidden_size is None:
        config.heads.predictor_hidden_size = config.heads.hidden_size
    for name in config_lib.trackers(config):
        if name not in LOG_TO:
            raise ConfigError(
                f"config.log_to={config.log_to!r}: {name} is not one of {', '.join(LOG_TO)}."
            )
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
    if config.optimizer.schedule == "cosine" and config.optimizer.cooldown_share is not None:
        raise ConfigError(
            f"config.optimizer.cooldown_share={config.optimizer.cooldown_share:g} has no use with "
            "config.optimizer.schedule=cosine: add --config.optimizer.schedule=constant, or leave "
            "it out."
        )
    if config.optimizer.schedule == "constant" and config.optimizer.cooldown_share is None:
        config.optimizer.cooldown_share = COOLDOWN_SHARE
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
    kind_of_data = kinds.of(config)
    usual = config_lib.default(kind_of_data.name)
    choices = CHOICES | kind_of_data.choices
    at_least = AT_LEAST | kind_of_data.at_least
    at_most = AT_MOST | kind_of_data.at_most
    sections = (*config_lib.encoder_sections(config), "objective")
    checked_later = tuple(f"{section}." for section in sections)
    for key, open_value in tree.flat(usual).items():
        # models.make_encoder and objectives.make_objective check these.
        if key.startswith(checked_later):
            continue
        section, _, leaf = key.rpartition(".")
        try:
            value, kind = tree.get(config, key), tree.get(usual, section).get_type(leaf)
        except KeyError:
            raise ConfigError(
                f"config.data.kind={kind_of_data.name} needs config.{key}, which this config "
                "lacks: choose a preset of that kind."
            ) from None
        if value is None and open_value is None:
            continue
        key_of_both = key.replace("view1", "*").replace("view2", "*")
        try:
            models.check_setting(key, value, kind, choices.get(key_of_both, ()))
        except ValueError as error:
            raise ConfigError(f"config.{error}") from error
        low = at_least.get(key_of_both, 0)
        high = at_most.get(key_of_both, 1 if key.endswith("_prob") else MAX_FINITE)
        if kind in (int, float) and not low <= value <= high:
            bounds = f"at least {low:g}" + (f" and at most {high:g}" if not value < low else "")
            raise ConfigError(f"config.{key}={value} must be {bounds}.")
    for key, low in tree.flat(config).items():
        if key.endswith("_min") and tree.get(config, high := key.removesuffix("min") + "max") < low:
            raise ConfigError(
                f"config.{high}={tree.get(config, high)} must be at least config.{key}={low}."
            )


def _resolve_encoder(config: ConfigDict, key: str) -> nn.Module:
    """Resolves the settings of the encoder at this key of the config, and returns it."""
    encoder = tree.get(config, key)
    chosen = {key: value for key, value in encoder.items() if value is not None}
    try:
        module = models.make_encoder(**{"name": None} | chosen)
        if key not in kinds.of(config).more_encoders:
            kinds.of(config).check_encoder(config, module)
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
    for section in config_lib.encoder_sections(config):
        kind_of_data = kinds.of(config)
        encoder, shapes = tree.get(config, section), kind_of_data.view_shapes(config)
        if not models.is_own(encoder.name):
            continue
        dtype = kind_of_data.view_dtype
        if section in kind_of_data.more_encoders:
            view = kind_of_data.more_views(config)[section]
            shapes, dtype = [view.shape], view.dtype
        if section == "target.encoder":  # it sees no local views
            shapes = shapes[:1]
        for shape in shapes:  # none before the data is known, and no record either
            kind = models.own_class(encoder.name)
            sizes = kind_of_data.sizes(kind_of_data.encoder_record(config))
            _check_own_encoder(
                *(section, kind, FrozenConfigDict(encoder), shape, dtype),
                *(kind_of_data, (*sizes.items(),)),
            )


@functools.lru_cache(8)  # as a start reads the same settings several times
def _check_own_encoder(
    section: str,
    kind: type[nn.Module],
    encoder: FrozenConfigDict,
    shape: tuple[int, ...],
    dtype: Any,
    kind_of_data: kinds.Kind,
    sizes: tuple[tuple[str, int], ...],
) -> None:
    del kind  # of the name, for the cache alone
    given = f"config.{section}.name={encoder.name}"
    module = models.with_fields(models.make_encoder(**encoder), **dict(sizes))
    is_trained = section != "target.encoder"
    user_code.check_encoder(given, kind_of_data.adapt(module), shape, dtype, is_trained)


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
        if not heads.projector_layers:
            raise ConfigError(
                "config.heads.projector_layers=0 compares embeddings themselves, and config.target."
                "encoder may have longer ones: leave one of them out."
            )
        _resolve_encoder(config, "target.encoder")
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
