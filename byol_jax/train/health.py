"""Detects collapse by two measures of the features, the standard deviation and the rank.

BYOL has no negatives: a constant output has zero loss, so the loss alone does not show a collapse.
"""

import jax
import numpy as np
from ml_collections import ConfigDict

from byol_jax import byol, optim
from byol_jax.objectives import OBJECTIVES
from byol_jax.runs.config import OPTIMIZER_DEFAULTS

EXAMPLES = 512  # enough to tell a rank of 1 from one of 100, and cheap to decompose


def feature_std(features: np.ndarray) -> float:
    """The standard deviation of the L2-normalised rows, averaged over dimensions, times sqrt(d).

    1 for isotropic Gaussian rows, 0 if all rows have the same direction (SimSiam, arXiv 2011.10566,
    section 4.1).

    Args:
      features: (n, d) real numbers. A row of zeros stays zero.

    Returns:
      A number in [0, 1]; nan if any feature is not finite.
    """
    features = np.asarray(features, dtype=np.float64)
    if not np.isfinite(features).all():
        return float("nan")
    # Scaled by the largest entry: squares of very large or small features leave float64's range.
    largest = np.abs(features).max(axis=1, keepdims=True)
    features = features / np.where(largest > 0, largest, 1)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    units = features / np.where(norms > 0, norms, 1)
    return float(units.std(axis=0).mean() * np.sqrt(features.shape[1]))


def effective_rank(features: np.ndarray) -> float:
    """exp(entropy of the singular values of the centred features, normalised to sum one).

    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007;
    RankMe (arXiv 2210.02885) does not centre. An offset shared by all images carries no information
    and would otherwise dominate.

    Args:
      features: (n, d) real numbers.

    Returns:
      A number from 1 (one direction) to min(n - 1, d) (all directions equal). 1 too if all rows
      are the same; nan if any feature is not finite.
    """
    features = np.asarray(features, dtype=np.float64)
    if not np.isfinite(features).all():
        return float("nan")
    centred = features - features.mean(axis=0)
    singular_values = np.linalg.svd(centred, compute_uv=False)
    # Rounding errors of the centring are not directions.
    rounding = np.abs(features).max() * np.sqrt(features.size) * np.finfo(np.float64).eps
    singular_values = singular_values[singular_values > rounding]
    if not len(singular_values):
        return 1.0
    shares = singular_values / singular_values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def features(
    learner: byol.Learner, state: byol.State, batch: byol.Batch
) -> tuple[jax.Array, jax.Array]:
    """The online network's embeddings and projections of view 1, in training mode.

    Not the target's: a target that is frozen or drawn anew never collapses, and an average follows.

    Returns:
      Float32 (rows, features) and (rows, size): rows of the first micro-batch, as many of each
      replica as give EXAMPLES over all replicas.
    """
    rows = jax.tree.map(lambda x: x[0], optim.micro_batches(batch, learner.accum_steps))
    key = byol.step_key(state)
    view1, *_ = byol.augment_batch(learner, key, rows)
    params, stats = state.online_params, state.online_stats
    (online,), _ = byol.apply(learner.online, params, stats, [view1], [key], rows.positions)
    replicas = 1 if learner.axis_name is None else jax.lax.axis_size(learner.axis_name)
    count = -(-EXAMPLES // replicas)
    return online.embedding[:count], online.projection[:count]


def feature_metrics(embeddings: np.ndarray, projections: np.ndarray) -> dict[str, float]:
    """Spread and rank of the first EXAMPLES embeddings (n, d) and projections (n, e)."""
    embeddings, projections = embeddings[:EXAMPLES], projections[:EXAMPLES]
    return {
        "embedding_std": feature_std(embeddings),
        "embedding_rank": effective_rank(embeddings),
        "projection_std": feature_std(projections),
        "projection_rank": effective_rank(projections),
    }


class CollapseMonitor:
    """Warns when `config.health.patience` checks in a row find the projections collapsed.

    That is a feature_std below .05, an effective_rank below 4, or nan. Runs that learned had ranks
    of 8 and more; a rank below 4 with a larger deviation is called dimensional collapse (arXiv
    2110.09348). Of fewer than 64 dimensions the limit is lower: a sixteenth of them, at least 1.5.
    One such check means little: early in training BYOL loses rank before it gains rank.

    Attributes:
      collapsed_checks: the number of checks that found a collapse since the last that did not.
    """

    min_std = 0.05
    one_direction = 1.5  # a rank below it is that of nearly equal outputs

    def __init__(self, config: ConfigDict, collapsed_checks: int = 0):
        self._config, self._patience = config, config.health.patience
        # Healthy outputs of few dimensions have a low rank too: with 64, the least was 8.
        self.min_rank = min(4.0, max(self.one_direction, config.heads.output_size / 16))
        self.collapsed_checks = collapsed_checks

    @property
    def has_collapsed(self) -> bool:
        """Whether at least `patience` checks in a row found a collapse."""
        return self.collapsed_checks >= self._patience

    def check(self, step: int, std: float, rank: float) -> str | None:
        """Returns a warning if this check is the one at which `has_collapsed` becomes true.

        Args:
          step: number of updates done.
          std: feature_std of the projections.
          rank: effective_rank of the projections.
        """
        # In this form nan counts as collapsed.
        if std >= self.min_std and rank >= self.min_rank:
            self.collapsed_checks = 0
            return None
        self.collapsed_checks += 1
        if self.collapsed_checks != self._patience:
            return None
        measured = (
            f"At step {step} the online projections have a standard deviation of {std:.3g} "
            f"(healthy: near 1, alarming: below {self.min_std:g}) and an effective rank of "
            f"{rank:.3g} (alarming: below {self.min_rank:g}), after {self._patience} such checks "
            "in a row. "
        )
        if not (np.isfinite(std) and np.isfinite(rank)):
            return measured + (
                "They contain NaN or infinity: training has diverged. Restore an earlier "
                "checkpoint and try a lower learning rate, a longer warm-up or float32."
            )
        if std < self.min_std or rank < self.one_direction:
            measured += "The network gives nearly the same output for every image"
        else:
            measured += "The outputs of all images lie along a few directions"
        return measured + (
            ": the representation has collapsed, however low the loss is. Try, in this order: "
            f"{advice(self._config)}."
        )


def advice(config: ConfigDict) -> str:
    """What to try against a collapse, for the objective, target and optimizer of a config."""
    kind, target, chosen = OBJECTIVES[config.objective.name], config.target, config.optimizer
    steps = []
    if kind.predicts and not config.heads.predictor_layers:
        steps.append("a predictor (config.heads.predictor_layers=2)")
    if kind.has_target and target.rule == "none":
        steps.append("a target network (config.target.rule=ema)")
    if target.rule == "redraw":
        steps.append("a target that is not drawn anew (config.target.rule=ema)")
    if target.rule == "ema":
        steps.append(
            f"another config.target.tau_base (here {target.tau_base:g}; .996 in the paper, and in "
            "a run of N steps at most 1 - 200 / N, or 1 - 400 / N where it rises to 1)"
        )
    rate = chosen.base_learning_rate
    steps.append(f"a lower config.optimizer.base_learning_rate (here {rate:g})")
    usual = OPTIMIZER_DEFAULTS[chosen.name]["weight_decay"]
    if chosen.weight_decay != usual:
        steps.append(
            f"config.optimizer.weight_decay={usual:g}, as usual (here {chosen.weight_decay:g})"
        )
    steps.append(f"a larger config.batch_size (here {config.batch_size})")
    return ", ".join(steps)
