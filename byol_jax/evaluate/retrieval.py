"""Whether the nearest images are of the same class."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from byol_jax.errors import ConfigError, DataError
from byol_jax.evaluate.features import check_splits, unit_rows

QUERIES = 10_000  # at most: each is compared with all others
SIMILARITIES = 2**24  # held at once, in arrays of 8 bytes a number at most


def retrieval(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    num_classes: int,
    ks: Sequence[int] = (1, 5, 10),
    seed: int = 0,
) -> dict[str, Any]:
    """Searches the test images for others of the same class, by cosine similarity.

    Each test image is a query, and all other test images are ranked; of equal similarities the
    earlier image is first. Training images are not used, as is usual for retrieval (arXiv
    1511.06452, section 4). Images without another of their class are no queries.

    Args:
      train_features: not used; (n, d) float32 as for other protocols.
      train_labels: not used.
      test_features: (m, d) float32, finite.
      test_labels: (m,) integers in [0, num_classes).
      num_classes: number of classes, >= 1.
      ks: numbers of images that are looked at, each >= 1.
      seed: of the choice of queries, where there are more than 10,000.

    Returns:
      'recall': {k: share of the queries with an image of their class among the first k};
      'top1': the recall of the first; 'map': mean average precision, over all ranks; all in [0, 1];
      'queries': their number.

    Raises:
      DataError: features or labels do not have these shapes or values, or no class has two images.
      ConfigError: a k is below 1.
    """
    if not ks or min(ks) < 1:
        raise ConfigError(f"ks={tuple(ks)}: give one number or more, each at least 1.")
    _, _, features, labels = check_splits(
        train_features, train_labels, test_features, test_labels, num_classes
    )
    features = unit_rows(features)
    queries = np.flatnonzero(np.bincount(labels, minlength=num_classes)[labels] > 1)
    if not len(queries):
        raise DataError(
            "retrieval needs a class with two test images or more: name another test split."
        )
    if len(queries) > QUERIES:
        queries = np.sort(np.random.default_rng(seed).choice(queries, QUERIES, replace=False))
    first_hits, precisions = [], []
    step = max(1, SIMILARITIES // len(features))
    for start in range(0, len(queries), step):
        rows = queries[start : start + step]
        similarities = features[rows] @ features.T
        similarities[np.arange(len(rows)), rows] = -np.inf  # the query itself, last
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :-1]
        is_hit = labels[order] == labels[rows, None]
        first_hits.append(is_hit.argmax(axis=1))
        ranks = np.arange(1, is_hit.shape[1] + 1)
        precision = is_hit.cumsum(axis=1) / ranks
        precisions.append((precision * is_hit).sum(axis=1) / is_hit.sum(axis=1))
    first_hit = np.concatenate(first_hits)
    recall = {int(k): float(np.mean(first_hit < k)) for k in ks}
    return {
        "top1": float(np.mean(first_hit < 1)),
        "recall": recall,
        "map": float(np.mean(np.concatenate(precisions))),
        "queries": len(queries),
    }
