"""How much a few labels are worth: ridge regression on a handful of images of each class."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from byol_jax.errors import ConfigError, DataError
from byol_jax.evaluate.features import check_splits

SHOTS = (1, 2, 5, 10, 25)
STRENGTHS = tuple(10.0**power for power in range(-3, 4))


def few_shot(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    num_classes: int,
    shots: Sequence[int] = SHOTS,
    draws: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy of a classifier that has seen k images of each class.

    Many times k training images of each class are drawn. A ridge regression, which has a closed
    form, predicts 1 for an image's class and -1 for the others; its strength is that of `STRENGTHS`
    with the smallest leave-one-out error on the k images of each class, for features that are
    centred and scaled to a mean square of 1 by those images.

    Args:
      train_features: (n, d) float32, finite.
      train_labels: (n,) integers in [0, num_classes).
      test_features: (m, d) float32, finite.
      test_labels: (m,) integers in [0, num_classes).
      num_classes: number of classes, >= 2.
      shots: numbers k of images of each class; those that a class does not have are left out.
      draws: for each k.
      seed: of the draws.

    Returns:
      'top1': the mean over draws of the accuracy, with the largest k; 'shots': that k;
      'top1_by_shots': {k: {'mean', 'std' (over draws), 'draws'}}.

    Raises:
      DataError: features or labels do not have these shapes or values, or a class has no image.
      ConfigError: a number is below 1.
    """
    from sklearn.linear_model import RidgeClassifierCV  # late: its import takes a second

    if not shots or min(*shots, draws) < 1:
        raise ConfigError(
            f"shots={tuple(shots)} and draws={draws}: give one number of images or more, and "
            "numbers of at least 1."
        )
    train_features, train_labels, test_features, test_labels = check_splits(
        train_features, train_labels, test_features, test_labels, num_classes
    )
    if num_classes < 2:
        raise DataError("few_shot needs two classes or more: name images of several classes.")
    rows_by_class = [np.flatnonzero(train_labels == label) for label in range(num_classes)]
    smallest = min(map(len, rows_by_class))
    if not smallest:
        missing = [len(rows) for rows in rows_by_class].index(0)
        raise DataError(
            f"few_shot needs a training image of every class, but class {missing} has none: add "
            "some, or leave the class out of both splits."
        )
    result = {}
    for shot in sorted(k for k in set(shots) if k <= smallest) or [smallest]:
        rng = np.random.default_rng([seed, shot])
        accuracies = []
        for _ in range(draws):
            rows = np.concatenate([rng.choice(r, shot, replace=False) for r in rows_by_class])
            drawn = train_features[rows]
            # Instead of features, which are many, strengths are scaled; the intercept centres.
            scale = np.mean((drawn - drawn.mean(axis=0)) ** 2) or 1.0
            classifier = RidgeClassifierCV(alphas=np.multiply(STRENGTHS, scale))
            classifier.fit(drawn, train_labels[rows])
            accuracies.append(np.mean(classifier.predict(test_features) == test_labels))
        result[shot] = {
            "mean": float(np.mean(accuracies)),
            "std": float(np.std(accuracies)),
            "draws": draws,
        }
    most = max(result)
    return {"top1": result[most]["mean"], "shots": most, "top1_by_shots": result}
