"""The negatives that BYOL does without: for the ablation between it and SimCLR (section 5).

The paper's appendix writes both as one loss. With unit vectors, S(u, w) = <u, w>, predictions
q_i = q(z_i) of view 1, and projections z_j of view 1 and z'_j of view 2 (by the target network, if
there is one),

    2 - 2 S(q_i, z'_i) + beta 2 alpha ln( sum_{j != i} e^{S(q_i, z_j) / alpha}
                                          + sum_j e^{S(q_i, z'_j) / alpha} ),

and the same with the views exchanged. beta = 0 is BYOL; beta = 1 without predictor and target
network is SimCLR's InfoNCE (arXiv 2002.05709, equation 1; its NT-Xent) times 2 alpha, plus 2.
"""

import jax
import jax.numpy as jnp


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
