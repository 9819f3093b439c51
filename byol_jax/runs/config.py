"""All settings of a run: their defaults, and the checks of their values.

A preset (byol_jax/presets/*.py) starts from `default()` and changes some of them; the command line
changes single keys (`--config.batch_size=512`). `resolve` then fills in what depends on other keys
and refuses what cannot work, before anything is loaded or compiled.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, FrozenConfigDict, config_dict

from byol_jax import backend, models, objectives
from byol_jax.augment import corrupt, geometry
from byol_jax.augment import image as image_augment
from byol_jax.errors import ConfigError, OwnEncoderError
from byol_jax.runs import user_code

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

UNKNOWN_SOURCE = "unknown"  # data.source of an imported run, which does not name its data
ENCODERS = ("encoder", "target.encoder")  # where encoders are in a config
CHOICES = {
    "optimizer.name": tuple(OPTIMIZER_DEFAULTS),
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
    **_limit(1, "knn.train_examples knn.test_examples"),
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


def default() -> ConfigDict:
    """The paper's ImageNet setting (section 3.3); a preset adds data and length.

    The tree is locked: a key that is not here cannot be set.
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
    config.data.source = ""  # tfds:NAME, folder:PATH, npz:PATH or embedded
    config.data.dir = ""  # where TFDS keeps its data; empty: its own default
    config.data.train_split = "train"
    config.data.test_split = ""  # held-out examples with labels, for kNN; empty: none
    config.data.image_size = 224
    config.data.channels = 3
    config.data.on_decode_error = "error"  # or skip: take another image instead
    # Where crops are computed: host, device (which then keeps all images), or auto: the device, for
    # arrays of up to 1 GB. Host and device draw different crops of the same distribution.
    config.data.placement = "auto"
    config.data.service = ""  # grpc://HOST:PORT of a tf.data service that decodes and crops

    config.crop = ConfigDict()  # the geometric half of a view
    config.crop.area_min = 0.08  # share of the image
    config.crop.area_max = 1.0
    config.crop.ratio_min = 3 / 4  # width / height
    config.crop.ratio_max = 4 / 3
    config.crop.flip_prob = 0.5
    # A box that does not fit into the image: clip it (the authors' code), or retry up to ten times
    # (torchvision).
    config.crop.fit = "clip"
    # Multi-crop (arXiv 2006.09882): small views beside the two, for the online network alone.
    config.crop.local_views = 0  # how many
    config.crop.local_size = 96  # pixels: height and width
    config.crop.local_area_min = 0.05  # share of the image
    config.crop.local_area_max = 0.14
    config.crop.test_fraction = 0.875  # centre crop in evaluation, of the shorter side

    # The photometric half, and what is off by default: the fields of image_augment.Policy. mean and
    # std are those of each channel, for values in 0..1.
    config.views = ConfigDict(_fields(image_augment.IMAGENET))
    config.augment = ConfigDict()
    # MODULE:FUNCTION of your own, traced by JAX: takes a key and a view, float32 (height, width,
    # channels) in 0..1 before normalisation, and returns the like. docs/augmentations.md
    config.augment.function = ""
    # Length of the perturbation that is added to what the online network sees, and moves its
    # prediction most (arXiv 1704.03976), over all values of a normalised view; 0: none.
    config.augment.adversarial_norm = 0.0
    config.augment.adversarial_iterations = 1  # each costs one more forward and backward pass
    # Ablations: names of AUGMENTATION_ABLATIONS, such as "gray,blur".
    config.disable_augmentations = ""

    config.encoder = _open_encoder("resnet50")

    config.heads = ConfigDict()  # projector and predictor
    config.heads.hidden_size = 4096
    config.heads.predictor_hidden_size = config_dict.placeholder(int)  # None: as hidden_size
    config.heads.output_size = 256
    config.heads.projector_layers = 2
    # 0: no predictor (an ablation). None: 2, or 0 if the objective reads no predictions.
    config.heads.predictor_layers = config_dict.placeholder(int)

    config.objective = ConfigDict()  # a name of objectives.OBJECTIVES and its settings, or None for
    config.objective.name = "byol"  # the objective's own default
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
    config.init.state = ""  # a run, imported or ours: the complete state, with step and momentum
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

    config.on_nonfinite = "stop"  # NaN or infinity in an update; or skip that update,
    config.max_skipped_updates = 10  # this many in a row at most
    config.log_every_steps = 50
    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 1000
    config.checkpoint.every_minutes = 30.0  # and after this time without a checkpoint (0: never)
    config.checkpoint.keep = 3  # the newest,
    config.checkpoint.keep_every_steps = 0  # those of each multiple of this step (0: none),
    config.checkpoint.keep_best = True  # and the best by kNN, where that is measured
    config.knn = ConfigDict()  # on held-out labels, during training
    config.knn.every_steps = 5000  # 0: never
    config.knn.train_examples = 10_000  # at most, of each split
    config.knn.test_examples = 2_000
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


def use_encoder(config: ConfigDict, name: str, section: str = "encoder", **settings: Any) -> None:
    """Chooses an encoder with these settings, and its own defaults for others.

    Args:
      config: is changed.
      name: MODULE:CLASS of your own, which is imported, the current folder being on the path; or a
        name of models.ENCODERS.
      section: the key of the encoder in the config, or of the target's: "target.encoder".
      **settings: values by setting.

    Raises:
      ConfigError: it cannot be imported, is no class of Flax modules, or has no such setting.
    """
    if models.is_own(name):
        user_code.load(f"config.{section}.name={name}", name)
    _put_encoder(config, section, name)
    for key, value in settings.items():
        _check_has(get(config, section), f"{section}.{key}")
        try:
            put(config, f"{section}.{key}", value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config.{section}.{key}={value!r} is of another type.") from error


def _put_encoder(config: ConfigDict, section: str, name: str) -> None:
    """Puts an encoder with open settings into a config."""
    try:
        put(config, section, _open_encoder(name))
    except OwnEncoderError as error:
        raise OwnEncoderError(f"config.{section}.{error}") from error


def use_own_encoders(config: ConfigDict, changes: dict[str, Any]) -> None:
    """Opens the settings of a user's own encoders that changes, by dotted key, name or are of.

    Raises:
      ConfigError: as `use_encoder`.
    """
    for section in ENCODERS:
        keys = [key for key in changes if key.rpartition(".")[0] == section]
        if not keys:
            continue
        before, name = get(config, section).name, changes.get(f"{section}.name")
        if name not in (None, before) and (models.is_own(name) or models.is_own(before)):
            use_encoder(config, name, section)
        encoder = get(config, section)
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
    name = config.encoder.name
    if name == preset.encoder.name or name not in models.ENCODERS:
        return
    own = {"name", *models.settings(name)}
    for key, value in preset.encoder.items():
        if key not in own and config.encoder[key] == value:
            config.encoder[key] = None


def set_policy(config: ConfigDict, policy: image_augment.Policy) -> None:
    """Writes a photometric policy, such as `image_augment.CIFAR10`, into a config."""
    config.views.update(_fields(policy))


def _fields(policy: image_augment.Policy) -> dict[str, Any]:
    """What `config.views` holds; `config.augment.function` names a function, if there is one."""
    return {k: v for k, v in dataclasses.asdict(policy).items() if k != "function"}


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
    if config.batch_size % config.accum_steps or micro_batch_size(config) < MIN_BATCH_SIZE:
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
    for key, value in OPTIMIZER_DEFAULTS[config.optimizer.name].items():
        if config.optimizer[key] is None:
            config.optimizer[key] = value
    warnings = []
    rate = config.optimizer.base_learning_rate
    usual = OPTIMIZER_DEFAULTS["adamw"]["base_learning_rate"]
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
    usual = default()
    for key, open_value in flat(usual).items():
        # models.make_encoder and objectives.make_objective check these.
        if key.startswith(("encoder.", "target.encoder.", "objective.")):
            continue
        section, _, leaf = key.rpartition(".")
        value, kind = get(config, key), get(usual, section).get_type(leaf)
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
    for key, low in flat(config).items():
        if key.endswith("_min") and get(config, high := key.removesuffix("min") + "max") < low:
            raise ConfigError(
                f"config.{high}={get(config, high)} must be at least config.{key}={low}."
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
    shapes = [_parameter_shapes(encoder, side, config.data.channels) for side in (size, of_image)]
    if shapes[0] != shapes[1]:  # as of a convnet, or of learned positions
        raise ConfigError(
            f"{given} differs from config.data.image_size={of_image}, but the parameters of "
            f"config.encoder.name={config.encoder.name} as it is set depend on the size: choose "
            "equal sizes, or another encoder."
        )


def _parameter_shapes(encoder: nn.Module, size: int, channels: int) -> Any:
    view = jax.ShapeDtypeStruct((1, size, size, channels), np.float32)
    init = nn.init(functools.partial(models.encode, train=False), encoder)
    return jax.eval_shape(init, jax.random.key(0), view)


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


def own_classes(config: ConfigDict) -> tuple[type[nn.Module], ...]:
    """The classes of the user's own encoders; a notebook may define a class anew under its name."""
    names = [get(config, f"{section}.name") for section in ENCODERS]
    return tuple(models.own_class(name) for name in names if models.is_own(name))


def _check_own_encoders(config: ConfigDict) -> None:
    """Raises OwnEncoderError for an encoder of the user's own that a run could not use."""
    for section in ENCODERS:
        encoder, shapes = get(config, section), user_code.view_shapes(config)
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
                put(config, key.replace("*", view), value)
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


def get(config: ConfigDict, key: str) -> Any:
    """The value at a dotted key; the config itself at the empty one."""
    for part in filter(None, key.split(".")):
        config = config[part]
    return config


def put(config: ConfigDict, key: str, value: Any) -> None:
    """Sets the value at a dotted key."""
    section, _, leaf = key.rpartition(".")
    get(config, section)[leaf] = value


def flat(tree: ConfigDict | dict[str, Any]) -> dict[str, Any]:
    """The leaves of a config, or of a dictionary like it, by dotted key."""
    return flatten_dict(tree.to_dict() if isinstance(tree, ConfigDict) else tree, sep=".")


def from_record(record: dict[str, Any]) -> ConfigDict:
    """The resolved config of a record: `to_dict` of a resolved config, or parts of one.

    Raises:
      ConfigError: it has a key that this version does not know, or a value that cannot work.
      OwnEncoderError: an encoder is MODULE:CLASS of a module that the process has not imported.
    """
    config, found = default(), flat(record)
    for section in ENCODERS:
        if models.is_own(name := found.get(f"{section}.name")):
            _put_encoder(config, section, name)
    unknown = sorted(found.keys() - flat(config).keys())
    if unknown:
        raise ConfigError(
            f"this version of byol_jax has no {', '.join(f'config.{key}' for key in unknown)}."
        )
    for key, value in (BEFORE_THE_KEY | found).items():
        try:
            put(config, key, value)  # with the types that JSON loses
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"config.{key}={value!r} is of another type.") from error
    return resolve(config)[0]


def total_steps(config: ConfigDict, steps_per_epoch: int) -> int:
    """Updates in the complete run."""
    return config.steps or config.epochs * steps_per_epoch


def warmup_steps(config: ConfigDict, steps_per_epoch: int) -> int:
    """Updates until the learning rate is at its peak."""
    return round(config.optimizer.warmup_epochs * steps_per_epoch)


def micro_batch_size(config: ConfigDict) -> int:
    """Images that are in the networks at a time, over all devices."""
    return config.batch_size // config.accum_steps
