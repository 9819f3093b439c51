"""Evaluation protocols: how well frozen features predict labels that pre-training never used.

Each is `f(train_features, train_labels, test_features, test_labels, *, num_classes, ...) -> dict`,
from NumPy arrays to Python numbers, and `PROTOCOLS` lists them for the command line. This room
knows arrays only: no training state, config, file or device mesh, so features may come from
anywhere. It imports nothing of byol_jax but the errors.
"""

from byol_jax.evaluate.features import collect, pixels
from byol_jax.evaluate.knn import knn
from byol_jax.evaluate.logistic import logistic

PROTOCOLS = {"knn": knn, "logistic": logistic}

__all__ = ["PROTOCOLS", "collect", "knn", "logistic", "pixels"]
