"""The photometric half of a view: colour jitter, gray, blur, solarize, then normalisation.

Section 3.3 and appendix B of the paper. crops.py has the geometric half. Each operation takes one
float32 image (channels, height, width) in 0..1 (channels first: planes of pixels vectorise, triples
of channels do not) and equals the authors' code before their clipping to 0..1, which `jitter` and
`view` do here. Images of other than three channels skip saturation, hue and gray, which are of
colours. `view` also applies what is not in the paper, if asked to: geometry.py before these
operations, corrupt.py after them.

Random amounts depend on the key alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from byol_jax.augment.corrupt import Corruption, corrupt
from byol_jax.augment.geometry import Geometry, change_geometry

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
LUMA = (0.2989, 0.5870, 0.1140)  # ITU-R BT.601, as rounded by the authors
FUNCTION = 2**31 + 6  # what the key of a view is folded with, after those of geometry and corrupt


@dataclasses.dataclass(frozen=True)
class View(Geometry, Corruption):
    """Probabilities and strengths for one of the two views (table 6 of the paper).

    The inherited ones, of geometry.py and corrupt.py, are off by default.
    """

    jitter_prob: float = 0.8  # of jittering at all; the four then come in random order
    brightness: float = 0.4  # added: uniform in -b..b
    contrast: float = 0.4  # factor about each channel's mean: uniform in 1-c..1+c
    saturation: float = 0.2  # factor in HSV: uniform in 1-s..1+s
    hue: float = 0.1  # turn in HSV, of a full circle: uniform in -h..h
    gray_prob: float = 0.2
    blur_prob: float = 1.0
    blur_sigma_min: float = 0.1
    blur_sigma_max: float = 2.0
    blur_divider: float = 10.0  # the kernel is this fraction of the image high and wide
    solarize_prob: float = 0.0
    solarize_threshold: float = 0.5


@dataclasses.dataclass(frozen=True)
class Policy:
    """Both views, and the mean and standard deviation (per channel) to normalise with.

    A policy is the `augment` of a `byol.Learner`, and its `preprocess` is the learner's.
    `function`, if there is one, takes a PRNG key and a view, float32 (height, width, channels) in
    0..1, after all other operations and before normalisation, and returns another such view.
    """

    view1: View
    view2: View
    mean: tuple[float, ...]
    std: tuple[float, ...]
    function: Callable[[jax.Array, jax.Array], jax.Array] | None = None

    def __call__(
        self, key: jax.Array, crops: jax.Array | dict[str, jax.Array]
    ) -> tuple[jax.Array, ...]:
        """The views of one image, augmented and normalised.

        Args:
          key: a PRNG key for this image alone.
          crops: uint8 (2, height, width, channels), a crop for each view; or a dictionary of these
            as "global", and of "local" ones, (n, size, size, channels), which are augmented as view
            1 is.

        Returns:
          Arrays float32 (height, width, channels): view 1, view 2, then the local ones.
        """

        def one(config: View, index: int | jax.Array, crop: jax.Array) -> jax.Array:
            planes = jnp.moveaxis(crop.astype(jnp.float32) / 255, -1, 0)
            key_of_view = jax.random.fold_in(key, index)
            image = jnp.moveaxis(view(config, key_of_view, planes, self.mean), 0, -1)
            if self.function is not None:
                image = self.function(jax.random.fold_in(key_of_view, FUNCTION), image)
            return normalize(image, self.mean, self.std)

        pair, local = (crops["global"], crops["local"]) if isinstance(crops, dict) else (crops, [])
        views = [one(self.view1, 0, pair[0]), one(self.view2, 1, pair[1])]
        if len(local):  # mapped, as each view of its own would be compiled for itself
            views += [*jax.vmap(partial(one, self.view1))(2 + jnp.arange(len(local)), local)]
        return tuple(views)

    def preprocess(self, images: jax.Array) -> jax.Array:
        """Normalises uint8 images (..., height, width, channels) for the encoder: float32."""
        return normalize(images, self.mean, self.std)


IMAGENET = Policy(
    view1=View(blur_prob=1.0, solarize_prob=0.0),
    view2=View(blur_prob=0.1, solarize_prob=0.2),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
# Images of 32 pixels are not blurred, as in SimCLR (arXiv 2002.05709, appendix B.9).
CIFAR10 = Policy(
    view1=View(blur_prob=0.0, solarize_prob=0.0),
    view2=View(blur_prob=0.0, solarize_prob=0.2),
    mean=CIFAR10_MEAN,
    std=CIFAR10_STD,
)


def adjust_brightness(image: jax.Array, delta: jax.Array) -> jax.Array:
    """image + delta."""
    return image + delta


def adjust_contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales about the mean of each channel."""
    mean = jnp.mean(image, axis=(1, 2), keepdims=True)
    return mean + factor * (image - mean)


def adjust_hue_and_saturation(image: jax.Array, turn: jax.Array, factor: jax.Array) -> jax.Array:
    """Turns the hue of HSV by `turn` of a full circle and scales the saturation (kept in 0..1).

    The two commute and have most of their work in common. A factor of 1 or a turn of 0 leaves one
    of them out. The image has three channels in 0..1, and stays there.
    """
    red, green, blue = image
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    # Hue in sixths of the circle, less 2 so that it lies in -3..3. It and the distance below are
    # multiplied by the chroma, which may be 0.
    hue = jnp.where(
        red == value,
        green - blue - 2 * chroma,
        jnp.where(green == value, blue - red, red - green + 2 * chroma),
    )
    sixths = 6 * (turn - jnp.round(turn))
    # A channel is the minimum on a third of the circle, the maximum on another, and linear between:
    # a function of the hue's distance around the circle from the middle of the first third.
    middle = jnp.array([1.0, 3.0, -1.0])[:, None, None]
    distance = jnp.abs(hue + (sixths - middle) * chroma)
    distance = jnp.minimum(distance, jnp.abs(distance - 6 * chroma))
    # value / chroma is the factor that makes the saturation 1.
    factor = jnp.clip(factor, 0, value / jnp.maximum(chroma, 1e-30))
    return value - factor * jnp.clip(2 * chroma - distance, 0, chroma)


def to_gray(image: jax.Array) -> jax.Array:
    """Luma in all three channels."""
    gray = sum(weight * channel for weight, channel in zip(LUMA, image, strict=True))
    return jnp.broadcast_to(gray, image.shape)


def blur(image: jax.Array, sigma: jax.Array, divider: float) -> jax.Array:
    """Gaussian blur, radius int(height / divider / 2), zeros beyond the edge.

    Separable, and written as sums of shifted images, which XLA fuses into one pass per direction. A
    convolution with another kernel for each image of a batch would be slow, and products with
    banded matrices take ten times the arithmetic.
    """
    _, height, width = image.shape
    radius = int(height / divider / 2)
    taps = jnp.exp(-(jnp.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    taps /= jnp.sum(taps)
    padded = jnp.pad(image, ((0, 0), (radius, radius), (radius, radius)))
    blurred = sum(tap * padded[:, y : y + height] for y, tap in enumerate(taps))
    return sum(tap * blurred[:, :, x : x + width] for x, tap in enumerate(taps))


def solarize(image: jax.Array, threshold: float) -> jax.Array:
    """Inverts what is at or above the threshold."""
    return jnp.where(image < threshold, image, 1 - image)


def jitter(image: jax.Array, amounts: jax.Array, order: jax.Array, config: View) -> jax.Array:
    """Brightness, contrast, saturation and hue in the given order, clipped to 0..1 after each.

    Args:
      image: float32 (channels, height, width) in 0..1.
      amounts: float32 (4,) in 0..1: the position of each strength within its range.
      order: float32 (4,): the operations are applied in ascending order of these.
      config: the ranges.
    """
    strengths = jnp.array([config.brightness, config.contrast, config.saturation, config.hue])
    brightness, contrast, saturation, hue = (2 * amounts - 1) * strengths
    brightness_rank, contrast_rank, saturation_rank, hue_rank = order
    in_color = image.shape[0] == 3 and (config.saturation > 0 or config.hue > 0)

    # Saturation and hue commute and stay in 0..1. So three steps contain every order: each changes
    # hue and saturation, then contrast and brightness. An operation happens at one step, after as
    # many steps as there are operations of brightness and contrast before it, and has no effect at
    # the other steps.
    steps = jnp.arange(3 if in_color else 2)

    def by_step(rank: jax.Array, amount: jax.Array) -> jax.Array:
        step = (rank > brightness_rank).astype(jnp.int32) + (rank > contrast_rank)
        return jnp.where(steps == step, amount, 0)

    deltas = by_step(brightness_rank, brightness)
    contrasts = 1 + by_step(contrast_rank, contrast)
    turns = by_step(hue_rank, hue)
    saturations = 1 + by_step(saturation_rank, saturation)

    def adjust(image: jax.Array, amounts: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        delta, contrast, turn, saturation = amounts
        if in_color:
            image = adjust_hue_and_saturation(image, turn, saturation)
        return jnp.clip(adjust_brightness(adjust_contrast(image, contrast), delta), 0, 1), None

    # A loop, as XLA keeps the result of a step; unrolled, it computed pixels again for every use.
    return jax.lax.scan(adjust, image, (deltas, contrasts, turns, saturations))[0]


def view(
    config: View, key: jax.Array, image: jax.Array, mean: Sequence[float] = (0.5,)
) -> jax.Array:
    """Augments one image; the result is in 0..1.

    Args:
      config: probabilities and strengths.
      key: a PRNG key for this image and view alone.
      image: float32 (channels, height, width) in 0..1.
      mean: of each channel: what `config.fill="mean"` fills with.
    """
    image = change_geometry(config, key, image)
    # All amounts at once: a threefry call costs more than the numbers it makes.
    u = jax.random.uniform(key, (13,))
    jitter_u, gray_u, blur_u, sigma_u, solarize_u = u[:5]
    if config.jitter_prob > 0:
        jittered = jitter(image, amounts=u[5:9], order=u[9:13], config=config)
        image = jnp.where(jitter_u < config.jitter_prob, jittered, image)
    if config.gray_prob > 0 and image.shape[0] == 3:
        image = jnp.where(gray_u < config.gray_prob, to_gray(image), image)
    if config.blur_prob > 0:
        low, high = config.blur_sigma_min, config.blur_sigma_max
        blurred = blur(image, low + (high - low) * sigma_u, config.blur_divider)
        image = jnp.where(blur_u < config.blur_prob, blurred, image)
    if config.solarize_prob > 0:
        solarized = solarize(image, config.solarize_threshold)
        image = jnp.where(solarize_u < config.solarize_prob, solarized, image)
    return corrupt(config, key, jnp.clip(image, 0, 1), mean)


def to_uint8(views: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Images 0..255 of normalised ones, (..., channels): the inverse of `normalize`, rounded."""
    images = views * jnp.array(std) + jnp.array(mean)
    return jnp.clip(jnp.round(255 * images), 0, 255).astype(jnp.uint8)


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(x - mean) / std for each channel, in float32.

    Args:
      images: (..., channels), uint8 in 0..255 or float in 0..1.
      mean: of each channel, for values in 0..1.
      std: of each channel, likewise.
    """
    scale = 255 if images.dtype == jnp.uint8 else 1
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) / scale - mean) / std
