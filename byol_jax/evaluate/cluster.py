"""Whether classes can be found without labels: k-means on frozen features."""

from typing import Any

import numpy as np

from byol_jax.evaluate import kmeans
from byol_jax.evaluate.features import check_splits, unit_rows


def cluster(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    num_classes: int,
    starts: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares clusters of the features with the classes.

    k-means finds as many clusters as there are classes in the training features, each scaled to
    length 1 (k-means++ starts, the best of several; in mini-batches with 100,000 rows or more).
    Test features go to the nearest centre. Labels are compared afterwards.

    Args:
      train_features: (n, d) float32, finite.
      train_labels: (n,) integers in [0, num_classes); they are not used.
      test_features: (m, d) float32, finite.
      test_labels: (m,) integers in [0, num_classes).
      num_classes: number of classes and clusters, >= 1.
      starts: of k-means.
      seed: of the starts.

    Returns:
      'top1': accuracy in [0, 1] after the best matching of clusters and classes; 'nmi': normalised
      mutual information, 0 to 1 (arithmetic mean of the entropies); 'ari': adjusted Rand index, 1
      for equal partitions, about 0 for random ones.

    Raises:
      DataError: features or labels do not have these shapes or values.
    """
    # Late: their import takes a second.
    from scipy.optimize import linear_sum_assignment
    from sklearn import metrics

    train_features, _, test_features, test_labels = check_splits(
        train_features, train_labels, test_features, test_labels, num_classes
    )
    train, test = unit_rows(train_features), unit_rows(test_features)
    model = kmeans.fit(train, min(num_classes, len(train)), starts=starts, seed=seed)
    found = model.predict(test)
    table = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(table, (test_labels, found), 1)
    matched = table[linear_sum_assignment(table, maximize=True)].sum()
    return {
        "top1": float(matched / len(test)),
        "nmi": float(metrics.normalized_mutual_info_score(test_labels, found)),
        "ari": float(metrics.adjusted_rand_score(test_labels, found)),
    }
