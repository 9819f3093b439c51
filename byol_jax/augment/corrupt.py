"""Noise, erased blocks and masked patches: the last changes of a view.

None of them is in the paper, and each is off by default. They come before normalisation, so that
noise and fills are pixel values in 0..1; filled with the mean, a pixel is 0 after it. Each takes
one float32 image (channels, height, width) in 0..1.

References: Zhong et al. 2017, "Random Erasing Data Augmentation", arXiv:1708.04896, algorithm 1;
Xie et al. 2021, "SimMIM", arXiv:2111.09886, section 3.2 (patches).
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from byol_jax.augment import crops

FILLS = ("mean", "zero", "noise")
# What the key of a view is folded with, so that no operation changes the draws of another.
NOISE_OR_NOT, NOISE, BLOCK, PATCHES, FILL = range(2**31 + 1, 2**31 + 6)


@dataclasses.dataclass(frozen=True)
class Corruption:
    """Probabilities and strengths."""

    noise_prob: float = 0.0
    noise_std: float = 0.1  # of values in 0..1
    erase_prob: float = 0.0
    erase_area_min: float = 0.02  # share of the image; uniform
    erase_area_max: float = 0.4
    erase_ratio_min: float = 0.3  # width / height; uniform in the logarithm, as in torchvision
    erase_ratio_max: float = 1 / 0.3
    mask_share: float = 0.0  # of the patches; round(share * patches) are masked in every view
    mask_patch_size: int = 4  # pixels: height and width of a patch
    fill: str = "mean"  # of erased and masked pixels; or zero, or noise: uniform, for each pixel


def patch_grid(height: int, width: int, patch: int) -> tuple[int, int]:
    """Rows and columns of patches; those at the lower and right edge may be cut off."""
    return -(-height // patch), -(-width // patch)


def masked_patches(height: int, width: int, patch: int, share: float) -> int:
    """How many patches of an image are masked."""
    rows, columns = patch_grid(height, width, patch)
    return round(share * rows * columns)


def block(box: jax.Array, height: int, width: int) -> jax.Array:
    """The pixels of a box.

    Args:
      box: (4,): top, left, height, width.
      height: of the image.
      width: of the image.

    Returns:
      Bool (height, width).
    """
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
    inside_rows = (rows >= box[0]) & (rows < box[0] + box[2])
    return inside_rows & (columns >= box[1]) & (columns < box[1] + box[3])


def patch_mask(uniform: jax.Array, height: int, width: int, patch: int, share: float) -> jax.Array:
    """The pixels of the patches with the smallest numbers, `masked_patches` of them exactly.

    Args:
      uniform: (patches,), one number for each of `patch_grid`, row by row.
      height: of the image.
      width: of the image.
      patch: height and width of a patch.
      share: of the patches; within [0, 1].

    Returns:
      Bool (height, width).
    """
    ranks = jnp.argsort(jnp.argsort(uniform))
    chosen = ranks < masked_patches(height, width, patch, share)
    chosen = chosen.reshape(patch_grid(height, width, patch))
    return chosen.repeat(patch, 0).repeat(patch, 1)[:height, :width]


def corrupt(
    config: Corruption, key: jax.Array, image: jax.Array, mean: Sequence[float]
) -> jax.Array:
    """Applies what `config` asks for; with nothing on, not a single operation.

    A block that does not fit into the image is cut off at its size; algorithm 1 draws again.

    Args:
      config: probabilities and strengths.
      key: the PRNG key of the view.
      image: float32 (channels, height, width) in 0..1.
      mean: of each channel: fills erased and masked pixels with `fill="mean"`.

    Returns:
      Float32 (channels, height, width) in 0..1.
    """
    _, height, width = image.shape

    def draw(data: int, *shape: int) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, data), shape)

    if config.noise_prob > 0:
        noise = jax.random.normal(jax.random.fold_in(key, NOISE), image.shape)
        std = jnp.where(draw(NOISE_OR_NOT) < config.noise_prob, config.noise_std, 0)
        image = jnp.clip(image + std * noise, 0, 1)
    if not config.erase_prob and not config.mask_share:
        return image
    covered = jnp.zeros((height, width), bool)
    if config.erase_prob > 0:
        area = (config.erase_area_min, config.erase_area_max)
        box = crops.Crop(area, (config.erase_ratio_min, config.erase_ratio_max), fit="clip")
        uniform = draw(BLOCK, box.draws)  # the last one, a crop's flip, decides whether to erase
        size = jnp.array([height, width], jnp.float32)
        erased = block(crops.random_boxes(uniform[None, :-1], size, box)[0], height, width)
        covered |= erased & (uniform[-1] < config.erase_prob)
    if config.mask_share > 0:
        rows, columns = patch_grid(height, width, config.mask_patch_size)
        uniform = draw(PATCHES, rows * columns)
        covered |= patch_mask(uniform, height, width, config.mask_patch_size, config.mask_share)
    if config.fill == "noise":
        fill = draw(FILL, *image.shape)
    else:
        fill = {"mean": jnp.array(mean, jnp.float32)[:, None, None], "zero": 0.0}[config.fill]
    return jnp.where(covered, fill, image)
