"""What the nearest neighbours say about the classes: predictions, and which classes are confused.

The vote is that of `byol-jax evaluate --protocol=knn`: arXiv 1805.01978, section 3.4.
"""

from typing import Any, NamedTuple

import numpy as np

from byol_jax.evaluate.scores import wilson

NEIGHBOURS, TEMPERATURE = 20, 0.07


class Confusion(NamedTuple):
    """Two classes that the vote mixes up."""

    of: int  # the class of the images
    taken_for: int  # what the vote says
    count: int  # images
    share: float  # of the images of the class


def predict(
    neighbours: np.ndarray, similarities: np.ndarray, labels: np.ndarray, num_classes: int
) -> np.ndarray:
    """The class with the largest sum of exp(similarity / temperature) over the neighbours.

    Args:
      neighbours: integers (m, k), indices of the labels.
      similarities: float (m, k), of cosine; the largest first.
      labels: integers (n,) in [0, num_classes).
      num_classes: number of classes.

    Returns:
      int64 (m,); of equal sums the lower class.
    """
    weights = np.exp((similarities - similarities[:, :1]) / TEMPERATURE)
    votes = np.zeros((len(neighbours), num_classes), np.float64)
    np.add.at(votes, (np.arange(len(neighbours))[:, None], labels[neighbours]), weights)
    return votes.argmax(axis=1)


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """'top1', and 'interval', its 95% interval."""
    hits = predicted == labels
    return {"top1": float(hits.mean()), "interval": wilson(int(hits.sum()), len(hits))}


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Images by class (rows) and prediction (columns), int64 (num_classes, num_classes)."""
    table = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(table, (labels, predicted), 1)
    return table


def most_confused(table: np.ndarray, most: int = 10) -> list[Confusion]:
    """The pairs of a class and another prediction with the most images, the largest first.

    Args:
      table: of `confusion_matrix`.
      most: how many pairs.
    """
    sizes, wrong = table.sum(axis=1), table.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        Confusion(int(a), int(b), int(wrong[a, b]), float(wrong[a, b] / sizes[a]))
        for a, b in pairs
        if wrong[a, b]
    ]
