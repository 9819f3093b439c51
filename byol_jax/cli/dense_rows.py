"""Linear segmentation of the maps of several encoders."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from byol_jax import evaluate
from byol_jax.cli.encoders import Row
from byol_jax.data.masks import open_masked


def segment(
    rows: dict[str, Row],
    images: str,
    masks: str,
    splits: Sequence[str],
    *,
    channels: int,
    unlabelled: Sequence[int],
    size: int | None,
    log: Callable[[str], None],
) -> tuple[dict[str, dict[str, Any]], tuple[int, int]]:
    """The results of `evaluate.dense` by encoder, and the numbers of training and test images.

    Args:
      rows: encoders; those without a network, such as raw pixels, are left out.
      images: a folder with SPLIT/NAME.jpg.
      masks: a folder with SPLIT/NAME.png.
      splits: to fit on, and to test on.
      channels: of the images.
      unlabelled: numbers of a mask that stand for no class.
      size: pixels that images are resized to; None: those that each encoder was trained at.
      log: called with lines of text.

    Raises:
      UserError: as of `open_masked` and `evaluate.dense`.
    """

    @functools.cache  # encoders of one image size share the images
    def masked(split: str, pixels: int) -> tuple[np.ndarray, list[np.ndarray]]:
        return open_masked(
            images, masks, split, size=pixels, channels=channels, unlabelled=unlabelled
        )

    found, counts = {}, (0, 0)
    for name, row in rows.items():
        if row.encoder is None:
            continue
        parts: list[Any] = []
        for split in splits:
            pixels, mask = masked(split, size or row.view.image_size)
            parts += [row.encoder.embed_dense(pixels), mask]
        log(f"dense: {parts[0].shape} and {parts[2].shape} maps of {name}")
        found[name], counts = evaluate.dense(*parts), (len(parts[1]), len(parts[3]))
    return found, counts
