"""Logistic regression of images that have several labels each: one classifier for each class.

As `logistic`, with the sum over classes of the binary cross-entropy as its loss, and the mean
average precision of PASCAL VOC 2007 as its metric (Everingham et al. 2010, section 4.2), as in
BYOL's transfer experiments (arXiv 2006.07733, the appendix on transfer).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from byol_jax.errors import DataError
from byol_jax.evaluate.features import check_features
from byol_jax.evaluate.logistic import L2_STRENGTHS, choose_and_score

RECALLS = np.linspace(0, 1, 11)  # at which VOC 2007 measures the precision


def multi_label(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    l2: Sequence[float] = L2_STRENGTHS,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> dict[str, Any]:
    """Mean average precision of logistic regressions, their common L2 strength chosen as there.

    Args:
      train_features: (n, d) float32, finite, n >= 2.
      train_labels: (n, classes) bool: which classes an image has; none and several are possible.
      test_features: (m, d) float32, finite.
      test_labels: (m, classes) bool; of each class at least one.
      l2: strengths to choose from, each > 0, for a loss that is a mean over examples.
      validation_fraction: part of the training set to choose on, in (0, 1).
      seed: of the permutation that picks it.

    Returns:
      'map', in [0, 1]; 'per_class', the average precision of each class; 'l2': the strength
      chosen; 'validation_map': {strength: mean average precision}.

    Raises:
      DataError: features or labels do not have these shapes or values.
      ConfigError: a strength or the fraction is out of range.
    """
    train = _check("train", train_features, train_labels)
    test = _check("test", test_features, test_labels)
    if train[0].shape[1] != test[0].shape[1] or train[1].shape[1] != test[1].shape[1]:
        raise DataError("training and test images differ in their features or their classes.")
    if not test[1].any(axis=0).all():
        raise DataError("a class has no test image: its average precision does not exist.")
    logits, chosen, validation_map = choose_and_score(
        train[0],
        train[1],
        test[0],
        lambda logits, labels: _mean(average_precisions(logits, labels)),
        l2,
        validation_fraction,
        seed,
        train[1].shape[1],
    )
    per_class = average_precisions(logits, test[1])
    return {
        "map": _mean(per_class),
        "per_class": per_class,
        "l2": chosen,
        "validation_map": validation_map,
    }


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> list[float | None]:
    """VOC 2007's average precision of each class, in [0, 1]; None for a class without an image.

    The mean, over the recalls 0, .1, ..., 1, of the highest precision at this recall or a higher
    one. Among equal scores, images that lack the class come first.

    Args:
      scores: (m, classes) float, larger for a more likely class.
      labels: (m, classes) bool.
    """
    found: list[float | None] = []
    for of_class, positive in zip(scores.T, labels.T, strict=True):
        if not positive.any():
            found.append(None)
            continue
        hits = positive[np.lexsort((positive, -of_class))].cumsum()
        precisions, recalls = hits / np.arange(1, len(hits) + 1), hits / hits[-1]
        # Recalls are multiples of 1 / positives: without the slack, .3 may lie above 3 / 10.
        best = [precisions[recalls >= recall - 1e-9].max() for recall in RECALLS]
        found.append(float(np.mean(best)))
    return found


def _mean(per_class: list[float | None]) -> float:
    """The mean of those that exist; 0 if none does."""
    found = [share for share in per_class if share is not None]
    return float(np.mean(found)) if found else 0.0


def _check(split: str, features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features, labels = check_features(split, features), np.asarray(labels)
    if labels.dtype != bool or labels.ndim != 2 or len(labels) != len(features):
        raise DataError(
            f"{split} labels have shape {labels.shape} and dtype {labels.dtype}: pass bool "
            f"({len(features)}, classes)."
        )
    return features, labels
