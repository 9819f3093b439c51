"""Images with a mask each: a class for every pixel, for `evaluate --protocol=dense`."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from byol_jax.errors import ConfigError, DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class Masked(NamedTuple):
    """A split of images with masks."""

    images: np.ndarray  # uint8 (n, size, size, channels): the complete images, resized to squares
    masks: list[np.ndarray]  # int32 (height, width), of the masks' own sizes; -1: not labelled


def open_masked(
    images: str,
    masks: str,
    split: str,
    *,
    size: int,
    channels: int,
    unlabelled: Sequence[int] = (255,),
) -> Masked:
    """Reads the images of a folder that have a mask in another.

    Args:
      images: IMAGES/SPLIT/NAME.jpg (or .png, .webp, .bmp).
      masks: MASKS/SPLIT/NAME.png, of one channel or with a palette; a pixel is the number of its
        class.
      split: which split.
      size: height and width of the images.
      channels: 3 for colour, 1 for gray.
      unlabelled: numbers that stand for no class.

    Raises:
      ConfigError: another number of channels.
      DataError: a folder is missing, no image has a mask, or one of them cannot be read.
    """
    if channels not in (1, 3):
        raise ConfigError(f"--protocol=dense reads images of 1 or 3 channels, not of {channels}.")
    folders = [Path(root).expanduser() / split for root in (images, masks)]
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}: put the split {split!r} there.")
    pairs = []
    for path in sorted(folders[0].iterdir()):
        mask = folders[1] / f"{path.stem}.png"
        if path.suffix.lower() in SUFFIXES and mask.is_file():
            pairs.append((path, mask))
    if not pairs:
        raise DataError(f"no image of {folders[0]} has a mask of its name (.png) in {folders[1]}.")
    found = [(_image(path, size, channels), _mask(mask, unlabelled)) for path, mask in pairs]
    return Masked(np.stack([image for image, _ in found]), [mask for _, mask in found])


def _image(path: Path, size: int, channels: int) -> np.ndarray:
    image = _open(path).convert("RGB" if channels == 3 else "L")
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    return pixels.reshape(size, size, channels)


def _mask(path: Path, unlabelled: Sequence[int]) -> np.ndarray:
    image = _open(path)
    if image.mode not in ("L", "P", "1", "I", "I;16"):
        raise DataError(
            f"{path} is no mask: it has the channels {image.mode}, and a mask has one number for "
            "each pixel."
        )
    mask = np.asarray(image).astype(np.int32)
    return np.where(np.isin(mask, unlabelled), -1, mask)


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    return image
