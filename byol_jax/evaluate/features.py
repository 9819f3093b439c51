"""Features of a whole split, computed once and kept in memory."""

from collections.abc import Callable, Iterable

import numpy as np


def collect(
    embed: Callable[[np.ndarray], np.ndarray],
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Embeds every batch.

    Args:
      embed: uint8 (b, height, width, channels) -> float32 (b, d), such as `pixels`.
      batches: images and labels, int32 (b,).

    Returns:
      Features, float32 (n, d), and labels, int32 (n,).
    """
    rows = [(embed(images), labels) for images, labels in batches]
    features, labels = zip(*rows, strict=True)
    return np.concatenate(features), np.concatenate(labels)


def pixels(images: np.ndarray) -> np.ndarray:
    """The images themselves as features, in 0..1: what there is to know without any encoder."""
    return images.reshape(len(images), -1).astype(np.float32) / 255
