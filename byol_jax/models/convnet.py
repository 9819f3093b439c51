"""The small convolutional network of many BYOL tutorials, in flax.linen.

Three times a 3x3 convolution, ReLU and a max-pool that halves height and width, then a dense layer
of 1024. It has no norm: the batch norm of the heads is the only one. Parameters are float32;
`dtype` is what convolutions and the dense layer compute in.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp


class ConvNet(nn.Module):
    """Convolutions with max-pools, and a dense layer over what they leave.

    The dense layer fixes the image size: it has a weight for each position and channel.

    Attributes:
      channels: of each convolution.
      features: of the dense layer, and of the embedding.
      dtype: what convolutions and the dense layer compute in.
      convolution: computes convolutions, a function like `jax.lax.conv_general_dilated`.
    """

    channels: Sequence[int] = (32, 64, 128)
    features: int = 1024
    dtype: jnp.dtype = jnp.float32
    convolution: Callable = jax.lax.conv_general_dilated

    def __post_init__(self):
        """Raises ValueError unless every layer has channels."""
        channels = tuple(self.channels)
        if not all(isinstance(n, int) and n >= 1 for n in channels):
            raise ValueError(f"channels={channels} must be whole numbers of at least 1.")
        if self.features < 1:
            raise ValueError(f"features={self.features} must be at least 1.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Float (batch, height, width, channels) -> float32 (batch, features)."""
        x = x.astype(self.dtype)
        for layer, channels in enumerate(self.channels):
            x = nn.Conv(
                channels,
                (3, 3),
                padding=1,
                dtype=self.dtype,
                conv_general_dilated=self.convolution,
                name=f"conv{layer + 1}",
            )(x)
            x = nn.max_pool(nn.relu(x), window_shape=(2, 2), strides=(2, 2))
        x = nn.Dense(self.features, dtype=self.dtype, name="dense")(x.reshape(len(x), -1))
        return nn.relu(x).astype(jnp.float32)
