"""Images that deserve a look: near-duplicates, test images that were trained on, and outliers."""

from typing import NamedTuple

import numpy as np

from byol_jax.evaluate import duplicates

ALIKE = 0.9  # least cosine of whitened features: few pairs of different photographs reach it
MOST = 200  # pairs in a list
OUTLIERS, OF_NEAREST = 48, 10


class Pair(NamedTuple):
    """Two images that are nearly the same."""

    first: int
    second: int
    similarity: float  # cosine of their whitened features


def near_duplicates(rows: np.ndarray) -> list[Pair]:
    """Pairs of images of one set that are nearly the same.

    Args:
      rows: float32 (n, d), of `duplicates.whitening`.

    Returns:
      At most MOST pairs, the lower index first; the most similar pair first.

    Raises:
      DataError: nearly all images are.
    """
    return _sorted(*duplicates.pairs(rows, ALIKE))


def leaks(test_rows: np.ndarray, rows: np.ndarray) -> list[Pair]:
    """Test images that are nearly the same as an image of another set.

    Args:
      test_rows: float32 (m, d), whitened as the others are.
      rows: float32 (n, d), of the other set.

    Returns:
      At most MOST pairs of a test image and the other image that is most similar to it; the most
      similar pair first.

    Raises:
      DataError: as `near_duplicates`.
    """
    pairs, similarities = duplicates.pairs(test_rows, ALIKE, rows)
    order = np.lexsort((-similarities, pairs[:, 0]))
    _, nearest = np.unique(pairs[order, 0], return_index=True)
    return _sorted(pairs[order[nearest]], similarities[order[nearest]])


def outliers(similarities: np.ndarray) -> list[tuple[int, float]]:
    """The images that are least similar to their nearest 10, with the mean of these similarities.

    Args:
      similarities: float (n, k), to the nearest other images, the largest first.
    """
    means = similarities[:, :OF_NEAREST].mean(axis=1)
    order = np.argsort(means, kind="stable")[: min(OUTLIERS, len(means) // 10)]
    return [(int(index), float(means[index])) for index in order]


def _sorted(pairs: np.ndarray, similarities: np.ndarray) -> list[Pair]:
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -similarities))[:MOST]
    rows = zip(pairs[order].tolist(), similarities[order].tolist(), strict=True)
    return [Pair(first, second, similarity) for (first, second), similarity in rows]
