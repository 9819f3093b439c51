"""All settings of a run and their defaults.

A preset (byol_jax/presets/*.py) starts from `default()` and changes some of them; the command line
changes single keys (`--config.batch_size=512`). resolve.py then fills in what depends on other keys
and refuses what cannot work.
"""

from typing import Any, NamedTuple

import flax.linen as nn
from ml_collections import ConfigDict, config_dict

from byol_jax import models, objectives
from byol_jax.errors import ConfigError, OwnEncoderError
from byol_jax.runs import kinds, tree, user_code
from byol_jax.runs.kinds import image_settings

# For settings of the optimizer that a config leaves open. The learning rates differ in meaning:
# under LARS the length of an update is rate * 1e-3 * |w|, for any gradient.
OPTIMIZER_DEFAULTS = {
    "lars": {"base_learning_rate": 0.2, "weight_decay": 1.5e-6},
    "adamw": {"base_learning_rate": 1e-3, "weight_decay": 1e-2},
    "sgd": {"base_learning_rate": 0.03, "weight_decay": 5e-4},
}


class Recipe(NamedTuple):
    """Settings that depend on the length of the training on ImageNet, for batches of 4096.

    Appendix F.1 of the paper, and the authors' configs/byol.py.
    """

    base_learning_rate: float  # for a batch of 256
    weight_decay: float
    tau_base: float


IMAGENET_RECIPES = {  # by epochs
    40: Recipe(0.45, 1e-6, 0.97),
    100: Recipe(0.45, 1e-6, 0.99),
    300: Recipe(0.3, 1e-6, 0.99),
    1000: Recipe(0.2, 1.5e-6, 0.996),
}

UNKNOWN_SOURCE = image_settings.UNKNOWN_SOURCE  # also of an imported run


def default(kind: str = "images") -> ConfigDict:
    """The paper's ImageNet setting (section 3.3); a preset adds data and length.

    The tree is locked: a key that is not here cannot be set.

    Args:
      kind: of data; its settings are among those of the config.

    Raises:
      ConfigError: there is no such kind.
    """
    config = ConfigDict()
    config.seed = 0
    config.epochs = 0  # length of the run: one of epochs and steps, the other 0
    config.steps = 0
    config.batch_size = 4096  # images in an update, over all devices
    config.accum_steps = 1  # micro-batches of an update; more of them need less memory
    config.dtype = "float32"  # of convolutions and dense layers; or bfloat16
    # Of float32 products, in networks and objective: default, high or highest. On NVIDIA GPUs since
    # Ampere, default is TF32 (10 bits of mantissa) and highest is float32.
    config.matmul_precision = "default"
    # What computes convolutions on a CPU: onednn; xla; or auto: oneDNN where it can be loaded.
    config.cpu_convolution = "auto"

    config.data = ConfigDict()
    config.data.kind = kind  # a name of kinds.KINDS; a preset chooses it
    # tfds:NAME, folder:PATH, glob:PATTERN, list:FILE, pairs:PATH1,PATH2, npz:PATH, text:PATH,
    # image_text:PATH, csv:FILE or embedded.
    config.data.source = ""
    config.data.train_split = "train"
    config.data.test_split = ""  # held-out examples with labels, for kNN; empty: none
    config.data.on_decode_error = "error"  # or skip: take another example instead
    kinds.get(kind).add_settings(config)

    config.encoder = _open_encoder("resnet50")
    for section, name in kinds.get(kind).more_encoders.items():
        config[section] = _open_encoder(name)

    config.heads = ConfigDict()  # projector and predictor
    config.heads.hidden_size = 4096
    config.heads.predictor_hidden_size = config_dict.placeholder(int)  # None: as hidden_size
    config.heads.output_size = 256
    # 0: no projector, and output_size has no effect, as predictions are as long as embeddings.
    config.heads.projector_layers = 2
    # 0: no predictor (an ablation). None: 2, or 0 if the objective reads no predictions.
    config.heads.predictor_layers = config_dict.placeholder(int)

    # Settings that are None have the objective's own default.
    config.objective = ConfigDict()
    config.objective.name = "byol"  # a name of objectives.OBJECTIVES
    for name in objectives.OBJECTIVES:
        for key, value in objectives.settings(name).items():
            config.objective[key] = config_dict.placeholder(type(value))

    config.target = ConfigDict()  # the target network
    # ema: it follows the online network as an exponential moving average; copy: it becomes a copy
    # of it every_steps; redraw: it gets new random weights every_steps; frozen: it never changes;
    # none: there is none, and the online network's own projections take its place. None: ema, or
    # none if the objective reads no target.
    config.target.rule = config_dict.placeholder(str)
    config.target.tau_base = 0.996  # ema: its decay at step 0; it rises to 1
    config.target.tau_schedule = "cosine"  # or constant
    config.target.every_steps = config_dict.placeholder(int)  # copy and redraw; None: 1
    # Another encoder than the online network's, for a frozen target; an empty name: the same.
    config.target.encoder = _open_encoder("")

    config.init = ConfigDict()  # what a new run starts from, if not from random weights
    # A run, imported or ours, or RUN/checkpoints/STEP: the complete state, with step and momentum.
    config.init.state = ""
    config.init.encoder = ""  # a run, an export or weights of torchvision or timm: both encoders
    config.init.target_encoder = ""  # likewise, for the target's encoder alone

    config.optimizer = ConfigDict()
    config.optimizer.name = "lars"  # or adamw, sgd
    # For a batch of 256; multiplied by batch_size / 256. None: OPTIMIZER_DEFAULTS.
    config.optimizer.base_learning_rate = config_dict.placeholder(float)
    config.optimizer.weight_decay = config_dict.placeholder(float)
    config.optimizer.momentum = 0.9  # LARS and SGD
    config.optimizer.trust_coefficient = 1e-3  # LARS
    config.optimizer.clip = False  # LARS: adapt only steps that are too long (small data sets)
    config.optimizer.warmup_epochs = 10.0  # may be fractional
    # Of the learning rate after the warm-up: cosine to 0; or constant, with a cool-down to 0 in the
    # last share of the run, so that it can be lengthened from there.
    config.optimizer.schedule = "cosine"
    config.optimizer.cooldown_share = config_dict.placeholder(float)  # of constant; None: 0.2

    config.on_nonfinite = "stop"  # NaN or infinity in an update; or skip that update,
    config.max_skipped_updates = 10  # this many in a row at most
    config.log_every_steps = 50
    config.log_to = ""  # wandb, mlflow or wandb,mlflow: where metrics go beside the run's folder
    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 1000
    config.checkpoint.every_minutes = 30.0  # and after this time without a checkpoint (0: never)
    config.checkpoint.keep = 3  # the newest,
    config.checkpoint.keep_every_steps = 0  # those of each multiple of this step (0: none),
    config.checkpoint.keep_best = True  # and the best: by kNN, or without labels by RankMe
    config.evaluation = ConfigDict()  # of the encoder, during training
    config.evaluation.every_steps = 5000  # 0: never
    # At most so many: training images for RankMe and as the neighbours of kNN, and held-out ones.
    config.evaluation.train_examples = 10_000
    config.evaluation.test_examples = 2_000
    # Evaluations in a row that are not better than the best before, by kNN or RankMe, which end the
    # run; 0: it goes to its end. The schedules are those of the complete run.
    config.evaluation.patience = 0
    config.health = ConfigDict()
    config.health.patience = 5  # unhealthy measurements in a row that count as a collapse
    config.health.stop_on_collapse = False
    return config.lock()


def _open_encoder(name: str) -> ConfigDict:
    """An encoder's name and the settings of its module, or None for its own default.

    Where it is none of the user's own, those of all others too: another name may be set later.
    """
    encoder = ConfigDict({"name": name})
    for other in [name] if models.is_own(name) else models.ENCODERS:
        for key, value in models.settings(other).items():
            if hasattr(ConfigDict, key):
                raise OwnEncoderError(f"name={name!r} has a field {key!r}: give it another name.")
            encoder[key] = config_dict.placeholder(type(value))
    return encoder.lock()


def encoder_sections(config: ConfigDict) -> tuple[str, ...]:
    """Where encoders are in a config."""
    return ("encoder", *kinds.of(config).more_encoders, "target.encoder")


def use_encoder(config: ConfigDict, name: str, section: str = "encoder", **settings: Any) -> None:
    """Chooses an encoder with these settings, and its own defaults for others.

    Args:
      config: is changed.
      name: MODULE:CLASS of your own, which is imported, the current folder being on the path; or a
        name of models.ENCODERS.
      section: the key of the encoder in the config, such as "target.encoder" for the target's.
      **settings: values by setting.

    Raises:
      ConfigError: it cannot be imported, is no class of Flax modules, or has no such setting.
    """
    if models.is_own(name):
        user_code.load(f"config.{section}.name={name}", name)
    open_encoder(config, section, name)
    for key, value in settings.items():
        _check_has(tree.get(config, section), f"{section}.{key}")
        try:
            tree.put(config, f"{section}.{key}", value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config.{section}.{key}={value!r} is of another type.") from error


def open_encoder(config: ConfigDict, section: str, name: str) -> None:
    """Puts an encoder with open settings into a config."""
    try:
        tree.put(config, section, _open_encoder(name))
    except OwnEncoderError as error:
        raise OwnEncoderError(f"config.{section}.{error}") from error


def use_own_encoders(config: ConfigDict, changes: dict[str, Any]) -> None:
    """Opens the settings of a user's own encoders that changes, by dotted key, name or are of.

    Raises:
      ConfigError: as `use_encoder`.
    """
    for section in encoder_sections(config):
        keys = [key for key in changes if key.rpartition(".")[0] == section]
        if not keys:
            continue
        before, name = tree.get(config, section).name, changes.get(f"{section}.name")
        if name not in (None, before) and (models.is_own(name) or models.is_own(before)):
            use_encoder(config, name, section)
        encoder = tree.get(config, section)
        for key in keys if models.is_own(encoder.name) else ():
            _check_has(encoder, key)


def _check_has(encoder: ConfigDict, key: str) -> None:
    """Raises ConfigError if a dotted key is no setting of a user's own encoder."""
    if key.rpartition(".")[2] not in encoder:
        has = ", ".join(models.settings(encoder.name)) or "none"
        raise ConfigError(f"config.{key} is not a setting of {encoder.name}, which has {has}.")


def use_other_encoder(config: ConfigDict, preset: ConfigDict) -> None:
    """Where the encoder is not the preset's, opens the preset's settings that the new one lacks.

    Settings that differ from the preset's stay: whoever set them expects the encoder to have them.
    """
    for section in ("encoder", *kinds.of(config).more_encoders):
        encoder, before = config[section], preset[section]
        name = encoder.name
        if name == before.name or name not in models.ENCODERS:
            continue
        own = {"name", *models.settings(name)}
        for key, value in before.items():
            if key not in own and encoder[key] == value:
                encoder[key] = None


def trackers(config: ConfigDict) -> list[str]:
    """The services that config.log_to names, each once."""
    return list(dict.fromkeys(name.strip() for name in config.log_to.split(",") if name.strip()))


def own_classes(config: ConfigDict) -> tuple[type[nn.Module], ...]:
    """The classes of the user's own encoders; a notebook may define a class anew under its name."""
    names = [tree.get(config, f"{section}.name") for section in encoder_sections(config)]
    return tuple(models.own_class(name) for name in names if models.is_own(name))


def total_steps(config: ConfigDict, steps_per_epoch: int) -> int:
    """Updates in the complete run."""
    return config.steps or config.epochs * steps_per_epoch


def warmup_steps(config: ConfigDict, steps_per_epoch: int) -> int:
    """Updates until the learning rate is at its peak."""
    return round(config.optimizer.warmup_epochs * steps_per_epoch)


def cooldown_start(config: ConfigDict, steps_per_epoch: int) -> int | None:
    """The step at which the learning rate of a resolved config begins to fall to 0, if constant."""
    if config.optimizer.schedule != "constant":
        return None
    total = total_steps(config, steps_per_epoch)
    return total - round(config.optimizer.cooldown_share * total)


def micro_batch_size(config: ConfigDict) -> int:
    """Images that are in the networks at a time, over all devices."""
    return config.batch_size // config.accum_steps
