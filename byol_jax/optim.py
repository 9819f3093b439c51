"""LARS, AdamW and SGD; schedules of the learning rate and target decay; gradient accumulation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def is_adapted(params: optax.Params) -> optax.Params:
    """A tree of booleans: True for kernels, False for biases and the parameters of norms.

    The latter get neither weight decay nor, under LARS, adaptation (section 3.3 of the paper). The
    learned positions of a ViT count as biases, as in timm.
    """

    def kernel(path: tuple, leaf: jax.Array) -> bool:
        name = getattr(path[-1], "key", None) if path else None
        return leaf.ndim > 1 and name not in ("bias", "scale", "position_embedding")

    return jax.tree_util.tree_map_with_path(kernel, params)


def lars(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 1.5e-6,
    momentum: float = 0.9,
    trust_coefficient: float = 1e-3,
    clip: bool = False,
) -> optax.GradientTransformation:
    """m <- momentum m + eta |w| / |g + decay w| (g + decay w);  w <- w - learning_rate m.

    You et al. 2017 (arXiv 1708.03888). Unlike in `optax.lars`, the learning rate is applied after
    the momentum, as in the authors' code: a change of the rate acts on all of m at once.
    With `clip`, the trust ratio is that of `scale_by_clipped_trust_ratio`.
    """
    if clip:
        adapt = scale_by_clipped_trust_ratio(learning_rate, trust_coefficient)
    else:
        adapt = scale_by_trust_ratio(trust_coefficient)
    return optax.chain(
        optax.masked(optax.add_decayed_weights(weight_decay), is_adapted),
        optax.masked(adapt, is_adapted),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def scale_by_trust_ratio(trust_coefficient: float) -> optax.GradientTransformation:
    """g <- eta |w| / |g| g, or g itself where either norm is 0.

    The same numbers as `optax.scale_by_trust_ratio`, which computes every norm twice, the second
    time of a modified copy, for a derivative that is not needed here.
    """

    def scale(g: jax.Array, w: jax.Array) -> jax.Array:
        w_norm, g_norm = jnp.linalg.norm(w), jnp.linalg.norm(g)
        adapted = (w_norm > 0) & (g_norm > 0)
        return g * jnp.where(adapted, trust_coefficient * w_norm / jnp.where(adapted, g_norm, 1), 1)

    return optax.stateless_with_tree_map(scale)


def scale_by_clipped_trust_ratio(
    learning_rate: optax.ScalarOrSchedule, trust_coefficient: float
) -> optax.GradientTransformation:
    """g <- min(eta |w| / (|g| learning_rate), 1) g: SGD with steps of at most eta |w|.

    The clipped variant of LARS ("LARC") that recipes for small data sets use, with an eta about
    twenty times as large.
    """

    def init(params: optax.Params) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates, state: optax.ScaleByScheduleState, params: optax.Params
    ) -> tuple[optax.Updates, optax.ScaleByScheduleState]:
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate

        def scale(g: jax.Array, w: jax.Array) -> jax.Array:
            longest, length = trust_coefficient * jnp.linalg.norm(w), rate * jnp.linalg.norm(g)
            clipped = (longest > 0) & (length > longest)
            return g * jnp.where(clipped, longest / jnp.where(clipped, length, 1), 1)

        state = optax.ScaleByScheduleState(optax.safe_increment(state.count))
        return jax.tree.map(scale, updates, params), state

    return optax.GradientTransformation(init, update)


def adamw(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float = 1e-2
) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101), with no decay on biases and norms."""
    return optax.adamw(learning_rate, weight_decay=weight_decay, mask=is_adapted)


def sgd(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float = 5e-4, momentum: float = 0.9
) -> optax.GradientTransformation:
    """m <- momentum m + g + decay w;  w <- w - learning_rate m; no decay on biases and norms."""
    return optax.chain(
        optax.masked(optax.add_decayed_weights(weight_decay), is_adapted),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def freeze(
    optimizer: optax.GradientTransformation, *paths: tuple[str, ...]
) -> optax.GradientTransformation:
    """The optimizer without updates of the parameters below these paths; decay is one, too.

    Args:
      optimizer: of all parameters.
      *paths: of keys in the parameters, such as ("encoder", "patch_embedding").
    """

    def is_frozen(params: optax.Params) -> optax.Params:
        def below(path: tuple, _: jax.Array) -> bool:
            keys = tuple(getattr(key, "key", None) for key in path)
            return any(keys[: len(frozen)] == frozen for frozen in paths)

        return jax.tree_util.tree_map_with_path(below, params)

    return optax.chain(optimizer, optax.masked(optax.set_to_zero(), is_frozen))


def warmup_cosine(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear from 0 at step 0 to `peak` at `warmup_steps`, then half a cosine to 0 at the end."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total_steps, end_value=0.0)


def warmup_constant(
    peak: float, warmup_steps: int, cooldown_start: int, total_steps: int
) -> optax.Schedule:
    """Linear from 0 to `peak` at `warmup_steps`, constant, and a cool-down to 0 at the end.

    A run can be lengthened from the state at `cooldown_start`, as no step before it depends on the
    end. The cool-down is that of arXiv 2405.18392, section 3: 1 - sqrt(share of it that is done).
    """

    def rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warmup = jnp.minimum(step / max(1, warmup_steps), 1.0) if warmup_steps else 1.0
        done = (step - cooldown_start) / max(1, total_steps - cooldown_start)
        return peak * warmup * (1 - jnp.sqrt(jnp.clip(done, 0.0, 1.0)))

    return rate


def target_decay(base: float, total_steps: int) -> optax.Schedule:
    """tau_t = 1 - (1 - base) (cos(pi t / T) + 1) / 2, from `base` at 0 to 1 at T (section 3.3)."""

    def tau(step: jax.Array) -> jax.Array:
        progress = jnp.minimum(jnp.asarray(step, jnp.float32) / total_steps, 1.0)
        return 1 - (1 - base) * (jnp.cos(jnp.pi * progress) + 1) / 2

    return tau


def accumulate(
    grads_fn: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    batch: Any,
    steps: int,
    unroll: bool = False,
) -> tuple[Any, Any]:
    """Means over micro-batches, one after the other: only one needs memory for its activations.

    Batch norm sees one micro-batch at a time; `carry` passes its statistics from each to the next.

    Args:
      grads_fn: (carry, rows of the batch) -> new carry, and a tree to average, such as gradients.
      carry: of the first micro-batch.
      batch: a tree with the batch axis first in every leaf.
      steps: number of micro-batches, at least 1.
      unroll: unroll the loop. On CPUs XLA's convolutions are slow inside a loop (28 images/s
        against 540 unrolled).

    Returns:
      The last carry, and the means.
    """
    if steps == 1:
        return grads_fn(carry, batch)
    rows = micro_batches(batch, steps)
    _, shapes = jax.eval_shape(grads_fn, carry, jax.tree.map(lambda x: x[0], rows))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(carry_and_sums: tuple[Any, Any], rows: Any) -> tuple[tuple[Any, Any], None]:
        carry, sums = carry_and_sums
        carry, values = grads_fn(carry, rows)
        return (carry, jax.tree.map(jnp.add, sums, values)), None

    (carry, sums), _ = jax.lax.scan(add, (carry, zeros), rows, unroll=unroll)
    return carry, jax.tree.map(lambda x: x / steps, sums)


def micro_batches(batch: Any, count: int) -> Any:
    """Splits rows into `count` groups: (batch, ...) -> (count, batch / count, ...) in every leaf.

    Raises:
      ValueError: `count` does not divide the number of rows.
    """
    rows = len(jax.tree.leaves(batch)[0])
    if rows % count:
        raise ValueError(f"accum_steps={count} does not divide the {rows} rows of a replica.")
    return jax.tree.map(lambda x: x.reshape(count, rows // count, *x.shape[1:]), batch)
