"""Weighted k-nearest-neighbour classification of frozen features.

Wu, Xiong, Yu and Lin, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
2018 (arXiv 1805.01978), section 3.4. Nothing is trained and little is tuned, which makes it a cheap
number to monitor during pre-training.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.errors import ConfigError
from byol_jax.evaluate.features import check_splits, unit_rows
from byol_jax.evaluate.scores import accuracies, label_ranks

# Similarities held at once: 2**25 float32 are 128 MiB, 655 test rows against CIFAR's 50,000.
_SIMILARITIES_PER_CHUNK = 2**25
_MAX_ROWS_PER_CHUNK = 1024


def knn(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    num_classes: int,
    ks: Sequence[int] = (20, 200),
    temperature: float = 0.07,
) -> dict[str, Any]:
    """Classifies test rows by a weighted vote of their nearest training rows.

    A neighbour with cosine similarity s votes for its class with weight exp(s / temperature); the
    class with the largest sum wins (arXiv 1805.01978, section 3.4: k = 200, temperature .07). Ties
    are deterministic: equal similarities rank in the order of the training set, and of equal sums
    the lower class wins.

    Args:
      train_features: (n, d) float32, finite; rows need not be normalised. A row of zeros has
        similarity 0 to everything.
      train_labels: (n,) integers in [0, num_classes).
      test_features: (m, d) float32, finite.
      test_labels: (m,) integers in [0, num_classes).
      num_classes: number of classes, >= 1.
      ks: numbers of neighbours, each >= 1; similarities are computed once for all of them.
      temperature: > 0; the smaller, the more the closest neighbours count.

    Returns:
      `scores.accuracies` with the first of `ks`; 'k': that number of neighbours; 'top1_by_k':
      {k: accuracy} for all of them, where a k above n appears as n.

    Raises:
      DataError: features or labels do not have these shapes or values.
      ConfigError: `ks` or `temperature` is out of range.
    """
    train_features, train_labels, test_features, test_labels = check_splits(
        train_features, train_labels, test_features, test_labels, num_classes
    )
    if not ks or min(ks) < 1:
        raise ConfigError(
            f"ks is {tuple(ks)}: pass at least one number of neighbours, each 1 or more."
        )
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}: it must be above 0, for example .07.")

    num_train, num_test = len(train_features), len(test_features)
    used_ks = tuple(sorted({min(int(k), num_train) for k in ks}))
    rows = min(_MAX_ROWS_PER_CHUNK, max(1, _SIMILARITIES_PER_CHUNK // num_train), num_test)
    # device_put: jnp.asarray would hold a second copy for a moment.
    keys, key_labels = jax.device_put((unit_rows(train_features), train_labels))
    queries = unit_rows(test_features)
    ranks = []
    for start in range(0, num_test, rows):
        chunk = queries[start : start + rows]
        # The last chunk is padded to the common size: another shape would compile again.
        padded = np.pad(chunk, ((0, rows - len(chunk)), (0, 0)))
        labels = np.pad(test_labels[start : start + rows], (0, rows - len(chunk)))
        found = _ranks(padded, labels, keys, key_labels, temperature, used_ks, num_classes)
        ranks.append(np.asarray(found)[:, : len(chunk)])
    by_k = dict(zip(used_ks, np.concatenate(ranks, axis=1), strict=True))
    first = min(int(ks[0]), num_train)
    top1_by_k = {k: float(np.mean(found == 0)) for k, found in by_k.items()}
    return accuracies(by_k[first], test_labels, num_classes) | {"k": first, "top1_by_k": top1_by_k}


@functools.partial(jax.jit, static_argnames=("ks", "num_classes"))
def _ranks(queries, labels, keys, key_labels, temperature, ks, num_classes):
    """(rows, d) queries -> (len(ks), rows) `label_ranks` of their labels; ks ascend."""
    # Full float32: the TF32 a GPU would use moves a weight by a percent at temperature .07.
    similarities = jnp.matmul(queries, keys.T, precision="highest")
    # The barrier keeps the slices below out of the top-k: merged with it, XLA on CPU no longer
    # recognises it and sorts complete rows, thirty times slower.
    nearest, neighbours = jax.lax.optimization_barrier(jax.lax.top_k(similarities, ks[-1]))
    # Dividing all weights of a row by the largest changes no vote and cannot overflow.
    weights = jnp.exp((nearest - nearest[:, :1]) / temperature)
    # A comparison that fuses into the sum, not a scatter-add: those reorder sums on GPUs.
    is_class = key_labels[neighbours][:, :, None] == jnp.arange(num_classes)
    votes = jnp.where(is_class, weights[:, :, None], 0)

    def ranks(votes):
        """A class without a vote is behind all others."""
        own = jnp.take_along_axis(votes, labels[:, None], axis=1)[:, 0]
        return jnp.where(own > 0, label_ranks(votes, labels, jnp), num_classes)

    return jnp.stack([ranks(votes[:, :k].sum(axis=1)) for k in ks])
