"""An encoder of one's own, as `config.encoder.name=MODULE:CLASS` takes it: strided convolutions."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from byol_jax.models import BatchNorm


class Strided(nn.Module):
    """3 x 3 convolutions of stride 2, each with batch norm and ReLU, and the mean over the map.

    Attributes:
      channels: of each convolution.
      dtype: what they compute in; this and the next two are set by the trainer.
      axis_name: mapped axis over which batch statistics are averaged.
      convolution: computes them.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    convolution: Callable = jax.lax.conv_general_dilated

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Float (batch, height, width, channels) -> (batch, the last of `channels`)."""
        for channels in self.channels:
            conv = nn.Conv(
                channels,
                (3, 3),
                (2, 2),
                use_bias=False,
                dtype=self.dtype,
                conv_general_dilated=self.convolution,
            )
            x = nn.relu(BatchNorm(not train, self.axis_name, self.dtype)(conv(x)))
        self.sow("intermediates", "features", x)
        return x.mean((1, 2))
