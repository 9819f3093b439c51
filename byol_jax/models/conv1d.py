"""Encoders of signals: convolutions along time, and dense layers for numbers without an order.

`Conv1D` is the fully convolutional network of Wang et al. 2016, "Time series classification from
scratch with deep neural networks: a strong baseline" (arXiv 1611.06455, figure 1b), with strides
as an option. Parameters are float32.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from byol_jax.models.layers import BatchNorm


class Conv1D(nn.Module):
    """Convolutions with batch norm and ReLU, and the mean over time.

    Attributes:
      channels: of each convolution; those of the last are the features.
      kernel_sizes: of each convolution, in samples.
      strides: of each convolution, in samples.
      dtype: what the convolutions compute in.
      axis_name: mapped axis over which batch statistics are averaged; None for one replica.
      convolution: computes convolutions, a function like `jax.lax.conv_general_dilated`.
    """

    channels: Sequence[int] = (128, 256, 128)
    kernel_sizes: Sequence[int] = (8, 5, 3)
    strides: Sequence[int] = (1, 1, 1)
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    convolution: Callable = jax.lax.conv_general_dilated

    def __post_init__(self):
        """Raises ValueError unless every convolution has channels, a kernel size and a stride."""
        for key in ("channels", "kernel_sizes", "strides"):
            numbers = tuple(getattr(self, key))
            if not numbers or not all(isinstance(n, int) and n >= 1 for n in numbers):
                raise ValueError(f"{key}={numbers} must be whole numbers of at least 1.")
            if len(numbers) != len(self.channels):
                raise ValueError(f"{key}={numbers} must be as many as channels={self.channels}.")
        super().__post_init__()

    def check_image_size(self, height: int, width: int) -> None:
        """Raises ValueError: it takes no images."""
        raise ValueError("name='conv1d' takes signals, not images: choose a preset of signals.")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Float (batch, time, channels) -> float32 (batch, features)."""
        if x.ndim != 3:
            raise ValueError(f"it takes (time, channels), not {x.shape[1:]}: add an axis")
        x = x[:, None].astype(self.dtype)  # images of one row, which oneDNN convolves
        layers = zip(self.channels, self.kernel_sizes, self.strides, strict=True)
        for layer, (channels, size, stride) in enumerate(layers, start=1):
            x = nn.Conv(
                channels,
                (1, size),
                (1, stride),
                padding=[(0, 0), ((size - 1) // 2, size // 2)],
                use_bias=False,
                dtype=self.dtype,
                conv_general_dilated=self.convolution,
                name=f"conv{layer}",
            )(x)
            x = nn.relu(BatchNorm(not train, self.axis_name, name=f"bn{layer}")(x))
            x = x.astype(self.dtype)
            self.sow("intermediates", f"layer{layer}", x)
        self.sow("intermediates", "features", x)
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


class DenseEncoder(nn.Module):
    """Dense layers with batch norm and ReLU, on all numbers of an example.

    Attributes:
      widths: of each layer; that of the last is the number of features.
      dtype: what the layers compute in.
      axis_name: as of `Conv1D`.
    """

    widths: Sequence[int] = (256, 256)
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    def __post_init__(self):
        """Raises ValueError unless every layer has a width."""
        widths = tuple(self.widths)
        if not widths or not all(isinstance(n, int) and n >= 1 for n in widths):
            raise ValueError(f"widths={widths} must be whole numbers of at least 1.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Float (batch, ...) -> float32 (batch, features)."""
        x = x.reshape(x.shape[0], -1)
        for layer, width in enumerate(self.widths, start=1):
            x = nn.Dense(width, use_bias=False, dtype=self.dtype, name=f"dense{layer}")(x)
            x = nn.relu(BatchNorm(not train, self.axis_name, name=f"bn{layer}")(x))
        return x.astype(jnp.float32)
