"""The tree of all knobs, and its checks.

A preset (byol_jax/presets/*.py) starts from `default()` and changes what it must; the command
line changes single keys (`--config.batch_size=512`). `resolve` then fills what depends on other
keys and refuses what cannot work, before anything is loaded or compiled.
"""

import dataclasses
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from byol_jax import models
from byol_jax.augment import image as image_augment
from byol_jax.errors import UserError

# What an optimiser gets where the config leaves these open. The learning rates mean different
# things: under LARS an update is as large as rate * 1e-3 * |w|, whatever the gradient.
OPTIMIZER_DEFAULTS = {
    "lars": {"base_learning_rate": 0.2, "weight_decay": 1.5e-6},
    "adamw": {"base_learning_rate": 1e-3, "weight_decay": 1e-2},
    "sgd": {"base_learning_rate": 0.03, "weight_decay": 5e-4},
}
# Twenty times what is usual under AdamW; rates for LARS are mostly above it.
LARGEST_SENSIBLE_ADAMW_RATE = 0.02


class Recipe(NamedTuple):
    """What the authors change with the length of the training on ImageNet.

    Appendix F.1 of the paper and the authors' configs/byol.py: batches of 4096, 10 epochs of
    warm-up, and these values.
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

UNKNOWN_SOURCE = "unknown"  # data.source of an imported run, whose data were never named here
INFINITY = float("inf")
CHOICES = {
    "optimizer.name": tuple(OPTIMIZER_DEFAULTS),
    "encoder.name": tuple(models.ENCODERS),
    "encoder.stem": ("imagenet", "cifar", "strided"),
    "encoder.padding": ("torch", "same"),
    "dtype": ("float32", "bfloat16"),
    "matmul_precision": ("default", "high", "highest"),
    "tau_schedule": ("cosine", "constant"),
    "crop.fit": ("clip", "retry"),
    "data.channels": (1, 3),
    "data.on_decode_error": ("error", "skip"),
    "data.placement": ("auto", "host", "device"),
    "on_nonfinite": ("stop", "skip"),
}
MIN_POSITIVE = 1e-6  # stands for "above 0"
MAX_FINITE = 1e12  # nothing here is ever so many or so much; stands for "finite"
RANGES = {
    "seed": (0, 2**31 - 1),
    "epochs": (0, INFINITY),
    "steps": (0, INFINITY),
    "batch_size": (4, INFINITY),  # batch norm over fewer examples leaves nothing to learn from
    "accum_steps": (1, INFINITY),
    "data.image_size": (1, 2**16),
    "crop.area_min": (MIN_POSITIVE, 1),
    "crop.area_max": (MIN_POSITIVE, 1),
    "crop.ratio_min": (MIN_POSITIVE, INFINITY),
    "crop.ratio_max": (MIN_POSITIVE, INFINITY),
    "crop.flip_prob": (0, 1),
    "crop.test_fraction": (MIN_POSITIVE, 1),
    "encoder.width_multiplier": (MIN_POSITIVE, INFINITY),
    "encoder.stem_channels": (0, INFINITY),
    "heads.hidden_size": (1, INFINITY),
    "heads.predictor_hidden_size": (1, INFINITY),
    "heads.output_size": (1, INFINITY),
    "heads.projector_layers": (1, 100),  # each takes its time to compile
    "heads.predictor_layers": (0, 100),
    "tau_base": (0, 1),
    "negatives.beta": (0, INFINITY),
    "negatives.temperature": (MIN_POSITIVE, INFINITY),
    "optimizer.base_learning_rate": (0, 1e38),
    "optimizer.weight_decay": (0, INFINITY),
    "optimizer.momentum": (0, 1),
    "optimizer.trust_coefficient": (MIN_POSITIVE, INFINITY),
    "optimizer.warmup_epochs": (0, INFINITY),
    "log_every_steps": (1, INFINITY),
    "checkpoint.every_steps": (1, INFINITY),
    "checkpoint.every_minutes": (0, INFINITY),
    "checkpoint.keep": (1, INFINITY),
    "checkpoint.keep_every_steps": (0, INFINITY),
    "max_skipped_updates": (1, INFINITY),
    "knn.every_steps": (0, INFINITY),
    "knn.train_examples": (1, INFINITY),
    "knn.test_examples": (1, INFINITY),
    "health.patience": (1, INFINITY),
} | {
    f"views.{view}.{key}": bounds
    for view in ("view1", "view2")
    for key, bounds in {
        "jitter_prob": (0, 1),
        "brightness": (0, INFINITY),
        "contrast": (0, INFINITY),
        "saturation": (0, INFINITY),
        "hue": (0, INFINITY),
        "gray_prob": (0, 1),
        "blur_prob": (0, 1),
        "blur_sigma_min": (MIN_POSITIVE, INFINITY),
        "blur_sigma_max": (MIN_POSITIVE, INFINITY),
        "blur_divider": (MIN_POSITIVE, INFINITY),
        "solarize_prob": (0, 1),
        "solarize_threshold": (0, INFINITY),
    }.items()
}
ASCENDING = (
    ("crop.area_min", "crop.area_max"),
    ("crop.ratio_min", "crop.ratio_max"),
    ("views.view1.blur_sigma_min", "views.view1.blur_sigma_max"),
    ("views.view2.blur_sigma_min", "views.view2.blur_sigma_max"),
)


# What --config.disable_augmentations can take away: part -> the keys that it sets. Figure 3b of the paper.
AUGMENTATION_ABLATIONS = {
    "crop": {"crop.area_min": 1.0, "crop.area_max": 1.0, "crop.ratio_min": 1.0}
    | {"crop.ratio_max": 1.0},
    "flip": {"crop.flip_prob": 0.0},
    "color": {"views.*.jitter_prob": 0.0, "views.*.gray_prob": 0.0},
    "jitter": {"views.*.jitter_prob": 0.0},
    "gray": {"views.*.gray_prob": 0.0},
    "blur": {"views.*.blur_prob": 0.0},
    "solarize": {"views.*.solarize_prob": 0.0},
    "asymmetry": {},  # both views get the mean of each field
}


def default() -> ConfigDict:
    """The paper's ImageNet setting (section 3.3) on one tree; a preset adds data and length.

    The tree is locked: a key that is not here cannot be set.
    """
    imagenet = image_augment.IMAGENET
    config = ConfigDict()
    config.seed = 0
    config.epochs = 0  # length of the run: one of epochs and steps, the other 0
    config.steps = 0
    config.batch_size = 4096  # images in an update, over all devices
    config.accum_steps = 1  # micro-batches that an update goes through, for the memory of one
    config.dtype = "float32"  # what convolutions and dense layers compute in; or bfloat16
    # Of float32 products (jax_default_matmul_precision): default is TF32 on GPUs since Ampere.
    config.matmul_precision = "default"  # or high, highest

    config.data = ConfigDict()
    config.data.source = ""  # tfds:NAME, folder:PATH, npz:PATH or embedded
    config.data.dir = ""  # where TFDS keeps its data; empty: its own default
    config.data.train_split = "train"
    config.data.test_split = ""  # held-out examples with labels, for kNN; empty: none
    config.data.image_size = 224
    config.data.channels = 3
    config.data.on_decode_error = "error"  # an image that cannot be read; or skip: take another instead
    # Where views are cut: host, device (which then keeps all images), or auto: the device, for
    # arrays of up to 1 GB. The two draw other crops of the same distribution.
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
    config.crop.test_fraction = 0.875  # centre crop in evaluation, of the shorter side

    config.views = ConfigDict()  # the photometric half: the fields of image_augment.View, commented there
    config.views.view1 = ConfigDict(dataclasses.asdict(imagenet.view1))
    config.views.view2 = ConfigDict(dataclasses.asdict(imagenet.view2))
    config.views.mean = imagenet.mean  # of each channel, for values in 0..1
    config.views.std = imagenet.std
    # Ablations: parts of the augmentation to leave out, of AUGMENTATION_ABLATIONS, such as "gray,blur".
    config.disable_augmentations = ""

    config.encoder = ConfigDict()
    config.encoder.name = "resnet50"  # or resnet8, 10, 18, 34, 101, 152, 200
    config.encoder.width_multiplier = 1.0
    config.encoder.stem = "imagenet"  # or cifar, strided: models.ResNet says what they are
    config.encoder.stem_channels = 0  # 0: as many as the named network has
    config.encoder.stage_channels = ()  # likewise
    # Two choices in which the authors' code differs from torchvision's networks, our default:
    config.encoder.padding = "torch"  # or same
    config.encoder.first_shortcut = False  # project in the first stage of ResNet-18 and -34 too
    config.encoder.zero_init_scale = False  # of the last norm in each block
    config.encoder.remat = False  # compute blocks again in the backward pass, for less memory

    config.heads = ConfigDict()  # projector and predictor
    config.heads.hidden_size = 4096
    config.heads.predictor_hidden_size = config_dict.placeholder(int)  # open: as hidden_size
    config.heads.output_size = 256
    config.heads.projector_layers = 2
    config.heads.predictor_layers = 2  # 0: no predictor (an ablation)

    config.tau_base = 0.996  # the target's decay at step 0; it rises to 1
    config.tau_schedule = "cosine"  # or constant
    config.target_network = True  # False: the online projections are the goal (an ablation)
    config.negatives = ConfigDict()  # contrastive.py (an ablation)
    config.negatives.beta = 0.0  # their weight; 0 is BYOL
    config.negatives.temperature = 0.1

    config.init = ConfigDict()  # what a new run starts from, instead of random weights: train/init_from.py
    config.init.state = ""  # a run, imported or ours: everything, step and momentum included
    config.init.encoder = (
        ""  # a run, an export, or torchvision weights: online encoder (and target)
    )
    config.init.target_encoder = ""  # likewise, for the target's encoder alone

    config.optimizer = ConfigDict()
    config.optimizer.name = "lars"  # or adamw, sgd
    # For a batch of 256; multiplied by batch_size / 256. Open: the optimiser's own default.
    config.optimizer.base_learning_rate = config_dict.placeholder(float)
    config.optimizer.weight_decay = config_dict.placeholder(float)
    config.optimizer.momentum = 0.9  # LARS and SGD
    config.optimizer.trust_coefficient = 1e-3  # LARS
    config.optimizer.clip = False  # LARS: adapt only steps that are too long (small data sets)
    config.optimizer.warmup_epochs = 10.0  # parts of an epoch are fine

    config.on_nonfinite = "stop"  # NaN or infinity in an update; or skip: leave that update out,
    config.max_skipped_updates = 10  # at most so many in a row
    config.log_every_steps = 50
    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 1000
    config.checkpoint.every_minutes = 30.0  # and after so many minutes without one (0: never)
    config.checkpoint.keep = 3  # the newest,
    config.checkpoint.keep_every_steps = 0  # those of each such step (0: none),
    config.checkpoint.keep_best = True  # and the best by kNN, where that is measured
    config.knn = ConfigDict()  # on held-out labels, while training
    config.knn.every_steps = 5000  # 0: never
    config.knn.train_examples = 10_000  # at most so many of each split
    config.knn.test_examples = 2_000
    config.health = ConfigDict()
    config.health.patience = 5  # bad readings in a row before a collapse is said
    config.health.stop_on_collapse = False
    return config.lock()


def set_policy(config: ConfigDict, policy: image_augment.Policy) -> None:
    """Writes one of the named policies of `views` into the tree."""
    config.views.view1.update(dataclasses.asdict(policy.view1))
    config.views.view2.update(dataclasses.asdict(policy.view2))
    config.views.mean = policy.mean
    config.views.std = policy.std


def resolve(config: ConfigDict) -> tuple[ConfigDict, list[str]]:
    """A copy with nothing left open, and warnings in words.

    Raises:
      UserError: a value that cannot work; the text names the key.
    """
    config = config.copy_and_resolve_references()
    _check_types(config)
    for key, allowed in CHOICES.items():
        if get(config, key) not in allowed:
            names = ", ".join(str(name) for name in allowed)
            raise UserError(f"config.{key}={get(config, key)!r} is not one of {names}.")
    for key, (low, high) in RANGES.items():
        value = get(config, key)
        high = MAX_FINITE if high == INFINITY else high
        if value is not None and not low <= value <= high:
            bounds = f"at least {low:g}" + (f" and at most {high:g}" if not value < low else "")
            raise UserError(f"config.{key}={value} must be {bounds}.")
    for low, high in ASCENDING:
        if get(config, low) > get(config, high):
            raise UserError(
                f"config.{high}={get(config, high)} must be at least config.{low}="
                f"{get(config, low)}."
            )
    if not config.data.source:
        raise UserError(
            "config.data.source is empty: say where the images are, such as "
            "--config.data.source=folder:PATH or tfds:NAME."
        )
    smallest, _ = RANGES["batch_size"]
    if config.batch_size % config.accum_steps or micro_batch_size(config) < smallest:
        raise UserError(
            f"config.accum_steps={config.accum_steps} must divide config.batch_size="
            f"{config.batch_size} into micro-batches of {smallest} images or more."
        )
    if (config.epochs > 0) == (config.steps > 0):
        raise UserError(
            f"config.epochs={config.epochs} and config.steps={config.steps}: set one of them to "
            "the length of the run and the other to 0, such as --config.epochs=0 "
            "--config.steps=100 (with --config.optimizer.warmup_epochs=0 for a run that short)."
        )
    for key in ("mean", "std"):
        values = config.views[key]
        in_range = all(0 <= v <= 1 and (v > 0 or key == "mean") for v in values)
        if len(values) != config.data.channels or not in_range:
            raise UserError(
                f"config.views.{key}={tuple(values)}: give {config.data.channels} number(s) "
                "between 0 and 1, one for each of config.data.channels, such as "
                f"--config.views.{key}={','.join(['0.5'] * config.data.channels)}."
            )
    _check_encoder(config)
    _leave_out(config)
    if config.heads.predictor_hidden_size is None:
        config.heads.predictor_hidden_size = config.heads.hidden_size
    if config.init.state and (config.init.encoder or config.init.target_encoder):
        raise UserError(
            "config.init.state brings a whole state: leave config.init.encoder and "
            "config.init.target_encoder empty, or leave out the state."
        )
    if config.init.target_encoder and not config.target_network:
        raise UserError("config.init.target_encoder needs config.target_network=True.")
    for key, value in OPTIMIZER_DEFAULTS[config.optimizer.name].items():
        if config.optimizer[key] is None:
            config.optimizer[key] = value
    warnings = []
    rate = config.optimizer.base_learning_rate
    if config.optimizer.name == "adamw" and rate > LARGEST_SENSIBLE_ADAMW_RATE:
        warnings.append(
            f"warning: config.optimizer.base_learning_rate={rate:g} looks like a rate for LARS; "
            f"{OPTIMIZER_DEFAULTS['adamw']['base_learning_rate']:g} is usual under AdamW."
        )
    return config, warnings


def _check_encoder(config: ConfigDict) -> None:
    """Raises UserError where there would be no channel, or not one number for each stage."""
    chosen, own = config.encoder, models.ENCODERS[config.encoder.name]()
    stages = tuple(chosen.stage_channels)
    if stages and (len(stages) != len(own.stage_sizes) or any(n != round(n) for n in stages)):
        raise UserError(
            f"config.encoder.stage_channels={stages} must be {len(own.stage_sizes)} whole numbers, "
            f"one for each stage of {chosen.name}, or () for its own."
        )
    fewest = min(chosen.stem_channels or own.stem_channels, *(stages or own.stage_channels))
    if round(fewest * chosen.width_multiplier) < 1:
        raise UserError(
            f"config.encoder.width_multiplier={chosen.width_multiplier:g} leaves no channel."
        )


def _leave_out(config: ConfigDict) -> None:
    """Writes what `without` means into the keys that it stands for."""
    for part in filter(None, config.disable_augmentations.replace(" ", "").split(",")):
        if part not in AUGMENTATION_ABLATIONS:
            raise UserError(f"config.disable_augmentations={part!r} is not one of {', '.join(AUGMENTATION_ABLATIONS)}.")
        for key, value in AUGMENTATION_ABLATIONS[part].items():
            for view in ("view1", "view2") if "*" in key else ("",):
                parent, _, leaf = key.replace("*", view).rpartition(".")
                get(config, parent)[leaf] = value
        if part == "asymmetry":
            view1, view2 = config.views.view1, config.views.view2
            for key in view1:
                view1[key] = view2[key] = (view1[key] + view2[key]) / 2


def get(config: ConfigDict, key: str) -> Any:
    """The value at a dotted key."""
    for part in key.split("."):
        config = config[part]
    return config


def _check_types(config: ConfigDict, prefix: str = "") -> None:
    """Raises UserError where a leaf is of another type than in `default()`."""
    for key, usual in (get(default(), prefix[:-1]) if prefix else default()).items():
        value = config[key]
        if isinstance(usual, ConfigDict):
            _check_types(value, f"{prefix}{key}.")
            continue
        if isinstance(usual, tuple):
            wrong = [
                v for v in ([None] if value is None else value) if not isinstance(v, int | float)
            ]
        elif usual is None:  # open until resolved: a number, or nothing
            wrong = [] if value is None or isinstance(value, int | float) else [value]
        else:
            number = int | float if isinstance(usual, float) else type(usual)
            is_bool = isinstance(value, bool) != isinstance(usual, bool)
            wrong = [value] if is_bool or not isinstance(value, number) else []
        if wrong:
            kind = "numbers" if isinstance(usual, tuple) else type(usual or 0.0).__name__
            raise UserError(f"config.{prefix}{key}={value!r} must be of type {kind}.")


def total_steps(config: ConfigDict, steps_per_epoch: int) -> int:
    """Updates in the whole run."""
    return config.steps or config.epochs * steps_per_epoch


def warmup_steps(config: ConfigDict, steps_per_epoch: int) -> int:
    """Updates until the learning rate is at its peak."""
    return round(config.optimizer.warmup_epochs * steps_per_epoch)


def micro_batch_size(config: ConfigDict) -> int:
    """Images that are in the networks at a time, over all devices."""
    return config.batch_size // config.accum_steps


def learning_rate_peak(config: ConfigDict) -> float:
    """base_learning_rate * batch_size / 256 (section 3.3)."""
    return config.optimizer.base_learning_rate * config.batch_size / 256
