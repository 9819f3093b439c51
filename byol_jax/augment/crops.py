"""The geometric half of a view: its distribution; and, on the device, for images of one size.

input/crops.py draws and cuts the same on the host, where images have many sizes. Here all have one,
so a crop with its bicubic resizing is two small matrix products, one for rows and one for columns,
and a mirror image is the second matrix upside down: no shape depends on the box.

References: Keys 1981, "Cubic convolution interpolation" (a = -1/2); "Inception" crops, Szegedy et
al. 2015, arXiv:1409.4842; their ten attempts and their fallback follow torchvision's.
"""

from math import log
from typing import NamedTuple

import jax
import jax.numpy as jnp

from byol_jax.errors import UserError

# TensorFlow's resizing knows the cubic at so many places between two pixels.
STEPS_BETWEEN_PIXELS = 1024

ATTEMPTS = 10
# Uniform numbers that a view takes: area and ratio of each attempt, two for where, one to flip.
DRAWS = 2 * ATTEMPTS + 3


class Crop(NamedTuple):
    """The distribution of a training view's box.

    Attributes:
      area: smallest and largest share of the image's area, uniform in between; within (0, 1].
      ratio: smallest and largest width / height, uniform in its logarithm; above 0.
      flip: the probability of a mirror image; within [0, 1].
      fit: what becomes of a box that does not fit into the image, "clip" or "retry".
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    fit: str = "retry"


def check_crop(crop: Crop) -> None:
    """Raises UserError if there is no such distribution."""
    if not 0 < crop.area[0] <= crop.area[1] <= 1:
        raise UserError(f"the area of a crop must lie within (0, 1], ascending, not {crop.area}.")
    if not 0 < crop.ratio[0] <= crop.ratio[1]:
        raise UserError(f"the ratio of a crop must be above 0, ascending, not {crop.ratio}.")
    if not 0 <= crop.flip <= 1:
        raise UserError(f"the probability of a flip must lie within [0, 1], not {crop.flip}.")


def check_size(image_size: int) -> None:
    """Raises UserError if no view has this height and width."""
    if image_size < 1:
        raise UserError(f"the image size must be at least 1, not {image_size}.")


def random_views(image: jax.Array, size: int, crop: Crop, key: jax.Array) -> jax.Array:
    """Two independent random views of one image, a function of `key` alone.

    Args:
      image: uint8 (H, W, C).
      size: height and width S of a view.
      crop: the distribution of boxes and flips.
      key: a PRNG key for this image alone.

    Returns:
      Uint8 (2, S, S, C).
    """
    uniform = jax.random.uniform(key, (2, DRAWS))
    boxes = random_boxes(uniform[:, :-1], image.shape[:2], crop)
    flips = uniform[:, -1] < crop.flip
    return jax.vmap(lambda box, flip: resized_crop(image, box, flip, size))(boxes, flips)


def random_boxes(uniform: jax.Array, image_shape: tuple[int, int], crop: Crop) -> jax.Array:
    """Boxes of random area, aspect ratio and place.

    The first of ATTEMPTS draws of area and ratio that fits into the image counts. If none fits, the
    box is the largest central one whose ratio is within `crop.ratio`.

    Args:
      uniform: float32 (n, DRAWS - 1), uniform in [0, 1).
      image_shape: height and width.
      crop: the distribution.

    Returns:
      float32 (n, 4), whole numbers: top, left, height, width.
    """
    height, width = image_shape
    low, high = crop.ratio
    area = height * width * _between(*crop.area, uniform[:, :ATTEMPTS])
    ratio = jnp.exp(_between(log(low), log(high), uniform[:, ATTEMPTS : 2 * ATTEMPTS]))
    # Height first, width second, in the last axis of everything that follows.
    sizes = jnp.round(jnp.sqrt(jnp.stack([area / ratio, area * ratio], -1)))
    limits = jnp.array([height, width], jnp.float32)
    fits = jnp.all((sizes >= 1) & (sizes <= limits), -1)
    fallback = jnp.array([min(height, width / low), min(width, height * high)], jnp.float32)
    found = jnp.any(fits, 1)[:, None]
    first = jnp.take_along_axis(sizes, jnp.argmax(fits, 1)[:, None, None], 1)[:, 0]
    size = jnp.where(found, first, jnp.maximum(jnp.round(fallback), 1))
    margin = limits - size
    anywhere = jnp.floor(uniform[:, 2 * ATTEMPTS :] * (margin + 1))
    corner = jnp.where(found, jnp.minimum(anywhere, margin), jnp.floor(margin / 2))
    return jnp.concatenate([corner, size], 1)


def central_box(image_shape: tuple[int, int], fraction: float) -> jax.Array:
    """The box of the evaluation view: the central square.

    Args:
      image_shape: height and width.
      fraction: side of the square as a share of the shorter one; within (0, 1].

    Returns:
      float32 (4,): top, left, height, width.
    """
    height, width = image_shape
    side = max(round(fraction * min(height, width)), 1)
    return jnp.array([(height - side) // 2, (width - side) // 2, side, side], jnp.float32)


def resized_crop(image: jax.Array, box: jax.Array, flip: jax.Array, size: int) -> jax.Array:
    """A box of an image, resized by bicubic interpolation without antialiasing, perhaps mirrored.

    Equal to TensorFlow's ResizeBicubic of the box alone, with half-pixel centres: what lies outside
    of the box counts nothing. It overshoots, and is clipped and rounded.

    Args:
      image: uint8 (H, W, C).
      box: float32 (4,): top, left, height, width.
      flip: bool (): whether left and right change places.
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


def bicubic_matrix(start: jax.Array, length: jax.Array, full: int, size: int) -> jax.Array:
    """What each of `size` pixels takes of each of `full`, resizing those from `start` on.

    Args:
      start: float32 (), a whole number: the first pixel of the stretch.
      length: float32 (), a whole number: how many pixels it has.
      full: how many pixels there are, the stretch among them.
      size: how many pixels to make of the stretch.

    Returns:
      float32 (size, full); rows sum to one.
    """
    centre = (jnp.arange(size) + 0.5) * (length / size) - 0.5
    before = jnp.floor(centre)
    between = jnp.round((centre - before) * STEPS_BETWEEN_PIXELS) / STEPS_BETWEEN_PIXELS
    pixel = jnp.arange(full) - start
    distance = jnp.abs(pixel - (before + between)[:, None])
    weight = jnp.where(
        distance <= 1,
        (1.5 * distance - 2.5) * distance**2 + 1,
        ((-0.5 * distance + 2.5) * distance - 4) * distance + 2,
    )
    inside = (pixel >= 0) & (pixel < length) & (distance < 2)
    weight = jnp.where(inside, weight, 0)
    return weight / jnp.sum(weight, 1, keepdims=True)


def _between(low: float, high: float, uniform: jax.Array) -> jax.Array:
    return low + (high - low) * uniform
