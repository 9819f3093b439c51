"""Changes of where pixels are: vertical flips, quarter turns, rotation, pad-and-crop.

They come after the crop of crops.py, which has the horizontal flip, and before the photometric
operations. None of them is in the paper, and each is off by default. Each takes one float32 image
(channels, height, width).
"""

import dataclasses

import jax
import jax.numpy as jnp

PAD_MODES = {"zero": "constant", "reflect": "reflect"}  # and their names in jnp.pad
GEOMETRY = 2**31  # what the key of a view is folded with


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Probabilities and strengths."""

    vertical_flip_prob: float = 0.0
    quarter_turn_prob: float = 0.0  # of a turn by 90, 180 or 270 degrees, equally likely
    rotation_prob: float = 0.0
    rotation_degrees: float = 30.0  # uniform in -d..d
    pad: int = 0  # pixels on each side, before a random crop of the original size
    pad_mode: str = "zero"  # or reflect, without repeating the edge


def quarter_turns(image: jax.Array, turns: jax.Array) -> jax.Array:
    """Turns a square image counter-clockwise.

    Args:
      image: (channels, size, size).
      turns: int32 (), how often by 90 degrees; within 0..3.

    Raises:
      ValueError: height and width differ.
    """
    if image.shape[1] != image.shape[2]:
        raise ValueError(f"quarter turns are for square images, not {image.shape[1:]}.")
    # A transpose and two flips make every turn.
    image = jnp.where(turns % 2 == 1, image.swapaxes(1, 2), image)
    image = jnp.where((turns == 1) | (turns == 2), image[:, ::-1], image)
    return jnp.where(turns >= 2, image[:, :, ::-1], image)


def rotate(image: jax.Array, degrees: jax.Array) -> jax.Array:
    """Turns an image counter-clockwise about its centre, by bilinear interpolation.

    Beyond the edge are zeros, as in torchvision's RandomRotation by default (whose interpolation
    then is that of the nearest pixel).

    Args:
      image: (channels, height, width).
      degrees: float32 ().
    """
    channels, height, width = image.shape
    angle = jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y = jnp.arange(height)[:, None] - (height - 1) / 2
    x = jnp.arange(width) - (width - 1) / 2
    # Where each pixel comes from, in the image with a border of zeros.
    from_y = jnp.clip(sin * x + cos * y + (height + 1) / 2, 0, height + 1)
    from_x = jnp.clip(cos * x - sin * y + (width + 1) / 2, 0, width + 1)
    top, left = jnp.floor(from_y), jnp.floor(from_x)
    down, right = from_y - top, from_x - left
    # On a CPU these gathers take a fiftieth of the time of products with weights.
    pixels = jnp.pad(image, ((0, 0), (1, 2), (1, 2))).reshape(channels, -1)
    across = width + 3
    corner = top.astype(jnp.int32) * across + left.astype(jnp.int32)
    upper = (1 - right) * pixels[:, corner] + right * pixels[:, corner + 1]
    lower = (1 - right) * pixels[:, corner + across] + right * pixels[:, corner + across + 1]
    return (1 - down) * upper + down * lower


def pad_and_crop(image: jax.Array, corner: jax.Array, pad: int, mode: str) -> jax.Array:
    """A box of the original size from a padded image.

    Args:
      image: (channels, height, width).
      corner: int32 (2,): top and left of the box in the padded image; within 0..2 * pad.
      pad: pixels on each side.
      mode: of `PAD_MODES`.
    """
    padded = jnp.pad(image, ((0, 0), (pad, pad), (pad, pad)), PAD_MODES[mode])
    return jax.lax.dynamic_slice(padded, (0, corner[0], corner[1]), image.shape)


def change_geometry(config: Geometry, key: jax.Array, image: jax.Array) -> jax.Array:
    """Applies what `config` asks for; with nothing on, not a single operation.

    Args:
      config: probabilities and strengths.
      key: the PRNG key of the view.
      image: float32 (channels, height, width), square for quarter turns.
    """
    probs = (config.vertical_flip_prob, config.quarter_turn_prob, config.rotation_prob)
    if not any(probs) and not config.pad:
        return image
    uniform = jax.random.uniform(jax.random.fold_in(key, GEOMETRY), (7,))
    flip_u, turn_u, turns_u, rotate_u, angle_u = uniform[:5]
    if config.vertical_flip_prob > 0:
        image = jnp.where(flip_u < config.vertical_flip_prob, image[:, ::-1], image)
    if config.quarter_turn_prob > 0:
        turns = 1 + jnp.floor(3 * turns_u).astype(jnp.int32)
        image = quarter_turns(image, jnp.where(turn_u < config.quarter_turn_prob, turns, 0))
    if config.rotation_prob > 0:
        degrees = (2 * angle_u - 1) * config.rotation_degrees
        # By 0 degrees an image stays as it is, to the bit.
        image = rotate(image, jnp.where(rotate_u < config.rotation_prob, degrees, 0))
    if config.pad > 0:
        corner = jnp.floor(uniform[5:] * (2 * config.pad + 1)).astype(jnp.int32)
        image = pad_and_crop(image, corner, config.pad, config.pad_mode)
    return image
