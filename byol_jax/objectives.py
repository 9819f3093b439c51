"""Other objectives than BYOL's, for the ablations between it and SimCLR (section 5).

The paper's appendix writes BYOL and SimCLR as one loss. With unit vectors, S(u, w) = <u, w>,
predictions q_i = q(z_i) of view 1, and projections z_j of view 1 and z'_j of view 2 (by the target
network, if there is one),

    2 - 2 S(q_i, z'_i) + beta 2 alpha ln( sum_{j != i} e^{S(q_i, z_j) / alpha}
                                          + sum_j e^{S(q_i, z'_j) / alpha} ),

and the same with the views exchanged. beta = 0 is BYOL; beta = 1 without predictor and target
network is SimCLR's InfoNCE (arXiv 2002.05709, equation 1; its NT-Xent) times 2 alpha, plus 2.

An objective has the signature of `byol.byol_objective`.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from byol_jax.byol import Metrics, Objective, byol_objective, l2_normalize
from byol_jax.models import Outputs


class NoTarget(nn.Module):
    """In place of the target network where the objective does without: it has no parameters."""

    parts: ClassVar = ()

    def __call__(self, view: Any, train: bool) -> Outputs:
        """Returns nothing."""
        return Outputs(embedding=None, projection=None)


def without_target(objective: Objective) -> Objective:
    """The objective against the online network's own projections, with their gradient."""

    def own_projections(online, target, axis_name: str | None) -> tuple[jax.Array, Metrics]:
        del target
        return objective(online, online, axis_name)

    return own_projections


def with_negatives(beta: float, temperature: float) -> Objective:
    """BYOL's objective and `beta` times the negatives of the formula above.

    Args:
      beta: weight of the negatives, at least 0.
      temperature: alpha, above 0.
    """

    def objective(online, target, axis_name: str | None) -> tuple[jax.Array, Metrics]:
        loss, metrics = byol_objective(online, target, axis_name)
        q1, q2 = (l2_normalize(outputs.prediction) for outputs in online)
        z1, z2 = (l2_normalize(outputs.projection) for outputs in target)
        negatives = jnp.mean(
            negatives_loss(q1, z1, z2, temperature, axis_name)
            + negatives_loss(q2, z2, z1, temperature, axis_name)
        )
        return loss + beta * negatives, metrics | {"negatives_loss": negatives}

    return objective


def info_nce(temperature: float) -> Objective:
    """SimCLR's loss of both views, averaged: -ln(e^{S(q_i, z'_i) / alpha} / sum over all others).

    Args:
      temperature: alpha, above 0.
    """

    def objective(online, target, axis_name: str | None) -> tuple[jax.Array, Metrics]:
        # The formula of the module with beta 1, less its factor and its constant, for each view.
        loss, _ = with_negatives(1.0, temperature)(online, target, axis_name)
        loss = (loss - 4) / (4 * temperature)
        return loss, {"info_nce_loss": loss}

    return objective


def negatives_loss(
    prediction: jax.Array,
    same_view: jax.Array,
    other_view: jax.Array,
    temperature: float,
    axis_name: str | None = None,
) -> jax.Array:
    """2 alpha ln(...) of the formula above: how close each prediction is to all projections.

    Args:
      prediction: float32 (batch, size), unit vectors: q.
      same_view: float32 (batch, size), unit vectors: z of the same images and view.
      other_view: float32 (batch, size), unit vectors: z' of the same images, other view.
      temperature: alpha, above 0.
      axis_name: mapped axis of replicas; the projections of all of them count.

    Returns:
      Float32 (batch,).
    """
    first_row = 0
    if axis_name is not None:
        first_row = jax.lax.axis_index(axis_name) * len(prediction)
        same_view, other_view = (
            jax.lax.all_gather(z, axis_name, tiled=True) for z in (same_view, other_view)
        )
    itself = first_row + jnp.arange(len(prediction))[:, None] == jnp.arange(len(same_view))
    logits = jnp.concatenate(
        [
            jnp.where(itself, -jnp.inf, prediction @ same_view.T / temperature),
            prediction @ other_view.T / temperature,
        ],
        axis=1,
    )
    return 2 * temperature * jax.nn.logsumexp(logits, axis=1)
