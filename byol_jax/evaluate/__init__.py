"""Evaluation protocols: what frozen features are worth.

Each of `PROTOCOLS` is `f(train_features, train_labels, test_features, test_labels, *, num_classes,
...) -> dict`, from NumPy arrays to Python numbers: how well features predict labels that
pre-training never used. `linear` trains on features of augmented images, which somebody else
computes; `dense` takes maps of features, and masks; `multi_label` several labels for each image;
`label_free` has measures that need no labels, and `cross_modal` compares two parts of examples.
`neighbours`, `duplicates` and `few_labels` are for searching, cleaning and labelling images.
This room knows arrays only: no training state, config, file or device mesh, so features may come
from anywhere. It imports nothing of byol_jax but the errors.
"""

from byol_jax.evaluate import cross_modal, label_free, linear
from byol_jax.evaluate.cluster import cluster
from byol_jax.evaluate.dense import dense
from byol_jax.evaluate.features import collect, pixels
from byol_jax.evaluate.few_shot import few_shot
from byol_jax.evaluate.knn import knn
from byol_jax.evaluate.logistic import logistic
from byol_jax.evaluate.multi_label import multi_label
from byol_jax.evaluate.retrieval import retrieval
from byol_jax.evaluate.table import table

PROTOCOLS = {
    "knn": knn,
    "logistic": logistic,
    "few_shot": few_shot,
    "cluster": cluster,
    "retrieval": retrieval,
}

__all__ = [
    "PROTOCOLS",
    "cluster",
    "collect",
    "cross_modal",
    "dense",
    "few_shot",
    "knn",
    "label_free",
    "linear",
    "logistic",
    "multi_label",
    "pixels",
    "retrieval",
    "table",
]
