"""The encoder of BYOL-A: convolutions, then dense layers for each frame, and a temporal pooling.

Versions 1 (arXiv 2103.06695, section III-D: three convolutions, 2048 features) and 2 (arXiv
2204.07402, section III-D: two convolutions, whose outputs are among the 3072 features). Parameters
are float32.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from byol_jax.models.layers import BatchNorm


class AudioNTT(nn.Module):
    """BYOL-A's encoder of log-mel spectrograms; version 1 by default.

    Attributes:
      convolutions: blocks of a 3x3 convolution, batch norm, ReLU and a max-pool of 2; 3, or in
        version 2 2.
      width: channels of each convolution.
      hidden: of the first dense layer of a frame.
      features: of the embedding; 2048, or in version 2 3072.
      stack: whether the convolutions' outputs for a frame are among its features (version 2).
      dropout: after the first dense layer.
      norm_views: normalise the batch of views, without a scale or an offset: BYOL-A's second
        normalisation. In evaluation by running averages.
      dtype: what convolutions and dense layers compute in.
      axis_name: mapped axis over which batch statistics are averaged; None for one replica.
      convolution: computes convolutions, a function like `jax.lax.conv_general_dilated`.
    """

    convolutions: int = 3
    width: int = 64
    hidden: int = 2048
    features: int = 2048
    stack: bool = False
    dropout: float = 0.3
    norm_views: bool = True
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    convolution: Callable = jax.lax.conv_general_dilated

    def __post_init__(self):
        """Raises ValueError for a number out of its range."""
        for key in ("convolutions", "width", "hidden", "features"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout:g} must be at least 0 and below 1.")
        super().__post_init__()

    def check_image_size(self, height: int, width: int) -> None:
        """Raises ValueError: it takes no images."""
        raise ValueError("name='audio_ntt' takes spectrograms, not images: choose byol_a.")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Float (batch, mels, frames, 1) -> float32 (batch, features)."""
        if x.ndim != 4 or x.shape[-1] != 1:
            raise ValueError(f"a spectrogram has the shape (mels, frames, 1), not {x.shape[1:]}.")
        smallest = 2**self.convolutions
        if min(x.shape[1:3]) < smallest:
            raise ValueError(
                f"convolutions={self.convolutions} needs {smallest} mels and frames, not "
                f"{x.shape[1:3]}."
            )
        if self.norm_views:
            norm = BatchNorm(not train, self.axis_name, learned=False, name="norm_views")
            x = norm(x)
        x = x.astype(self.dtype)
        for layer in range(1, self.convolutions + 1):
            x = nn.Conv(
                self.width,
                (3, 3),
                padding=1,
                dtype=self.dtype,
                conv_general_dilated=self.convolution,
                name=f"conv{layer}",
            )(x)
            x = nn.relu(BatchNorm(not train, self.axis_name, name=f"bn{layer}")(x))
            x = nn.max_pool(x.astype(self.dtype), (2, 2), (2, 2))
            self.sow("intermediates", f"layer{layer}", x)
        self.sow("intermediates", "features", x)
        x = x.swapaxes(1, 2)
        batch, frames, mels, channels = x.shape
        # Frames merged into the batch: dropout draws by example (dropout_by_position).
        x = x.reshape(batch * frames, mels * channels)
        size = self.features - (x.shape[1] if self.stack else 0)
        if size < 1:
            raise ValueError(f"features={self.features} must be above {x.shape[1]} with stack.")
        h = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="dense1")(x))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = nn.relu(nn.Dense(size, dtype=self.dtype, name="dense2")(h))
        if self.stack:
            h = jnp.concatenate([x, h], axis=1)
        h = h.reshape(batch, frames, -1).astype(jnp.float32)
        return jnp.max(h, axis=1) + jnp.mean(h, axis=1)
