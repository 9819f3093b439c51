"""The nearest rows of a set of features, by cosine similarity: exact, in bounded memory."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.errors import ConfigError, DataError
from byol_jax.evaluate.features import check_features, unit_rows

QUERIES = 1024  # rows that are compared at a time,
KEYS = 2**15  # with as many of the others: 128 MiB of similarities
FEW = 16  # queries up to which sending the keys to the device takes longer than comparing them


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
    search = _on_host if len(queries) <= FEW else _on_device
    indices, similarities = search(queries, keys, wanted)
    indices = indices.astype(np.int32)
    if exclude_same_row:
        indices, similarities = _without_same_row(indices, similarities)
    return indices, similarities


def _on_host(queries: np.ndarray, keys: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best k keys of a few queries."""
    queries, best = unit_rows(queries), None
    for first in range(0, len(keys), KEYS):
        chunk = keys[first : first + KEYS]
        norms = np.sqrt(np.einsum("nd,nd->n", chunk, chunk))
        similarities = queries @ chunk.T / np.where(norms > 0, norms, 1)
        count = min(k, len(chunk))
        least = np.partition(similarities, -count, axis=1)[:, -count]
        indices = np.empty((len(queries), count), np.int64)
        for row, of_query in enumerate(similarities):
            candidates = np.flatnonzero(of_query >= least[row])
            order = np.argsort(-of_query[candidates], kind="stable")[:count]
            indices[row] = candidates[order]
        found = np.take_along_axis(similarities, indices, axis=1)
        best = _better(best, indices + first, found, k)
    return best


def _on_device(queries: np.ndarray, keys: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best k keys of many queries."""
    rows, columns = min(QUERIES, len(queries)), min(KEYS, len(keys))
    best: list[tuple[np.ndarray, np.ndarray] | None] = [None] * -(-len(queries) // rows)
    # Keys are the outer loop: they are many, and each chunk is scaled and sent once.
    for first, chunk in chunks(keys, columns):
        some, count = _unit_rows(chunk), min(columns, len(keys) - first)
        for start, asked in chunks(queries, rows):
            indices, similarities = map(
                np.asarray, _top(_unit_rows(asked), some, count, min(k, columns))
            )
            part = start // rows
            best[part] = _better(best[part], indices + first, similarities, k)
    indices, similarities = (np.concatenate(x)[: len(queries)] for x in zip(*best, strict=True))
    return indices, similarities


def chunks(features: np.ndarray, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """The number of a first row, and as many rows from it on; the last may be zeros."""
    for start in range(0, len(features), rows):
        chunk = features[start : start + rows]
        if len(chunk) < rows:  # the last one: another shape would compile again
            chunk = np.pad(chunk, ((0, rows - len(chunk)), (0, 0)))
        yield start, chunk


def _better(
    best: tuple[np.ndarray, np.ndarray] | None,
    indices: np.ndarray,
    similarities: np.ndarray,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The best k of what was found before and of these, which have higher indices."""
    if best is None:
        return indices, similarities
    indices = np.concatenate([best[0], indices], axis=1)
    similarities = np.concatenate([best[1], similarities], axis=1)
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(similarities, order, 1)


@jax.jit
def _unit_rows(features):
    norms = jnp.linalg.norm(features, axis=1, keepdims=True)
    return features / jnp.where(norms > 0, norms, 1)


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
