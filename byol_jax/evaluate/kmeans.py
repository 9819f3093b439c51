"""k-means of features, by scikit-learn."""

import warnings
from typing import Any

import numpy as np

MANY = 100_000  # rows from which on k-means sees a part of them at a time


def fit(rows: np.ndarray, clusters: int, *, starts: int, seed: int) -> Any:
    """A fitted KMeans, or MiniBatchKMeans of many rows.

    Args:
      rows: float (n, d).
      clusters: how many, at most n. With fewer different rows, some are empty.
      starts: of which the best counts, each by k-means++.
      seed: of the starts.
    """
    # Late: their import takes a second.
    from sklearn import cluster
    from sklearn.exceptions import ConvergenceWarning

    kind = cluster.KMeans if len(rows) < MANY else cluster.MiniBatchKMeans
    with warnings.catch_warnings():  # fewer different rows than clusters: collapsed features
        warnings.simplefilter("ignore", ConvergenceWarning)
        return kind(clusters, n_init=starts, random_state=seed).fit(rows)
