"""NaN and infinity in an update, checked at every step: stop the run, or skip the update."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from byol_jax import byol
from byol_jax.errors import UserError

WATCHED = ("loss", "gradient_norm", "parameter_norm")


def update(
    learner: byol.Learner, state: byol.State, batch: byol.Batch, *, skip: bool
) -> tuple[byol.State, byol.Metrics, jax.Array]:
    """`byol.update`, and whether its result is finite.

    With `skip`, a state that is not finite is replaced by the one before, except for its counts of
    updates (the step and the optimiser's), so that data and schedules advance, and for a copy or
    draw of the target network that is due.

    Returns:
      State, metrics, and whether loss, gradient and parameters are finite, bool ().
    """
    new, metrics = byol.update(learner, state, batch)
    finite = jnp.isfinite(jnp.stack([metrics[key] for key in WATCHED])).all()

    def select(new: jax.Array, old: jax.Array) -> jax.Array:
        is_count = jnp.issubdtype(new.dtype, jnp.integer)
        return new if is_count else jnp.where(finite, new, old)

    if skip:
        if learner.next_target is not None:
            target_params = learner.next_target(state, state.online_params)
            state = state._replace(target_params=target_params)
        new = jax.tree.map(select, new, state)
    return new, metrics, finite


@functools.cache  # the same function for every run, which is then traced once
def step_fn(skip: bool) -> Callable[..., tuple]:
    """`update` with its `skip`, for `parallel.update`."""
    return functools.partial(update, skip=skip)


class NonFiniteGuard:
    """Checks every update of a run, in order.

    Attributes:
      skipped_in_a_row: the number of updates skipped since the last one that was finite.
    """

    def __init__(self, config: ConfigDict, skipped_in_a_row: int = 0):
        self._config = config
        self.skipped_in_a_row = skipped_in_a_row

    def check(
        self,
        step: int,
        metrics: byol.Metrics,
        is_finite: bool,
        last_checkpoint: Callable[[], int | None],
    ) -> str | None:
        """Checks one update; returns a line to log if it was skipped.

        Args:
          step: number of the update.
          metrics: of this update, on the host.
          is_finite: the third result of `update`.
          last_checkpoint: returns the step of the newest checkpoint; called only to end the run.

        Raises:
          UserError: the update was not finite and skipping is off, or too many were skipped.
        """
        if is_finite:
            self.skipped_in_a_row = 0
            return None
        key, value = next((k, v) for k in WATCHED if not jnp.isfinite(v := metrics[k]))
        problem = f"The {key.replace('_', ' ')} at step {step} is {float(value)}"
        limit, advice = self._config.max_skipped_updates, ""
        if self._config.on_nonfinite == "skip":
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row <= limit:
                return f"{problem}: the update was skipped ({self.skipped_in_a_row} in a row)."
            problem += f", and {limit} updates before it were skipped (config.max_skipped_updates)"
        else:
            advice = "; or, if it is rare, resume this run with --config.on_nonfinite=skip"
        saved, checkpoint = "no checkpoint was saved", last_checkpoint()
        if checkpoint is not None:
            saved = f"the checkpoint of step {checkpoint} is good and was kept"
        dtype = "" if self._config.dtype == "float32" else ", or config.dtype=float32,"
        raise UserError(
            f"{problem}; {saved}. Try a lower config.optimizer.base_learning_rate, a longer "
            f"config.optimizer.warmup_epochs{dtype} in a new --workdir{advice}."
        )
