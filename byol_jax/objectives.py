"""Objectives between BYOL's and SimCLR's, for the ablations of section 5.

The paper's appendix writes BYOL and SimCLR as one loss. With unit vectors, S(u, w) = <u, w>,
predictions q_i = q(z_i) of view 1, and projections z_j of view 1 and z'_j of view 2 (by the target
network, if there is one),

    2 - 2 S(q_i, z'_i) + beta 2 alpha ln( sum_{j != i} e^{S(q_i, z_j) / alpha}
                                          + sum_j e^{S(q_i, z'_j) / alpha} ),

plus the same with the views exchanged. beta = 0 is BYOL; beta = 1 without predictor and target
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
    """A target network without parameters or outputs, for objectives that need no target."""

    parts: ClassVar = ()

    def __call__(self, view: Any, train: bool) -> Outputs:
        """Outputs without arrays, for any view."""
        return Outputs(embedding=None, projection=None)


def without_target(objective: Objective) -> Objective:
    """The objective with the online network's outputs as targets, through which gradients flow."""

    def own_projections(online, target, axis_name: str | None) -> tuple[jax.Array, Metrics]:
        del target
        return objective(online, online, axis_name)

    return own_projections


def with_negatives(beta: float, temperature: float) -> Objective:
    """BYOL's objective plus `beta` times the negatives' term of the formula above.

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
    """SimCLR's loss: -ln(e^{S(q_i, z'_i) / alpha} / sums of the formula above), mean of both views.

    SimCLR has neither predictor nor target network: `without_target(info_nce(temperature))`.

    Args:
      temperature: alpha, above 0.
    """

    def objective(online, target, axis_name: str | None) -> tuple[jax.Array, Metrics]:
        # Each direction of the formula with beta 1 is 2 + 2 alpha times InfoNCE.
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
      same_view: float32 (batch, size), unit vectors: z of the same examples and view.
      other_view: float32 (batch, size), unit vectors: z' of the same examples, other view.
      temperature: alpha, above 0.
      axis_name: mapped axis of replicas; predictions are compared with the projections of all.

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
