"""NaN and infinity in an update: noticed at every step, then the end of the run, or left out."""

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
    """`byol.update`, and whether what it computed is finite.

    Args:
      learner: as there.
      state: as there.
      batch: as there.
      skip: where it is not, keep all of the state but what counts updates (its step, and the
        optimiser's counts), so that the data and the schedules go on.

    Returns:
      State, metrics, and whether loss, gradient and parameters are finite, bool ().
    """
    new, metrics = byol.update(learner, state, batch)
    finite = jnp.isfinite(jnp.stack([metrics[key] for key in WATCHED])).all()
    if skip:
        new = jax.tree.map(
            lambda new, old: (
                new
                if jnp.issubdtype(new.dtype, jnp.integer)  # a count
                else jnp.where(finite, new, old)
            ),
            new,
            state,
        )
    return new, metrics, finite


class NonFiniteGuard:
    """Follows the updates of a run, every one of them in turn.

    Attributes:
      skipped_in_a_row: updates left out up to now, with none between them that was not.
    """

    def __init__(self, config: ConfigDict, skipped_in_a_row: int = 0):
        self._config = config
        self.skipped_in_a_row = skipped_in_a_row

    def check(
        self, step: int, metrics: byol.Metrics, finite: bool, last_good: Callable[[], int | None]
    ) -> str | None:
        """Takes the metrics of an update; returns a line to say, if there is one.

        Args:
          step: which update it was.
          metrics: of `update` above, on this host.
          finite: whether they are all finite.
          last_good: returns the step of the newest checkpoint, or None; asked when it is over.

        Raises:
          UserError: the update was not finite, and is not to be left out, or too many were.
        """
        if finite:
            self.skipped_in_a_row = 0
            return None
        key, value = next((k, v) for k in WATCHED if not jnp.isfinite(v := metrics[k]))
        what = f"The {key.replace('_', ' ')} at step {step} is {float(value)}"
        limit = self._config.max_skipped_updates
        if self._config.on_nonfinite == "skip":
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row <= limit:
                return f"{what}: the update was skipped ({self.skipped_in_a_row} in a row)."
            what += f", and {limit} updates before it were skipped (config.max_skipped_updates)"
        kept, checkpoint = "no checkpoint had been saved", last_good()
        if checkpoint is not None:
            kept = f"the checkpoint of step {checkpoint} is good and was kept"
        others = "" if self._config.dtype == "float32" else ", or config.dtype=float32,"
        skip = (
            ""
            if self._config.on_nonfinite == "skip"
            else ("; or, if it is a rare one, go on in this one with --config.on_nonfinite=skip")
        )
        raise UserError(
            f"{what}; {kept}. Try a lower config.optimizer.base_learning_rate, a longer "
            f"config.optimizer.warmup_epochs{others} in a new --workdir{skip}."
        )
