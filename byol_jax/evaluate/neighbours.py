"""The nearest rows of a set of features, by cosine similarity: exact, in bounded memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.errors import ConfigError, DataError
from byol_jax.evaluate.features import check_features, unit_rows

QUERIES = 1024  # rows that are compared at a time,
KEYS = 2**15  # with as many of the others: 128 MiB of similarities


def nearest(
    queries: np.ndarray, keys: np.ndarray, k: int, *, exclude_same_row: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The k keys that are most similar to each query.

    Args:
      queries: (m, d) float32, finite; rows need not be normalised. A row of zeros has similarity 0
        to everything.
      keys: (n, d) float32, finite.
      k: how many, >= 1; at most n are returned, or n - 1 with `exclude_same_row`.
      exclude_same_row: key i is not a neighbour of query i, for queries that are the keys.

    Returns:
      Indices of keys, int32 (m, k), and cosine similarities, float32 (m, k), in descending order;
      of equal similarities the lower index is first.

    Raises:
      DataError: features do not have these shapes or values, or no key is left.
      ConfigError: k is below 1.
    """
    queries, keys = check_features("query", queries), check_features("key", keys)
    if queries.shape[1] != keys.shape[1]:
        raise DataError(
            f"queries have {queries.shape[1]} columns and keys {keys.shape[1]}: compute both with "
            "the same encoder."
        )
    if k < 1:
        raise ConfigError(f"k={k}: ask for one neighbour or more.")
    if len(keys) <= exclude_same_row:
        raise DataError("there is one row only, which has no neighbours: pass two or more.")
    wanted = min(k, len(keys) - exclude_same_row) + exclude_same_row
    rows, columns = min(QUERIES, len(queries)), min(KEYS, len(keys))
    parts = []
    for start in range(0, len(queries), rows):
        chunk = unit_rows(queries[start : start + rows])
        # The last chunk is padded to the common size: another shape would compile again.
        padded = np.pad(chunk, ((0, rows - len(chunk)), (0, 0)))
        found = _in_chunks(padded, keys, columns, wanted)
        parts.append([x[: len(chunk)] for x in found])
    indices, similarities = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if exclude_same_row:
        indices, similarities = _without_same_row(indices, similarities)
    return indices, similarities


def _in_chunks(
    queries: np.ndarray, keys: np.ndarray, columns: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best k of all keys, of which a chunk at a time is on the device."""
    best = None
    for start in range(0, len(keys), columns):
        chunk = unit_rows(keys[start : start + columns])
        padded = np.pad(chunk, ((0, columns - len(chunk)), (0, 0)))
        indices, similarities = map(np.asarray, _top(queries, padded, len(chunk), min(k, columns)))
        indices = indices + start
        if best is not None:
            indices = np.concatenate([best[0], indices], axis=1)
            similarities = np.concatenate([best[1], similarities], axis=1)
            order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
            indices = np.take_along_axis(indices, order, axis=1)
            similarities = np.take_along_axis(similarities, order, axis=1)
        best = indices, similarities
    return best[0].astype(np.int32), best[1]


@functools.partial(jax.jit, static_argnames="k")
def _top(queries, keys, count, k):
    """The best k of the first `count` keys; the padding behind them is last."""
    # Full float32: the TF32 a GPU would use exchanges neighbours.
    similarities = jnp.matmul(queries, keys.T, precision="highest")
    similarities = jnp.where(jnp.arange(len(keys)) < count, similarities, -jnp.inf)
    similarities, indices = jax.lax.top_k(similarities, k)
    return indices, similarities


def _without_same_row(
    indices: np.ndarray, similarities: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Drops row i from the neighbours of row i; the last where it is not among them."""
    is_other = indices != np.arange(len(indices))[:, None]
    is_other[is_other.all(axis=1), -1] = False
    shape = len(indices), indices.shape[1] - 1
    return indices[is_other].reshape(shape), similarities[is_other].reshape(shape)
