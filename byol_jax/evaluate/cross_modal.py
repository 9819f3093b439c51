"""Whether the nearest text of an image is its own, and the other way round."""

from math import comb
from typing import Any

import numpy as np

from byol_jax.errors import ConfigError, DataError
from byol_jax.evaluate.features import check_features, unit_rows

KS = (1, 5, 10)
SIMILARITIES = 2**22  # held at once, in a few arrays of 8 bytes a number


def cross_modal(
    queries: np.ndarray,
    gallery: np.ndarray,
    same_query: np.ndarray,
    same_gallery: np.ndarray,
    *,
    ks: tuple[int, ...] = KS,
) -> dict[str, Any]:
    """Searches the second parts of all examples for that of each first part, by cosine similarity.

    A partner is right if it is the query's own, is identical to that, or belongs to a query that is
    identical to this one. What is equally similar is in random order, of which the expected values
    are returned: so features that are all equal have the recall of chance.

    Args:
      queries: float (n, d), finite: one part of each example.
      gallery: float (n, d), finite: the other part.
      same_query: integers (n,), equal where the queries are identical.
      same_gallery: likewise of the gallery.
      ks: numbers of partners that are looked at, each >= 1.

    Returns:
      'recall': {k: share of the queries with a right partner among the first k}; 'top1', that of
      the first; 'median_rank' of the first right one, from 1; 'queries', n.

    Raises:
      DataError: the features do not have these shapes or values.
      ConfigError: a k is below 1.
    """
    queries, gallery = (
        unit_rows(check_features("test", x).astype(np.float64)) for x in (queries, gallery)
    )
    if queries.shape != gallery.shape:
        raise DataError(
            f"parts have features {queries.shape} and {gallery.shape}: give equal ones."
        )
    counts = []
    for rows in _blocks(len(queries)):
        # Rounded, because equal rows can differ in their last bits, and are ties nonetheless.
        similarities = np.round(queries[rows] @ gallery.T, 9)
        is_right = _is_right(rows, same_query, same_gallery)
        best = np.where(is_right, similarities, -np.inf).max(axis=1, keepdims=True)
        ties = similarities == best
        before = (similarities > best).sum(axis=1)  # none of which is right
        counts.append(
            np.stack([before, (ties & ~is_right).sum(axis=1), (ties & is_right).sum(axis=1)], 1)
        )
    return _result(np.concatenate(counts), ks)


def chance(
    same_query: np.ndarray, same_gallery: np.ndarray, *, ks: tuple[int, ...] = KS
) -> dict[str, Any]:
    """The result of a random order; arguments and result as of `cross_modal`."""
    counts = []
    for rows in _blocks(len(same_query)):
        right = _is_right(rows, same_query, same_gallery).sum(axis=1)
        wrong = len(same_query) - right
        counts.append(np.stack([np.zeros_like(right), wrong, right], axis=1))
    return _result(np.concatenate(counts), ks)


def _blocks(count: int) -> list[np.ndarray]:
    """Indices of queries that are compared at once."""
    step = max(1, SIMILARITIES // count)
    return [np.arange(start, min(start + step, count)) for start in range(0, count, step)]


def _is_right(rows: np.ndarray, same_query: np.ndarray, same_gallery: np.ndarray) -> np.ndarray:
    """Whether a partner is right for a query: bool (rows, n)."""
    return (same_query[rows, None] == same_query) | (same_gallery[rows, None] == same_gallery)


def _result(counts: np.ndarray, ks: tuple[int, ...]) -> dict[str, Any]:
    """Recalls and the median rank.

    Args:
      counts: integers (n, 3), for each query: how many are more similar than the first right
        partner; as similar, but wrong; as similar and right.
      ks: as of `cross_modal`.
    """
    if not ks or min(ks) < 1:
        raise ConfigError(f"ks={tuple(ks)}: give one number or more, each at least 1.")
    kinds, times = np.unique(counts, axis=0, return_counts=True)
    recall = {
        int(k): float(np.average([_share(k, *map(int, row)) for row in kinds], weights=times))
        for k in ks
    }
    before, wrong, right = counts.T
    # The expected place of the first of the right ones among all that are equal.
    ranks = before + (wrong + right + 1) / (right + 1)
    return {
        "top1": recall.get(1, recall[min(recall)]),
        "recall": recall,
        "median_rank": float(np.median(ranks)),
        "queries": len(counts),
    }


def _share(k: int, before: int, wrong: int, right: int) -> float:
    """The probability of a right partner among the first k."""
    places = min(k - before, wrong + right)
    return 1 - comb(wrong, places) / comb(wrong + right, places) if places > 0 else 0.0
