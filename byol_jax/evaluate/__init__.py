"""Evaluators: how much a frozen encoder's features know about labels it has never seen.

Each is `f(train_features, train_labels, test_features, test_labels, *, num_classes, ...) -> dict`
from NumPy arrays to Python numbers. None of them sees a training state, a file or a device mesh, so
they work on features from anywhere. `PROTOCOLS` is the table the command line looks names up in.
"""

from byol_jax.evaluate.features import collect, pixels
from byol_jax.evaluate.knn import knn
from byol_jax.evaluate.logistic import logistic

PROTOCOLS = {"knn": knn, "logistic": logistic}

__all__ = ["PROTOCOLS", "collect", "knn", "logistic", "pixels"]
