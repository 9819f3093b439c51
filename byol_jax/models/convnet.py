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
        if not channels or not all(isinstance(n, int) and n >= 1 for n in channels):
            raise ValueError(f"channels={channels} must be whole numbers of at least 1.")
        if self.features < 1:
            raise ValueError(f"features={self.features} must be at least 1.")
        super().__post_init__()

    def check_image_size(self, height: int, width: int) -> None:
        """Raises ValueError for an image of which the max-pools leave nothing."""
        smallest = 2 ** len(self.channels)
        if min(height, width) < smallest:
            raise ValueError(
                f"channels={tuple(self.channels)} needs images of at least {smallest} x {smallest} "
                f"pixels, not {height} x {width}: choose larger images or fewer convolutions."
            )

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Float (batch, height, width, channels) -> float32 (batch, features)."""
        self.check_image_size(*x.shape[1:3])
        x = x.astype(self.dtype)
        for layer, channels in enumerate(self.channels, start=1):
            x = nn.Conv(
                channels,
                (3, 3),
                padding=1,
                dtype=self.dtype,
                conv_general_dilated=self.convolution,
                name=f"conv{layer}",
            )(x)
            x = nn.max_pool(nn.relu(x), window_shape=(2, 2), strides=(2, 2))
            self.sow("intermediates", f"layer{layer}", x)
        self.sow("intermediates", "features", x)
        x = nn.Dense(self.features, dtype=self.dtype, name="dense")(x.reshape(x.shape[0], -1))
        return nn.relu(x).astype(jnp.float32)
