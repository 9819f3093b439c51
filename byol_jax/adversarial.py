"""Virtual adversarial views: the online network sees what moves its prediction most.

Miyato et al. 2018, "Virtual Adversarial Training" (arXiv 1704.03976), section 3.3 and algorithm 1.
The divergence between predictions is BYOL's, `byol.regression_loss`. An iteration costs a forward
and a backward pass of the online network for each view, and all of them a forward pass more.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from byol_jax import byol
from byol_jax.byol import Tree

DIRECTION = 2**31 + 2**21  # what the key of a view is folded with, to draw the first direction
# Length of the step at which the gradient is taken, relative to the norm: float32 resolves the
# change of a prediction, and the change is still nearly linear.
STEP = 0.1


def perturb(norm: float, iterations: int = 1) -> Callable[..., tuple[Tree, ...]]:
    """A `perturb` for `byol.Learner`, which adds an adversarial perturbation to every view.

    For each example, r = norm g / |g| with the gradient g, with respect to d, of
    D(q(v), q(v + STEP norm d)) at a random unit vector d; then the same with g / |g| in place of d,
    and so on. Where the prediction does not move, r is 0. To the gradient of the parameters r is a
    constant. Under batch norm in training mode examples depend on each other: the divergence is the
    sum over the batch.

    Args:
      norm: length |r| over all values of an example's normalised view; above 0.
      iterations: of the power iteration; at least 1.
    """

    def add(learner: byol.Learner, params: Tree, stats: Tree, views: Tree, keys: Tree, positions):
        params = jax.lax.stop_gradient(params)

        def one(view: Tree, key: jax.Array) -> Tree:
            def predict(view: Tree) -> jax.Array:
                (outputs,), _ = byol.apply(learner.online, params, stats, [view], [key], positions)
                return outputs.prediction

            clean = predict(view)

            def divergence(direction: Tree) -> jax.Array:
                moved = predict(_add(view, direction, STEP * norm))
                return jnp.sum(byol.regression_loss(moved, clean))

            direction = _random_direction(view, key, positions)
            for _ in range(iterations):
                direction = _unit(jax.grad(divergence)(direction))
            return _add(view, direction, norm)

        return tuple(one(view, key) for view, key in zip(views, keys, strict=True))

    return add


def _add(view: Tree, direction: Tree, length: float) -> Tree:
    return jax.tree.map(lambda v, d: v + length * d, view, direction)


def _random_direction(view: Tree, key: jax.Array, positions: jax.Array) -> Tree:
    """A unit vector for each example, a function of the key and the example's position alone."""
    leaves, structure = jax.tree.flatten(view)

    def normal(position: jax.Array) -> list[jax.Array]:
        of_example = jax.random.fold_in(jax.random.fold_in(key, DIRECTION), position)
        parts = jax.random.split(of_example, len(leaves))
        return [jax.random.normal(k, x.shape[1:]) for k, x in zip(parts, leaves, strict=True)]

    return _unit(jax.tree.unflatten(structure, jax.vmap(normal)(positions)))


def _unit(tree: Tree) -> Tree:
    """Scales each example (first axis) to length 1 over all leaves; zero stays zero."""

    def squares(x: jax.Array) -> jax.Array:
        return jnp.sum(x.reshape(len(x), -1) ** 2, axis=1)

    total = sum(squares(x) for x in jax.tree.leaves(tree))
    scale = jax.lax.rsqrt(jnp.maximum(total, jnp.finfo(jnp.float32).tiny))
    return jax.tree.map(lambda x: x * scale.reshape(-1, *[1] * (x.ndim - 1)), tree)
