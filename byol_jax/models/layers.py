"""Layers that encoders share, and the MLP heads of BYOL, in flax.linen.

Parameters are float32; `dtype` is what dense layers compute in. Batch-norm statistics are float32
whatever `dtype` is.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """Batch norm (arXiv 1502.03167) whose running averages hold nothing of their initial values.

    As in the authors' implementation: after n updates the average is the exponential one with
    weights that sum to one,

        average <- average + (1 - decay) / (1 - decay^n) (batch - average),

    where Flax's own keeps decay^n of the zeros and ones that it started from, which makes
    evaluation in the first dozens of steps another network.

    Attributes:
      use_running_average: normalise by the running averages, and leave them (evaluation).
      axis_name: mapped axis over which batch statistics are averaged; None for one replica.
      dtype: of the result; statistics and the normalisation itself are float32.
      scale_init: initial scale.
      decay: of the running averages; .9 in the authors' implementation.
      epsilon: added to the variance.
    """

    use_running_average: bool
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    decay: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises (batch, ..., channels) over all axes but the last."""
        shape = x.shape[-1:]
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        # Updates so far. A float, as replicas average all statistics.
        count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.float32)
        if self.use_running_average:
            mean, var = running_mean.value, running_var.value
        else:
            mean, var = self.moments(x)
            if not self.is_initializing():
                count.value += 1
                weight = (1 - self.decay) / (1 - self.decay**count.value)
                running_mean.value += weight * (mean - running_mean.value)
                running_var.value += weight * (var - running_var.value)
        # As x a + b: the backward pass needs x itself, which is kept in any case, where that of
        # (x - mean) a would keep a copy of every activation besides, and in float32.
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
      output_size: of the last.
      layers: dense layers, at least 1; 2 in the paper, whose appendix varies it.
      dtype: what the dense layers compute in.
      axis_name: mapped axis over which batch statistics are averaged; None for one replica.
    """

    hidden_size: int = 4096
    output_size: int = 256
    layers: int = 2
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(batch, features) -> (batch, output_size)."""
        for layer in range(1, self.layers):
            x = nn.Dense(self.hidden_size, dtype=self.dtype, name=f"dense{layer}")(x)
            # Normalised in float32 even when the dense layers compute in bfloat16.
            x = BatchNorm(not train, self.axis_name, name=f"bn{layer}")(x)
            x = nn.relu(x)
        last = f"dense{self.layers}"
        return nn.Dense(self.output_size, use_bias=False, dtype=self.dtype, name=last)(x)


@contextlib.contextmanager
def dropout_by_position(positions: jax.Array) -> Iterator[None]:
    """Within this context `nn.Dropout` draws each row's mask from the row's position.

    So the masks depend neither on the number of devices nor on that of micro-batches. Drop path
    (stochastic depth) is `nn.Dropout` with `broadcast_dims`. Other modules that draw numbers get
    the module's own key, which is the same on every replica.

    Args:
      positions: int32 (batch,), position of each row in the global batch.
    """

    def interceptor(
        call: Callable[..., Any], args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        is_dropout = isinstance(module, nn.Dropout) and context.method_name == "__call__"
        if not is_dropout or len(args[0]) != len(positions):
            return call(*args, **kwargs)
        key = module.make_rng(module.rng_collection)
        keys = jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)
        rows, *rest = args
        return jax.vmap(lambda row, key: call(row[None], *rest, **kwargs, rng=key)[0])(rows, keys)

    with nn.intercept_methods(interceptor):
        yield
