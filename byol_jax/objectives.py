"""Objectives beside BYOL's, by the names that `config.objective.name` takes.

Each function here makes an objective, with the signature of `byol.byol_objective`, from its
settings. An example has a prediction q_i = q(z_i) and a projection z_i from the online network and
a projection z'_i from the target network, for each of two views; gradients flow through q and z.
S(u, w) = <u, w> of unit vectors. A sum over j covers the batch of all replicas, of one micro-batch.
"""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from byol_jax.byol import Objective, byol_objective, l2_normalize
from byol_jax.models import Outputs, check_setting, check_settings

Pair = tuple[Outputs, Outputs]  # of view 1 and view 2
SMALLEST = 1e-6  # temperature


class NoTarget(nn.Module):
    """A target network without parameters or outputs, for objectives that need no target."""

    parts: ClassVar = ()

    def __call__(self, view: Any, train: bool) -> Outputs:
        """Outputs without arrays, for any view."""
        return Outputs(embedding=None, projection=None)


def byol() -> Objective:
    """BYOL's own: 2 - 2 S(q_i, z'_i) of both directions (equation 2)."""
    return byol_objective


def without_target(objective: Objective) -> Objective:
    """The objective with the online network's outputs as targets, through which gradients flow."""

    def own_projections(online: Pair, target: Pair, axis_name: str | None):
        del target
        return objective(online, online, axis_name)

    return own_projections


def multi_crop(objective: Objective, has_target: bool) -> Objective:
    """An objective of two views and any number of local ones (SwAV, arXiv 2006.09882, section 3.4).

    The mean, over the pair of global views and every local view l, of

        objective((o_1, o_2), (t_1, t_2)) for the pair,
        objective((o_l, o_l), (t_1, t_2)) for a local view, with a target network,
        (objective((o_1, o_l)) + objective((o_2, o_l))) / 2 for a local view, without one,

    for outputs o of the online network and t of the target network, which does not see local views.
    So with a target a local view predicts both global ones, and nothing predicts it; among its
    negatives (`byol_negatives`), in place of its own view, is the global one that it does not
    predict. Without a target, it and a global view predict each other or are compared.

    Args:
      objective: of two views, as `make_objective` returns it.
      has_target: whether it reads the outputs of a target network.
    """

    def of_all(online: tuple[Outputs, ...], target: Pair, axis_name: str | None):
        def mean(*pairs: Pair):
            terms = [objective(pair, target, axis_name) for pair in pairs]
            return jax.tree.map(_mean_of, *terms)

        view1, view2, *local_views = online
        terms = [mean((view1, view2))]
        for local in local_views:
            pairs = [(local, local)] if has_target else [(view1, local), (view2, local)]
            terms.append(mean(*pairs))
        return jax.tree.map(_mean_of, *terms)

    return of_all


def byol_negatives(beta: float = 1.0, temperature: float = 0.1) -> Objective:
    """Between BYOL (beta = 0) and SimCLR: the loss of the paper's appendix.

        2 - 2 S(q_i, z'_i) + beta 2 alpha ln( sum_{j != i} e^{S(q_i, z_j) / alpha}
                                              + sum_j e^{S(q_i, z'_j) / alpha} )

    for predictions of view 1, z of view 1 and z' of view 2, all z of the target network, plus the
    same with the views exchanged. beta = 1 without predictor and target network is SimCLR's loss
    times 2 alpha, plus 2.

    Args:
      beta: weight of the negatives, at least 0.
      temperature: alpha, at least SMALLEST.
    """
    _check(beta >= 0, f"beta={beta:g} must be at least 0.")
    _check_temperature(temperature)

    def objective(online: Pair, target: Pair, axis_name: str | None):
        loss, metrics = byol_objective(online, target, axis_name)
        q1, q2 = (l2_normalize(outputs.prediction) for outputs in online)
        z1, z2 = (l2_normalize(outputs.projection) for outputs in target)
        negatives = jnp.mean(
            negatives_loss(q1, z1, z2, temperature, axis_name)
            + negatives_loss(q2, z2, z1, temperature, axis_name)
        )
        return loss + beta * negatives, metrics | {"negatives_loss": negatives}

    return objective


def negatives_loss(
    prediction: jax.Array,
    same_view: jax.Array,
    other_view: jax.Array,
    temperature: float,
    axis_name: str | None = None,
) -> jax.Array:
    """2 alpha ln(...) of `byol_negatives`: how close each prediction is to all projections.

    Args:
      prediction: float32 (batch, size), unit vectors: q.
      same_view: float32 (batch, size), unit vectors: z of the same examples and view.
      other_view: float32 (batch, size), unit vectors: z' of the same examples, other view.
      temperature: alpha, at least SMALLEST.
      axis_name: mapped axis of replicas; predictions are compared with the projections of all.

    Returns:
      Float32 (batch,).
    """
    itself = _is_itself(len(prediction), axis_name)
    same_view, other_view = _gather(same_view, axis_name), _gather(other_view, axis_name)
    logits = jnp.concatenate(
        [
            jnp.where(itself, -jnp.inf, prediction @ same_view.T / temperature),
            prediction @ other_view.T / temperature,
        ],
        axis=1,
    )
    return 2 * temperature * jax.nn.logsumexp(logits, axis=1)


def info_nce(temperature: float = 0.1) -> Objective:
    """SimCLR's NT-Xent (arXiv 2002.05709, equation 1), mean of both views.

        -ln( e^{S(z_i, z~_i) / alpha} / ( sum_{j != i} e^{S(z_i, z_j) / alpha}
                                         + sum_j e^{S(z_i, z~_j) / alpha} ) )

    for online projections z of one view and z~ of the other.

    Args:
      temperature: alpha, at least SMALLEST.
    """
    both = byol_negatives(1.0, temperature)

    def objective(online: Pair, target: Pair, axis_name: str | None):
        del target
        own = tuple(outputs._replace(prediction=outputs.projection) for outputs in online)
        # Each direction of the formula with beta 1 is 2 + 2 alpha times NT-Xent.
        loss, _ = both(own, own, axis_name)
        loss = (loss - 4) / (4 * temperature)
        return loss, {"info_nce_loss": loss}

    return objective


def moco_v3(temperature: float = 0.2) -> Objective:
    """MoCo v3's loss: the target's projections of the other view are the keys (arXiv 2104.02057).

        -2 alpha ln( e^{S(q_i, z'_i) / alpha} / sum_j e^{S(q_i, z'_j) / alpha} ), sum of both views.

    Args:
      temperature: alpha, at least SMALLEST.
    """
    _check_temperature(temperature)

    def objective(online: Pair, target: Pair, axis_name: str | None):
        def one(prediction: jax.Array, key: jax.Array) -> jax.Array:
            _is_itself(len(prediction), axis_name)  # refuses a batch of one, whose loss is 0
            query, key = l2_normalize(prediction), l2_normalize(key)
            logits = query @ _gather(key, axis_name).T / temperature
            own = jnp.sum(query * key, axis=1) / temperature
            return 2 * temperature * jnp.mean(jax.nn.logsumexp(logits, axis=1) - own)

        loss = _sum_of_directions(one, online, target)
        return loss, {"moco_v3_loss": loss}

    return objective


def triplet(
    margin: float = 1.0, negative: Literal["hardest", "semi-hard", "all"] = "semi-hard"
) -> Objective:
    """Hinge between a positive and a negative, sum of both views.

        max(0, margin + d(q_i, z'_i) - d(q_i, z'_j)), with d(u, w) = |u - w|^2 of unit vectors.

    Args:
      margin: above 0; d lies within 0..4.
      negative: which j != i: 'hardest', the nearest (arXiv 1703.07737); 'semi-hard', the nearest
        that is farther than the positive (arXiv 1503.03832), or the farthest if none is; 'all', the
        mean over them.
    """
    _check(margin > 0, f"margin={margin:g} must be above 0.")

    def objective(online: Pair, target: Pair, axis_name: str | None):
        def one(prediction: jax.Array, projection: jax.Array) -> jax.Array:
            query, key = l2_normalize(prediction), l2_normalize(projection)
            positive = 2 - 2 * jnp.sum(query * key, axis=1, keepdims=True)
            distances = 2 - 2 * query @ _gather(key, axis_name).T
            itself = _is_itself(len(query), axis_name)
            if negative == "all":
                hinges = jnp.maximum(0, margin + positive - distances)
                return jnp.sum(jnp.where(itself, 0, hinges)) / jnp.sum(~itself)
            candidates = jnp.where(itself, jnp.inf, distances)
            if negative == "semi-hard":
                candidates = jnp.where(distances > positive, candidates, jnp.inf)
            nearest = jnp.min(candidates, axis=1)
            farthest = jnp.max(jnp.where(itself, -jnp.inf, distances), axis=1)
            chosen = jnp.where(jnp.isfinite(nearest), nearest, farthest)
            return jnp.mean(jnp.maximum(0, margin + positive[:, 0] - chosen))

        loss = _sum_of_directions(one, online, target)
        return loss, {"triplet_loss": loss}

    return objective


def simsiam() -> Objective:
    """SimSiam's loss: no target network, and no gradient to the projection (arXiv 2011.10566).

    -S(q_i, stop_gradient(z~_i)) for the online projection z~ of the other view, mean of both views.
    """

    def objective(online: Pair, target: Pair, axis_name: str | None):
        del target
        loss, _ = byol_objective(online, jax.lax.stop_gradient(online), axis_name)
        loss = (loss - 4) / 4
        return loss, {"simsiam_loss": loss}

    return objective


def barlow_twins(off_diagonal: float = 0.0051) -> Objective:
    """Barlow Twins' loss (arXiv 2103.03230, equation 1).

        sum_a (1 - C_aa)^2 + lambda sum_a sum_{b != a} C_ab^2

    with the correlation C of the online projections of view 1 and view 2 over the batch.

    Args:
      off_diagonal: lambda, at least 0.
    """
    _check(off_diagonal >= 0, f"off_diagonal={off_diagonal:g} must be at least 0.")

    def objective(online: Pair, target: Pair, axis_name: str | None):
        del target
        z1, z2 = (_centred(outputs.projection, axis_name) for outputs in online)
        z1, z2 = (z * jax.lax.rsqrt(_mean(z * z, axis_name) + 1e-5) for z in (z1, z2))
        correlation = _replica_mean(z1.T @ z2 / len(z1), axis_name)
        is_diagonal = jnp.eye(len(correlation), dtype=bool)
        invariance = jnp.sum(jnp.where(is_diagonal, 1 - correlation, 0) ** 2)
        redundancy = jnp.sum(jnp.where(is_diagonal, 0, correlation) ** 2)
        loss = invariance + off_diagonal * redundancy
        terms = {"invariance_loss": invariance, "redundancy_loss": redundancy}
        return loss, {"barlow_twins_loss": loss} | terms

    return objective


def vicreg(invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0) -> Objective:
    """VICReg's loss (arXiv 2105.04906, equations 1 to 6) of the online projections.

    The mean squared difference of the two views; plus, of each view, the mean over dimensions of
    max(0, 1 - sqrt(variance + 1e-4)), and the sum of the squared covariances of different
    dimensions over their number. As in the authors' code, the variance term is the mean of both
    views, and the covariance term their sum.

    Args:
      invariance: weight of the first term, at least 0.
      variance: of the second.
      covariance: of the third.
    """
    weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
    for key, weight in weights.items():
        _check(weight >= 0, f"{key}={weight:g} must be at least 0.")

    def objective(online: Pair, target: Pair, axis_name: str | None):
        del target
        z1, z2 = (outputs.projection for outputs in online)
        size = z1.shape[1]
        count = len(z1) * (1 if axis_name is None else jax.lax.axis_size(axis_name))
        unbiased = count / max(count - 1, 1)
        terms = {"invariance": jnp.mean((z1 - z2) ** 2), "variance": 0.0, "covariance": 0.0}
        for z in (z1, z2):
            z = _centred(z, axis_name)
            covariances = _replica_mean(z.T @ z / len(z), axis_name) * unbiased
            spread = jnp.sqrt(jnp.diagonal(covariances) + 1e-4)
            terms["variance"] += jnp.mean(jnp.maximum(0, 1 - spread)) / 2
            is_diagonal = jnp.eye(size, dtype=bool)
            terms["covariance"] += jnp.sum(jnp.where(is_diagonal, 0, covariances) ** 2) / size
        loss = sum(weights[key] * term for key, term in terms.items())
        return loss, {"vicreg_loss": loss} | {f"{key}_loss": term for key, term in terms.items()}

    return objective


class Kind(NamedTuple):
    """An objective as `config.objective` names it."""

    make: Callable[..., Objective]  # from its settings
    predicts: bool = True  # whether it reads predictions, so that a predictor is trained
    has_target: bool = True  # whether it reads the outputs of a target network


OBJECTIVES = {
    "byol": Kind(byol),
    "byol_negatives": Kind(byol_negatives),
    "info_nce": Kind(info_nce, predicts=False, has_target=False),
    "moco_v3": Kind(moco_v3),
    "triplet": Kind(triplet),
    "simsiam": Kind(simsiam, has_target=False),
    "barlow_twins": Kind(barlow_twins, predicts=False, has_target=False),
    "vicreg": Kind(vicreg, predicts=False, has_target=False),
}


def settings(name: str) -> dict[str, Any]:
    """The settings of a named objective and their defaults."""
    parameters = inspect.signature(OBJECTIVES[name].make).parameters
    return {key: parameter.default for key, parameter in parameters.items()}


def make_objective(name: str, **chosen: Any) -> Objective:
    """The objective of a name with these settings, and its own defaults for others.

    Raises:
      ValueError: there is no such objective, or it has no such setting, or cannot take its value;
        one line that begins with "name" or the setting.
    """
    check_setting("name", name, str, tuple(OBJECTIVES))
    annotations = inspect.get_annotations(OBJECTIVES[name].make)
    check_settings(name, chosen, settings(name), annotations)
    return OBJECTIVES[name].make(**chosen)


def _check(is_valid: Any, message: str) -> None:
    if not is_valid:
        raise ValueError(message)


def _check_temperature(temperature: float) -> None:
    _check(temperature >= SMALLEST, f"temperature={temperature:g} must be at least {SMALLEST:g}.")


def _mean_of(*terms: jax.Array) -> jax.Array:
    return sum(terms) / len(terms)


def _sum_of_directions(one: Callable[..., jax.Array], online: Pair, target: Pair) -> jax.Array:
    (online1, online2), (target1, target2) = online, target
    return one(online1.prediction, target2.projection) + one(online2.prediction, target1.projection)


def _gather(x: jax.Array, axis_name: str | None) -> jax.Array:
    """The rows of all replicas."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def _is_itself(rows: int, axis_name: str | None) -> jax.Array:
    """Which of the rows of all replicas are this replica's: bool (rows, rows of all)."""
    replicas, first = 1, 0
    if axis_name is not None:
        replicas, first = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name) * rows
    if rows * replicas < 2:
        raise ValueError("The objective compares examples of a batch, but the batch has one.")
    return first + jnp.arange(rows)[:, None] == jnp.arange(rows * replicas)


def _replica_mean(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else jax.lax.pmean(x, axis_name)


def _mean(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Mean over the rows of all replicas."""
    return _replica_mean(jnp.mean(x, axis=0), axis_name)


def _centred(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x - _mean(x, axis_name)
