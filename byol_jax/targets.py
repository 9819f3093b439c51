"""Targets beside the moving average: what the target network becomes after an update.

The paper motivates BYOL by a random, fixed target, and section 5.1 varies how fast it moves. Each
function here makes the `next_target` of a `byol.Learner`: (state before the update, new online
parameters) -> new target parameters, which may depend on the state's step and seed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from byol_jax import byol
from byol_jax.byol import Tree

NextTarget = Callable[[byol.State, Tree], Tree]
TARGET_KEY = 2**31 + 2**20  # what a key is folded with, beside `byol.NETWORK_KEYS`


def frozen() -> NextTarget:
    """The target never changes."""
    return lambda state, online_params: state.target_params


def copy_every(steps: int) -> NextTarget:
    """After each `steps` updates, a copy of the online network; between them no change."""

    def next_target(state: byol.State, online_params: Tree) -> Tree:
        xi, theta = state.target_params, {k: online_params[k] for k in state.target_params}
        is_due = (state.step + 1) % steps == 0
        return jax.tree.map(lambda xi, theta: jnp.where(is_due, theta, xi), xi, theta)

    return next_target


def redraw_every(steps: int, draw: Callable[[jax.Array], Tree]) -> NextTarget:
    """After each `steps` updates, new random weights; between them no change.

    Args:
      steps: at least 1.
      draw: a PRNG key -> parameters like the target's, such as those that `draw` below returns.
    """

    def next_target(state: byol.State, online_params: Tree) -> Tree:
        del online_params
        key = jax.random.fold_in(byol.step_key(state), TARGET_KEY)
        is_due = (state.step + 1) % steps == 0
        return jax.lax.cond(is_due, draw, lambda key: state.target_params, key)

    return next_target


def init(learner: byol.Learner, seed: int, batch: byol.Batch) -> byol.State:
    """As `byol.init`, with a target network of random weights of its own."""
    state = byol.init(learner, seed, batch)
    params, stats = draw(learner, jax.random.fold_in(jax.random.key(seed), TARGET_KEY), batch)
    return state._replace(target_params=params, target_stats=stats)


def draw(learner: byol.Learner, key: jax.Array, batch: byol.Batch) -> tuple[Tree, Tree]:
    """Random parameters and initial statistics of the target network alone.

    Args:
      learner: its target network may differ from the online network.
      key: a PRNG key.
      batch: at least two examples; only their shapes and dtypes matter.
    """
    variables = byol.init_network(learner, learner.target, key, batch)
    return variables["params"], variables.get("batch_stats", {})
