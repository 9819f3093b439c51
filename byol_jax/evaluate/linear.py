"""The paper's linear evaluation: a linear classifier on frozen features of augmented images.

arXiv 2006.07733, appendix C.1: cross-entropy, SGD with Nesterov momentum .9 and nothing that
regularises, on random crops and flips; the learning rate is the best of five on held-out images.
After the authors' code (byol/configs/eval.py) it is multiplied by batch size / 256 and falls to 0
along a cosine. A head for each rate is trained on the same features, so that the encoder computes
them once for all. Heads start from 0: the problem is convex.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byol_jax.evaluate.features import check_splits
from byol_jax.evaluate.scores import accuracies, label_ranks

BATCH_SIZE = 1024  # for 80 epochs
LEARNING_RATES = (0.4, 0.3, 0.2, 0.1, 0.05)
MOMENTUM = optax.trace(decay=0.9, nesterov=True)


class Heads(NamedTuple):
    """A linear classifier for each of r learning rates, and the state of their optimizer."""

    params: tuple[jax.Array, jax.Array]  # weights (r, d, classes), biases (r, classes); float32
    momentum: optax.TraceState
    step: jax.Array  # int32 (): updates done so far


def init(num_features: int, num_classes: int, num_rates: int = len(LEARNING_RATES)) -> Heads:
    """The heads before the first update: all 0."""
    weights = jnp.zeros((num_rates, num_features, num_classes))
    params = weights, jnp.zeros((num_rates, num_classes))
    return Heads(params, MOMENTUM.init(params), jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnames=("total_steps", "rates"))
def update(
    heads: Heads,
    features: jax.Array,
    labels: jax.Array,
    *,
    total_steps: int,
    rates: tuple[float, ...] = LEARNING_RATES,
) -> Heads:
    """One step of SGD of every head.

    Args:
      heads: of `init` with as many rates, or of an update.
      features: float32 (batch, d).
      labels: int32 (batch,).
      total_steps: the learning rate is 0 after this many.
      rates: for batches of 256.
    """

    def loss(params: tuple[jax.Array, jax.Array]) -> jax.Array:
        weights, biases = params
        logits = jnp.einsum("nd,rdc->nrc", features, weights) + biases
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels[:, None])
        return jnp.sum(jnp.mean(each, axis=0))  # no head's gradient depends on another's loss

    decay = optax.cosine_decay_schedule(len(features) / 256, total_steps)(heads.step)
    gradient, momentum = MOMENTUM.update(jax.grad(loss)(heads.params), heads.momentum)
    rate = jnp.asarray(rates) * decay
    params = jax.tree.map(
        lambda w, g: w - rate.reshape(-1, *[1] * (g.ndim - 1)) * g, heads.params, gradient
    )
    return Heads(params, momentum, heads.step + 1)


def evaluate(
    heads: Heads,
    held_out_features: np.ndarray,
    held_out_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    num_classes: int,
    rates: tuple[float, ...] = LEARNING_RATES,
) -> dict[str, Any]:
    """The accuracy of the head that is best on held-out images; of equals, the smallest rate.

    Args:
      heads: trained on neither of the two sets, one head for each of `rates`.
      held_out_features: (n, d) float32, finite: of central crops, as those of the test.
      held_out_labels: (n,) integers in [0, num_classes).
      test_features: (m, d) float32, finite.
      test_labels: (m,) integers in [0, num_classes).
      num_classes: number of classes, >= 1.
      rates: learning rates of the heads.

    Returns:
      `scores.accuracies` on the test split; 'learning_rate': the rate chosen, for a batch of 256;
      'validation_top1': {rate: accuracy on the held-out images}; 'steps': updates of the heads.

    Raises:
      DataError: features or labels do not have these shapes or values.
    """
    held_out_features, held_out_labels, test_features, test_labels = check_splits(
        held_out_features, held_out_labels, test_features, test_labels, num_classes
    )
    by_rate = dict(zip(rates, zip(*heads.params, strict=True), strict=True))
    top1 = {
        rate: classify(*head, held_out_features, held_out_labels)["top1"]
        for rate, head in by_rate.items()
    }
    chosen = max(rates, key=lambda rate: (top1[rate], -rate))
    return classify(*by_rate[chosen], test_features, test_labels) | {
        "learning_rate": chosen,
        "validation_top1": top1,
        "steps": int(heads.step),
    }


def classify(
    weights: jax.Array, biases: jax.Array, features: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """`scores.accuracies` of one linear classifier.

    Args:
      weights: float32 (d, classes).
      biases: float32 (classes,).
      features: (n, d) float32.
      labels: (n,) integers in [0, classes).
    """
    logits = features @ np.asarray(weights) + np.asarray(biases)
    return accuracies(label_ranks(logits, labels), labels, len(biases))
