"""The settings of images: defaults, limits, what depends on others, and what cannot work."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from byol_jax import models
from byol_jax.augment import corrupt, geometry
from byol_jax.augment import image as image_augment
from byol_jax.data.open import FILES
from byol_jax.errors import ConfigError
from byol_jax.runs import tree
from byol_jax.runs.limits import MAX_FINITE, MIN_POSITIVE, limit

UNKNOWN_SOURCE = "unknown"  # data.source of an encoder that does not name its data
CHOICES = {
    "crop.fit": ("clip", "retry"),
    "views.*.pad_mode": tuple(geometry.PAD_MODES),
    "views.*.fill": corrupt.FILLS,
    "data.placement": ("auto", "host", "device"),
}
AT_LEAST = {
    **limit(1, "data.image_size data.channels crop.local_size"),
    **limit(MIN_POSITIVE, "crop.area_min crop.area_max crop.ratio_min crop.ratio_max"),
    **limit(MIN_POSITIVE, "crop.local_area_min crop.local_area_max crop.test_fraction"),
    **limit(MIN_POSITIVE, "views.*.blur_sigma_min views.*.blur_sigma_max views.*.blur_divider"),
    **limit(MIN_POSITIVE, "views.*.erase_area_min views.*.erase_area_max"),
    **limit(MIN_POSITIVE, "views.*.erase_ratio_min views.*.erase_ratio_max"),
    **limit(1, "views.*.mask_patch_size augment.adversarial_iterations"),
}
AT_MOST = {
    **limit(2**16, "data.image_size"),
    **limit(1024, "data.channels"),
    **limit(1, "crop.area_min crop.area_max crop.test_fraction"),
    **limit(1, "crop.local_area_min crop.local_area_max"),
    **limit(100, "crop.local_views"),  # each takes time to compile
    **limit(1, "views.*.erase_area_min views.*.erase_area_max views.*.mask_share"),
    **limit(180, "views.*.rotation_degrees"),
    **limit(100, "augment.adversarial_iterations"),  # each takes time to compile
}
# Where runs from before a key existed did not behave as its default today.
TEST_FRACTION = 0.875
BEFORE_THE_KEY = {"crop.fit": "retry"}
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


def add(config: ConfigDict) -> None:
    """Adds the settings of images, with their defaults: those of the paper for ImageNet."""
    config.data.dir = ""  # where TFDS keeps its data; empty: its own default
    config.data.image_size = 224
    config.data.channels = 3  # 1: gray; any other number: of TIFF files and npz:
    # Of image files of more than 8 bits, LOW,HIGH: the values that become 0 and 255. Empty:
    # the range of their type. docs/images.md
    config.data.value_range = ()
    # Where crops are computed: host, device (which then keeps all images), or auto: the device, for
    # arrays of up to 1 GB. Host and device draw different crops of the same distribution.
    config.data.placement = "auto"
    config.data.service = ""  # grpc://HOST:PORT of a tf.data service that decodes and crops

    add_views(config)
    # Multi-crop (arXiv 2006.09882): small views beside the two, for the online network alone.
    config.crop.local_views = 0  # how many
    config.crop.local_size = 96  # pixels: height and width
    config.crop.local_area_min = 0.05  # share of the image
    config.crop.local_area_max = 0.14
    config.crop.test_fraction = TEST_FRACTION  # centre crop in evaluation, of the shorter side

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


def add_views(config: ConfigDict) -> None:
    """Adds the settings of views that images and frames of video share."""
    config.crop = ConfigDict()  # the geometric half of a view
    config.crop.area_min = 0.08  # share of the image
    config.crop.area_max = 1.0
    config.crop.ratio_min = 3 / 4  # width / height
    config.crop.ratio_max = 4 / 3
    config.crop.flip_prob = 0.5
    # A box that does not fit into the image: clip it (the authors' code), or retry up to ten times
    # (torchvision).
    config.crop.fit = "clip"
    # The photometric half, and what is off by default: the fields of image_augment.Policy. mean and
    # std are those of each channel, for values in 0..1; of images, one number for all channels, or
    # none: from a sample of the training data.
    config.views = ConfigDict(_fields(image_augment.IMAGENET))


def set_policy(config: ConfigDict, policy: image_augment.Policy) -> None:
    """Writes a photometric policy, such as `image_augment.CIFAR10`, into a config."""
    config.views.update(_fields(policy))


def _fields(policy: image_augment.Policy) -> dict[str, Any]:
    """What `config.views` holds; `config.augment.function` names a function, if there is one."""
    return {k: v for k, v in dataclasses.asdict(policy).items() if k != "function"}


def resolve(config: ConfigDict) -> None:
    """Fills in what `config.disable_augmentations` stands for; raises ConfigError."""
    for key in ("mean", "std"):
        if config.views[key] == ("",):  # as --config.views.mean= is read
            config.views[key] = ()
        if len(config.views[key]) == 1:
            config.views[key] = config.views[key] * config.data.channels
    check_moments(config, config.data.channels, may_be_open=True)
    _check_value_range(config)
    _disable_augmentations(config)


def check_moments(config: ConfigDict, channels: int, may_be_open: bool = False) -> None:
    """Raises ConfigError for means and standard deviations that do not fit the channels.

    Where `may_be_open`, none at all are from the data.
    """
    for key in ("mean", "std"):
        if may_be_open and not config.views[key]:
            continue
        values, low = config.views[key], MIN_POSITIVE if key == "std" else 0
        in_range = all(isinstance(v, int | float) and low <= v <= 1 for v in values)
        from_data = ", or those of the data by --config.views.mean= --config.views.std="
        if len(values) != channels or not in_range:
            raise ConfigError(
                f"config.views.{key}={tuple(values)}: give {channels} number(s) between 0 and 1, "
                "one for each channel, such as "
                f"--config.views.{key}={','.join(['0.5'] * channels)}{from_data * may_be_open}."
            )


def _check_value_range(config: ConfigDict) -> None:
    """Raises ConfigError unless it is empty, or two numbers that ascend."""
    given = tuple(config.data.value_range)
    are_numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in given)
    in_order = len(given) == 2 and are_numbers and -MAX_FINITE <= given[0] < given[1] <= MAX_FINITE
    if given and not in_order:
        raise ConfigError(
            f"config.data.value_range={given}: give two numbers, the lower one first, such as "
            "--config.data.value_range=0,4095."
        )
    source = config.data.source
    if given and not source.startswith((*FILES, UNKNOWN_SOURCE)):  # an export does not name it
        raise ConfigError(
            f"config.data.value_range={given} is for image files of more than 8 bits ("
            f"{', '.join(FILES)}), not for config.data.source={source}: leave it out."
        )


def check(config: ConfigDict, encoder: nn.Module) -> None:
    """Raises ConfigError for settings that do not fit each other."""
    check_views(config, config.data.image_size, "data.image_size")
    if config.crop.local_views:
        _check_local_views(config, encoder)
        check_views(config, config.crop.local_size, "crop.local_size")


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
        models.variable_shapes(
            encoder, jax.ShapeDtypeStruct((1, side, side, config.data.channels), jnp.float32)
        )
        for side in (size, of_image)
    ]
    if shapes[0] != shapes[1]:  # as of a convnet, or of learned positions
        raise ConfigError(
            f"{given} differs from config.data.image_size={of_image}, but the parameters of "
            f"config.encoder.name={config.encoder.name} as it is set depend on the size: choose "
            "equal sizes, or another encoder."
        )


def check_decode_size(config: ConfigDict) -> None:
    """Raises ConfigError if images are decoded to fewer pixels than views have."""
    if config.data.decode_size < config.data.image_size:
        raise ConfigError(
            f"config.data.decode_size={config.data.decode_size} must be at least "
            f"config.data.image_size={config.data.image_size}."
        )


def check_views(
    config: ConfigDict, size: int, size_key: str, names: Sequence[str] = ("view1", "view2")
) -> None:
    """Raises ConfigError for settings of the views of these names that do not fit a size."""
    for name in names:
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
                tree.put(config, key.replace("*", view), value)
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
