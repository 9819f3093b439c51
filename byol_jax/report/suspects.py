"""Images that deserve a look: near-duplicates, test images that were trained on, and outliers."""

from typing import NamedTuple

import numpy as np

from byol_jax.evaluate.neighbours import nearest

ALIKE = 0.85  # least cosine of whitened features: few pairs of different photographs reach it
OF_EACH = 10  # nearest neighbours that are compared
MOST = 200  # pairs in a list
OUTLIERS, OF_NEAREST = 48, 10


class Pair(NamedTuple):
    """Two images that are nearly the same."""

    first: int
    second: int
    similarity: float  # cosine of their whitened features


def duplicates(rows: np.ndarray) -> list[Pair]:
    """Pairs of images of one set that are nearly the same.

    Args:
      rows: float32 (n, d), of `byol_jax.evaluate.duplicates.whitening`.

    Returns:
      At most MOST pairs, each once, the lower index first; the most similar pair first.
    """
    found, similarities = nearest(rows, rows, OF_EACH, exclude_same_row=True)
    first, place = np.nonzero(similarities >= ALIKE)
    second, similarities = found[first, place], similarities[first, place]
    ends = np.stack([np.minimum(first, second), np.maximum(first, second)])
    ends, once = np.unique(ends, axis=1, return_index=True)
    return _sorted(*ends, similarities[once])


def leaks(test_rows: np.ndarray, rows: np.ndarray) -> list[Pair]:
    """Test images that are nearly the same as an image of another set.

    Args:
      test_rows: float32 (m, d), whitened as the others are.
      rows: float32 (n, d).

    Returns:
      At most MOST pairs of a test image and the other image that is nearest to it; the most similar
      pair first.
    """
    found, similarities = (x[:, 0] for x in nearest(test_rows, rows, 1))
    first = np.flatnonzero(similarities >= ALIKE)
    return _sorted(first, found[first], similarities[first])


def outliers(similarities: np.ndarray) -> list[tuple[int, float]]:
    """The images that are least similar to their nearest 10, with the mean of these similarities.

    Args:
      similarities: float (n, k), to the nearest other images, the largest first.
    """
    means = similarities[:, :OF_NEAREST].mean(axis=1)
    order = np.argsort(means, kind="stable")[: min(OUTLIERS, len(means) // 10)]
    return [(int(index), float(means[index])) for index in order]


def _sorted(first: np.ndarray, second: np.ndarray, similarities: np.ndarray) -> list[Pair]:
    order = np.lexsort((second, first, -similarities))[:MOST]
    columns = (x[order].tolist() for x in (first, second, similarities))
    return [Pair(*pair) for pair in zip(*columns, strict=True)]
