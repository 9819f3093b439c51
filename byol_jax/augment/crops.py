"""The geometric half of a view: random boxes, flips and bicubic resizing.

`random_boxes` and `central_box` run in JAX, TensorFlow and NumPy alike. `resized_crop` is for
images of one size: a crop with its resizing is two small matrix products, one for rows and one for
columns, and a flip reverses the second matrix, so no shape depends on the box. data/crop.py
resizes images of any size on the host, with TensorFlow.

References: "Inception" crops, Szegedy et al. 2015, arXiv:1409.4842; byol/utils/dataset.py of
google-deepmind/deepmind-research (`clip`); torchvision's RandomResizedCrop (`retry`); Keys 1981,
"Cubic convolution interpolation" (a = -1/2).
"""

from math import log
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from byol_jax.errors import ConfigError

# TensorFlow's ResizeBicubic tabulates the cubic at this many points between two pixels.
STEPS_BETWEEN_PIXELS = 1024


class Crop(NamedTuple):
    """The distribution of a training view's box; the authors' by default.

    Attributes:
      area: smallest and largest fraction of the image's area, drawn uniformly; within (0, 1].
      ratio: smallest and largest width / height, drawn uniformly in the logarithm; above 0.
      flip: the probability of a horizontal flip; within [0, 1].
      fit: what happens to a box larger than the image. "clip" cuts it off at the image, as the
        authors do; "retry" draws again, up to ten times, as torchvision does.
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    fit: str = "clip"

    @property
    def attempts(self) -> int:
        """How many pairs of area and ratio are drawn for a view."""
        return 1 if self.fit == "clip" else 10

    @property
    def draws(self) -> int:
        """Uniform numbers per view: area and ratio of each attempt, two for the corner, a flip."""
        return 2 * self.attempts + 3


class LocalViews(NamedTuple):
    """Small views beside the two global ones: multi-crop (arXiv 2006.09882, section 3.4).

    Attributes:
      count: how many.
      size: height and width.
      crop: the distribution of their boxes in the image.
    """

    count: int
    size: int
    crop: Crop


def check_crop(crop: Crop) -> None:
    """Raises ConfigError if there is no such distribution."""
    if not 0 < crop.area[0] <= crop.area[1] <= 1:
        raise ConfigError(f"the area of a crop must lie within (0, 1], ascending, not {crop.area}.")
    if not 0 < crop.ratio[0] <= crop.ratio[1]:
        raise ConfigError(f"the ratio of a crop must be above 0, ascending, not {crop.ratio}.")
    if not 0 <= crop.flip <= 1:
        raise ConfigError(f"the probability of a flip must lie within [0, 1], not {crop.flip}.")
    if crop.fit not in ("clip", "retry"):
        raise ConfigError(f"the fit of a crop must be clip or retry, not {crop.fit!r}.")


def check_size(image_size: int) -> None:
    """Raises ConfigError if no view can have this height and width."""
    if image_size < 1:
        raise ConfigError(f"the image size must be at least 1, not {image_size}.")


def random_views(
    image: jax.Array, size: int, crop: Crop, key: jax.Array, count: int = 2
) -> jax.Array:
    """Independent random views of one image, a function of `key` alone.

    Args:
      image: uint8 (H, W, C).
      size: height and width S of a view.
      crop: the distribution of boxes and flips.
      key: a PRNG key for these views alone.
      count: how many views.

    Returns:
      Uint8 (count, S, S, C).
    """
    uniform = jax.random.uniform(key, (count, crop.draws))
    boxes = random_boxes(uniform[:, :-1], jnp.array(image.shape[:2], jnp.float32), crop)
    flips = uniform[:, -1] < crop.flip
    return jax.vmap(lambda box, flip: resized_crop(image, box, flip, size))(boxes, flips)


def random_boxes(uniform: Any, image_shape: Any, crop: Crop, xp: ModuleType = jnp) -> Any:
    """Boxes of random area, aspect ratio and position.

    With `fit="retry"` the first attempt that fits into the image is taken; if none fits, the
    largest central box whose ratio is within `crop.ratio`.

    Args:
      uniform: float32 (n, crop.draws - 1), uniform in [0, 1).
      image_shape: float32 (2,): height and width.
      crop: the distribution.
      xp: the module that computes: jax.numpy, tensorflow or numpy.

    Returns:
      float32 (n, 4), whole numbers: top, left, height, width.
    """
    height, width = image_shape[0], image_shape[1]
    low, high = crop.ratio
    area = height * width * _between(*crop.area, uniform[:, : crop.attempts])
    ratio = _between(log(low), log(high), uniform[:, crop.attempts : 2 * crop.attempts])
    ratio = xp.exp(ratio)
    # From here on the last axis is height, then width.
    sizes = xp.round(xp.sqrt(xp.stack([area / ratio, area * ratio], -1)))
    if crop.fit == "clip":
        size, found = xp.minimum(xp.maximum(sizes[:, 0], 1), image_shape), True
    else:
        fits = (sizes >= 1) & (sizes <= image_shape)
        fits = fits[..., :1] & fits[..., 1:]
        size = xp.stack([xp.minimum(height, width / low), xp.minimum(width, height * high)])
        size, found = xp.maximum(xp.round(size), 1), False
        attempts = zip(xp.unstack(sizes, axis=1), xp.unstack(fits, axis=1), strict=True)
        for attempt, fit in reversed(list(attempts)):  # so that the first that fits is kept
            size, found = xp.where(fit, attempt, size), found | fit
    margin = image_shape - size
    corner = xp.minimum(xp.floor(uniform[:, 2 * crop.attempts :] * (margin + 1)), margin)
    corner = xp.where(found, corner, xp.floor(margin / 2))
    return xp.concat([corner, size], axis=1)


def central_box(image_shape: Any, fraction: float, xp: ModuleType = jnp) -> Any:
    """The box of the evaluation view: the central square, to the pixel that of the authors.

    Args:
      image_shape: float32 (2,): height and width.
      fraction: side of the square as a fraction of the shorter side of the image; within (0, 1].
      xp: the module that computes: jax.numpy, tensorflow or numpy.

    Returns:
      float32 (4,), whole numbers: top, left, height, width.
    """
    side = xp.floor(fraction * xp.minimum(image_shape[0], image_shape[1]))
    side = xp.maximum(side, 1)
    corner = xp.floor((image_shape - side + 1) / 2)
    return xp.concat([corner, xp.stack([side, side])], axis=0)


def resized_crop(image: jax.Array, box: jax.Array, flip: jax.Array, size: int) -> jax.Array:
    """A box of an image, resized by bicubic interpolation without antialiasing, perhaps flipped.

    Equal to TensorFlow's ResizeBicubic of the box alone, with half-pixel centres: pixels outside
    the box have no weight. The result overshoots, and is clipped and rounded.

    Args:
      image: uint8 (H, W, C).
      box: float32 (4,): top, left, height, width.
      flip: bool (): whether to exchange left and right.
      size: height and width S of the result.

    Returns:
      Uint8 (S, S, C).
    """
    height, width, _ = image.shape
    rows = bicubic_matrix(box[0], box[2], height, size)
    columns = bicubic_matrix(box[1], box[3], width, size)
    columns = jnp.where(flip, columns[::-1], columns)
    pixels = image.astype(jnp.float32)
    exact = jax.lax.Precision.HIGHEST
    pixels = jnp.einsum("yh,hwc->ywc", rows, pixels, precision=exact)
    pixels = jnp.einsum("xw,ywc->yxc", columns, pixels, precision=exact)
    return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)


def bicubic_matrix(start: Any, length: Any, full: int, size: int, xp: ModuleType = jnp) -> Any:
    """Weights of `full` pixels in each of `size`, resizing `length` of them from `start` on.

    Args:
      start: float32 (), a whole number: the first pixel of the interval to resize.
      length: float32 (), a whole number: how many pixels the interval has.
      full: how many pixels there are in all.
      size: how many pixels to make of the interval.
      xp: the module that computes: jax.numpy or numpy.

    Returns:
      float32 (size, full); rows sum to one.
    """
    centre = (xp.arange(size, dtype=xp.float32) + 0.5) * (length / size) - 0.5
    before = xp.floor(centre)
    between = xp.round((centre - before) * STEPS_BETWEEN_PIXELS) / STEPS_BETWEEN_PIXELS
    pixel = xp.arange(full, dtype=xp.float32) - start
    distance = xp.abs(pixel - (before + between)[:, None])
    weight = xp.where(
        distance <= 1,
        (1.5 * distance - 2.5) * distance**2 + 1,
        ((-0.5 * distance + 2.5) * distance - 4) * distance + 2,
    )
    inside = (pixel >= 0) & (pixel < length) & (distance < 2)
    weight = xp.where(inside, weight, 0)
    return weight / xp.sum(weight, 1, keepdims=True)


def _between(low: float, high: float, uniform: Any) -> Any:
    return low + (high - low) * uniform
