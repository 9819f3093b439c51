"""Accuracies of a classifier, from the rank that it gives each image's own class."""

from types import ModuleType
from typing import Any

import numpy as np

Z = 1.959964  # 95% of a standard normal distribution lie between -Z and Z


def label_ranks(logits: Any, labels: Any, xp: ModuleType = np) -> Any:
    """How many classes come before an image's own.

    Args:
      logits: float (m, classes), larger for a more likely class; of equal ones the lower class is
        first, and NaN is last.
      labels: (m,) integers in [0, classes).
      xp: numpy or jax.numpy.

    Returns:
      Integers (m,): 0 where the own class is first.
    """
    own = xp.take_along_axis(logits, labels[:, None], axis=1)
    classes = xp.arange(logits.shape[1])
    is_behind = (logits < own) | ((logits == own) & (classes > labels[:, None]))
    return ((classes != labels[:, None]) & ~is_behind).sum(axis=1)


def accuracies(ranks: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, Any]:
    """The accuracies of a classifier.

    Args:
      ranks: (m,) integers, as of `label_ranks`; m >= 1.
      labels: (m,) integers in [0, num_classes).
      num_classes: number of classes, >= 1.

    Returns:
      'top1' and, with six classes or more, 'top5', in [0, 1]; 'interval', the 95% interval of
      'top1' for another draw of the test images, but not of another training; 'per_class', the
      share of each class that was found, or None for a class without images; 'mean_per_class' of
      the others.
    """
    hits = ranks == 0
    counts = np.bincount(labels, minlength=num_classes)
    found = np.bincount(labels, weights=hits, minlength=num_classes)
    per_class = [float(f / n) if n else None for f, n in zip(found, counts, strict=True)]
    result = {
        "top1": float(hits.mean()),
        "interval": wilson(int(hits.sum()), len(hits)),
        "mean_per_class": float(np.mean([share for share in per_class if share is not None])),
        "per_class": per_class,
    }
    return result | ({"top5": float((ranks < 5).mean())} if num_classes > 5 else {})


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share, after Wilson (1927): within [0, 1], for small counts too."""
    share, square = hits / count, Z**2 / count
    middle = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * np.sqrt(share * (1 - share) / count + square / (4 * count))
    return float(max(0, middle - half)), float(min(1, middle + half))
