"""Clusters of features: their most typical images and, with labels, how pure they are."""

from typing import NamedTuple

import numpy as np

from byol_jax.evaluate import kmeans
from byol_jax.evaluate.features import unit_rows
from byol_jax.report import threads

MOST = 30  # clusters: more than a person looks at
TYPICAL = 16  # images that are shown of each


class Group(NamedTuple):
    """A cluster."""

    size: int
    typical: list[int]  # images, the nearest to the centre first
    label: int | None  # the most frequent one; None without labels
    purity: float | None  # the share of images that have it


def number(count: int, num_classes: int | None) -> int:
    """How many clusters of so many images: as many as classes, or 12 without labels; at most 30."""
    return max(1, min(num_classes or 12, MOST, count // 2))


def assign(features: np.ndarray, clusters: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of the directions of features by k-means, the largest first.

    Args:
      features: float (n, d).
      clusters: how many, at most n.
      seed: of k-means.

    Returns:
      int32 (n,), the cluster of each image; and float32 (n,), its distance to the centre.
    """
    rows = unit_rows(features)
    with threads.limited(len(rows)):
        model = kmeans.fit(rows, clusters, starts=3, seed=seed)
    order = np.argsort(-np.bincount(model.labels_, minlength=clusters), kind="stable")
    rank = np.empty(clusters, np.int32)
    rank[order] = np.arange(clusters)
    distances = np.linalg.norm(rows - model.cluster_centers_[model.labels_], axis=1)
    return rank[model.labels_], distances.astype(np.float32)


def describe(clusters: np.ndarray, distances: np.ndarray, labels: np.ndarray | None) -> list[Group]:
    """The clusters of `assign`, which are not empty; labels are integers (n,) from 0, or None."""
    found = []
    for cluster in range(int(clusters.max()) + 1):
        members = np.flatnonzero(clusters == cluster)
        if not len(members):
            continue
        nearest = members[np.argsort(distances[members], kind="stable")[:TYPICAL]]
        label = purity = None
        if labels is not None:
            counts = np.bincount(labels[members])
            label, purity = int(counts.argmax()), float(counts.max() / len(members))
        found.append(Group(len(members), nearest.tolist(), label, purity))
    return found
