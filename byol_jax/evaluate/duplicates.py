"""Images that are nearly the same: pairs above a similarity, and the groups that they form.

Cosine similarities of raw features are crowded near 1: a few directions have most of the variance,
and they tell kinds of images apart, not images. So features are whitened first: centred, turned
into the principal directions, and divided by the standard deviation in each, to which a part of
the mean variance is added, for directions that the set has hardly seen. The fewer the images, the
larger that part, as with fewer images than directions whitening alone would separate any two.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.errors import DataError
from byol_jax.evaluate.features import check_features, unit_rows
from byol_jax.evaluate.neighbours import chunks

SHRINKAGE = 0.1  # of the mean variance, with as many images for each direction as
ENOUGH = 10
ROWS, COLUMNS = 1024, 2**15  # that are compared at a time: 128 MiB of similarities
MAX_PAIRS = 10_000_000
ROUNDING = 1e-5  # of a similarity; equal images must have one of 1


def whitening(features: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from features, (m, d) float32, to whitened rows of length 1, (m, d) float32.

    Args:
      features: (n, d) float32, finite, whose mean and covariance count.

    Raises:
      DataError: features do not have this shape or values, or all rows are the same.
    """
    features = check_features("image", features)
    mean = features.mean(axis=0, dtype=np.float64)
    centred = features - mean.astype(np.float32)
    covariance = np.float64(centred.T @ centred) / len(features)
    if np.trace(covariance) <= 1e-9 * max(mean @ mean, 1e-9):
        raise DataError(
            "the features of all images are the same: there is one image only, or copies of one, "
            "or the encoder has collapsed."
        )
    variances, directions = np.linalg.eigh(covariance)
    images, size = features.shape
    floor = SHRINKAGE * max(1, ENOUGH * size / images) * variances.mean()
    matrix = np.float32(directions / np.sqrt(np.maximum(variances, 0) + floor))
    return lambda rows: unit_rows((rows - mean.astype(np.float32)) @ matrix)


def pairs(
    rows: np.ndarray, threshold: float, against: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of rows with at least this cosine similarity.

    Args:
      rows: (n, d) float32 of length 1, as from `whitening`.
      threshold: in [-1, 1].
      against: (m, d) float32 of length 1. If given, pairs are of a row and one of these; otherwise
        of two rows, the lower first.

    Returns:
      Indices, int64 (p, 2), and similarities, float32 (p,).

    Raises:
      DataError: rows do not have these shapes or values, or there are more than 10 million pairs.
    """
    rows = check_features("image", rows)
    others = rows if against is None else check_features("other image", against)
    height, width = min(ROWS, len(rows)), min(COLUMNS, len(others))
    found = []
    total = 0
    for left, some in chunks(others, width):
        some = jax.device_put(some)
        last = min(len(rows), left + width) if against is None else len(rows)
        for top, asked in chunks(rows[:last], height):
            packed = np.asarray(_above(asked, some, threshold - ROUNDING))
            at = np.nonzero(packed)
            bits = np.unpackbits(packed[at][:, None], axis=1)
            which, bit = np.nonzero(bits)
            first, second = top + at[0][which], left + 8 * at[1][which] + bit
            keep = (first < len(rows)) & (second < len(others))  # the rest is padding
            if against is None:
                keep &= first < second
            total += keep.sum()
            if total > MAX_PAIRS:
                raise DataError(
                    f"more than {MAX_PAIRS} pairs have a similarity of {threshold:.4g}: choose a "
                    "higher threshold."
                )
            found.append(np.stack([first[keep], second[keep]], axis=1))
    indices = np.concatenate(found)
    indices = indices[np.lexsort((indices[:, 1], indices[:, 0]))]
    similarities = np.empty(len(indices), np.float32)
    for start in range(0, len(indices), COLUMNS):
        some = indices[start : start + COLUMNS]
        similarities[start : start + COLUMNS] = np.sum(
            rows[some[:, 0]] * others[some[:, 1]], axis=1
        )
    return indices, similarities


def groups(indices: np.ndarray, count: int) -> list[np.ndarray]:
    """The connected components of pairs that have two members or more.

    Args:
      indices: integers (p, 2), each in [0, count).
      count: of the images.

    Returns:
      Ascending indices of the images of each group; groups by their lowest index.
    """
    from scipy.sparse import coo_array  # late: its import takes a part of a second
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(indices), bool)
    graph = coo_array((ones, (indices[:, 0], indices[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted((part for part in parts if len(part) > 1), key=lambda part: part[0])


@jax.jit
def _above(rows, others, threshold):
    """Which similarities are at least the threshold, in bits: uint8 (n, ceil(m / 8))."""
    return jnp.packbits(jnp.matmul(rows, others.T, precision="highest") >= threshold, axis=1)
