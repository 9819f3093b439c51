"""Layers that encoders share, and the MLP heads of BYOL, in flax.linen.

Parameters and batch-norm statistics are float32; `dtype` is what dense layers compute in.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

_DECAY = contextvars.ContextVar[float]("decay")  # of `batch_norm_decay`, inside of it


@contextlib.contextmanager
def batch_norm_decay(decay: float) -> Iterator[None]:
    """Within this context the running averages of every `BatchNorm` decay by this, in [0, 1)."""
    token = _DECAY.set(decay)
    try:
        yield
    finally:
        _DECAY.reset(token)


class BatchNorm(nn.Module):
    """Batch norm (arXiv 1502.03167) whose running averages do not depend on their initial values.

    As in the authors' implementation, the n-th update is

        average <- average + (1 - decay) / (1 - decay^n) (batch - average),

    an exponential average whose weights sum to one. Flax's own keeps decay^n of its initial zeros
    and ones, which distorts evaluation in the first dozens of steps.

    Attributes:
      use_running_average: normalise by the running averages and do not update them (evaluation).
      axis_name: mapped axis over which batch statistics are averaged; None for one replica.
      dtype: of the result; statistics and the normalisation itself are float32.
      scale_init: initial scale.
      decay: of the running averages, outside of `batch_norm_decay`; .9 in the authors'
        implementation.
      epsilon: added to the variance.
      learned: whether there is a scale and an offset.
    """

    use_running_average: bool
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    decay: float = 0.9
    epsilon: float = 1e-5
    learned: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises (batch, ..., channels) over all axes but the last."""
        shape = x.shape[-1:]
        scale, bias = jnp.ones(shape), jnp.zeros(shape)
        if self.learned:
            scale = self.param("scale", self.scale_init, shape, jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        # Updates so far: a float, because replicas average all statistics.
        count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.float32)
        if self.use_running_average:
            mean, var = running_mean.value, running_var.value
        else:
            mean, var = self.moments(x)
            if not self.is_initializing():
                count.value += 1
                decay = _DECAY.get(self.decay)
                weight = (1 - decay) / (1 - decay**count.value)
                running_mean.value += weight * (mean - running_mean.value)
                running_var.value += weight * (var - running_var.value)
        # As x a + b, whose backward pass needs only x, which is kept anyway; that of (x - mean) a
        # would also keep a float32 copy of every activation.
        factor = jax.lax.rsqrt(var + self.epsilon) * scale
        return (x * factor + (bias - mean * factor)).astype(self.dtype)

    def moments(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of each channel over the batch of all replicas."""
        x = x.astype(jnp.float32)
        axes = tuple(range(x.ndim - 1))
        moments = jnp.stack([jnp.mean(x, axes), jnp.mean(x * x, axes)])
        if self.axis_name is not None and not self.is_initializing():
            moments = jax.lax.pmean(moments, self.axis_name)
        mean, mean_of_squares = moments
        return mean, jnp.maximum(mean_of_squares - jnp.square(mean), 0)


class MLP(nn.Module):
    """Projector and predictor: Dense - BatchNorm - ReLU - Dense without bias (section 3.3).

    Nothing follows the last layer, neither norm nor activation. Sizes of the paper: 4096, 256.

    Attributes:
      hidden_size: of all layers but the last.
      output_size: of the last; None: that of the input.
      layers: dense layers; 2 in the paper, whose appendix varies it. 0: the identity.
      dtype: what the dense layers compute in.
      axis_name: mapped axis over which batch statistics are averaged; None for one replica.
    """

    hidden_size: int = 4096
    output_size: int | None = 256
    layers: int = 2
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(batch, features) -> (batch, output_size)."""
        if not self.layers:
            return x
        output_size = self.output_size or x.shape[-1]
        for layer in range(1, self.layers):
            x = nn.Dense(self.hidden_size, dtype=self.dtype, name=f"dense{layer}")(x)
            # Normalised in float32 even when the dense layers compute in bfloat16.
            x = BatchNorm(not train, self.axis_name, name=f"bn{layer}")(x)
            x = nn.relu(x)
        last = f"dense{self.layers}"
        return nn.Dense(output_size, use_bias=False, dtype=self.dtype, name=last)(x)


# Of ViT and ConvNeXt, as in timm.
layer_norm = partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)


def check_drop_path(drop_path: float) -> None:
    """Raises ValueError unless this is a rate of drop path (arXiv 1603.09382)."""
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path={drop_path:g} must be at least 0 and below 1.")


def drop_path_rate(drop_path: float, block: int, depth: int) -> float:
    """The rate of a block: it rises linearly from 0 at the first to `drop_path` at the last."""
    return drop_path * block / max(1, depth - 1)


@contextlib.contextmanager
def dropout_by_position(positions: jax.Array) -> Iterator[None]:
    """Within this context `nn.Dropout` draws each example's mask from the example's position.

    So masks depend neither on the number of devices nor on that of micro-batches. It covers drop
    path (stochastic depth), which is `nn.Dropout` with `broadcast_dims` of all axes but the first.
    The input needs the batch as its first axis, alone or merged with axes that follow it, such as
    (batch * patches, channels). Any other input, a mask that all examples share
    (`broadcast_dims` with axis 0), and any other module use the module's own key, which is the same
    on every replica.

    Args:
      positions: int32 (batch,), position of each example in the global batch.
    """

    def dropout(
        module: nn.Dropout,
        call: Callable[..., jax.Array],
        inputs: jax.Array,
        deterministic: bool | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        is_identity = module.rate == 0 or module.deterministic or deterministic
        is_shared = 0 in module.broadcast_dims or -inputs.ndim in module.broadcast_dims
        if is_identity or is_shared or not inputs.ndim or len(inputs) % len(positions):
            return call(inputs, deterministic, rng)
        key = module.make_rng(module.rng_collection) if rng is None else rng
        keys = jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)
        shape = (len(positions), len(inputs) // len(positions), *inputs.shape[1:])
        masked = jax.vmap(lambda x, key: call(x, deterministic, key))(inputs.reshape(shape), keys)
        return masked.reshape(inputs.shape)

    def interceptor(
        call: Callable[..., Any], args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> Any:
        if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
            return dropout(context.module, call, *args, **kwargs)
        return call(*args, **kwargs)

    with nn.intercept_methods(interceptor):
        yield
