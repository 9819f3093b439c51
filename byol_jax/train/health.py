"""Is the representation collapsing? Two numbers to watch, and a monitor that says so in words.

BYOL has no negatives: a constant output has zero loss, so the loss alone cannot tell learning from
collapse. The spread and the rank of the target's projections can.
"""

import jax
import numpy as np

from byol_jax import byol, optim

EXAMPLES = 512  # enough to tell a rank of 1 from one of 100, and cheap to decompose


def feature_std(features: np.ndarray) -> float:
    """Spread over the sphere: 1 like an isotropic Gaussian, 0 when all rows point the same way.

    The standard deviation of each dimension of the L2-normalised rows, averaged over dimensions and
    divided by 1/sqrt(d), its value for isotropic Gaussian rows (SimSiam, arXiv 2011.10566, section
    4.1).

    Args:
        features: (n, d) real numbers. A row of zeros stays zero.

    Returns:
        A number in [0, 1]; nan if any feature is not finite.
    """
    features = np.asarray(features, dtype=np.float64)
    if not np.isfinite(features).all():
        return float("nan")
    # By the largest entry first: squares of very large or small features leave float64's range.
    largest = np.abs(features).max(axis=1, keepdims=True)
    features = features / np.where(largest > 0, largest, 1)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    units = features / np.where(norms > 0, norms, 1)
    return float(units.std(axis=0).mean() * np.sqrt(features.shape[1]))


def effective_rank(features: np.ndarray) -> float:
    """exp(entropy of the singular values of the centred features, normalised to sum one).

    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007;
    without the centring it is RankMe (arXiv 2210.02885). Centred, because a constant offset shared
    by all images, which carries nothing, would otherwise hide everything else.

    Args:
        features: (n, d) real numbers.

    Returns:
        A number from 1 (one direction) to min(n - 1, d) (all alike). Features that are the same in
        every row have no direction at all and count as 1, the most collapsed value. nan if any
        feature is not finite.
    """
    features = np.asarray(features, dtype=np.float64)
    if not np.isfinite(features).all():
        return float("nan")
    centred = features - features.mean(axis=0)
    singular_values = np.linalg.svd(centred, compute_uv=False)
    # What the subtraction of the mean rounds to is not a direction.
    rounding = np.abs(features).max() * np.sqrt(features.size) * np.finfo(np.float64).eps
    singular_values = singular_values[singular_values > rounding]
    if not len(singular_values):
        return 1.0
    shares = singular_values / singular_values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def features(
    learner: byol.Learner, state: byol.State, batch: byol.Batch
) -> tuple[jax.Array, jax.Array]:
    """What the health checks look at: view 1's embeddings and the target's projections of view 2.

    In training mode, with the batch statistics that the loss sees. Without a target network the
    projections are the online network's.

    Returns:
      Float32 (rows, features) and (rows, size): of the first micro-batch, the rows of this replica
      that make up EXAMPLES over all.
    """
    rows = jax.tree.map(lambda x: x[0], optim.micro_batches(batch, learner.accum_steps))
    key = byol.step_key(state)
    view1, view2 = byol.augment_batch(learner, key, rows)
    positions = rows.positions
    online, _ = byol.apply(
        learner.online, state.online_params, state.online_stats, view1, key, positions
    )
    target, _ = byol.apply(
        learner.target, state.target_params, state.target_stats, view2, key, positions
    )
    if target.projection is None:
        target, _ = byol.apply(
            learner.online, state.online_params, state.online_stats, view2, key, positions
        )
    replicas = 1 if learner.axis_name is None else jax.lax.axis_size(learner.axis_name)
    count = -(-EXAMPLES // replicas)
    return online.embedding[:count], target.projection[:count]


def readings(embeddings: np.ndarray, projections: np.ndarray) -> dict[str, float]:
    """Spread and effective rank of the embeddings and of the target's projections.

    Args:
        embeddings: (n, d) real numbers.
        projections: (n, e) real numbers.

    Returns:
        'embedding_std', 'embedding_rank', 'projection_std' and 'projection_rank', of the first
        512 rows.
    """
    found = {}
    for name, features in (("embedding", embeddings), ("projection", projections)):
        found[f"{name}_std"] = feature_std(features[:EXAMPLES])
        found[f"{name}_rank"] = effective_rank(features[:EXAMPLES])
    return found


class CollapseMonitor:
    """Says once, in words, when the target's projections have stayed collapsed for a while.

    A reading is bad if the feature_std is below .05, the effective_rank below 1.5, or either is
    nan. One bad reading means little: early in training BYOL loses rank before it gains, so only
    `patience` bad readings in a row count. After speaking, the monitor is silent until a good
    reading.

    Attributes:
        bad_readings: how many there were in a row up to now.
    """

    min_std = 0.05
    min_rank = 1.5

    def __init__(self, patience: int, bad_readings: int = 0):
        """Speaks at the `patience`-th bad reading in a row; patience >= 1."""
        self._patience = patience
        self.bad_readings = bad_readings

    def update(self, step: int, std: float, rank: float) -> str | None:
        """Takes one reading; returns a warning of a few sentences when it is time for one, or None.

        Args:
            step: the training step of the reading.
            std: feature_std of the target's projections.
            rank: effective_rank of the same.
        """
        # In this form nan is bad too.
        if std >= self.min_std and rank >= self.min_rank:
            self.bad_readings = 0
            return None
        self.bad_readings += 1
        if self.bad_readings != self._patience:
            return None
        seen = (
            f"At step {step} the target projections have a standard deviation of {std:.3g} "
            f"(healthy: near 1, alarming: below {self.min_std:g}) and an effective rank of "
            f"{rank:.3g} (alarming: below {self.min_rank:g}), the last of {self._patience} bad "
            "readings in a row. "
        )
        if not (np.isfinite(std) and np.isfinite(rank)):
            return seen + (
                "The projections contain NaN or infinity: training has diverged. Go back to an "
                "earlier checkpoint and try a lower learning rate, a longer warm-up or float32."
            )
        return seen + (
            "The network gives nearly the same output for every image: the representation has "
            "collapsed, however low the loss is. Check that the online network has its predictor "
            "and that no gradient reaches the target, that tau_base is near .996 (.99 for short "
            "runs) and that the heads use batch norm; then try a lower learning rate, the usual "
            "weight decay (1.5e-6 with LARS) or a larger batch."
        )
