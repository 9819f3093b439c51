"""Encoders of video: the Slow pathway of SlowFast (arXiv 1812.03982, section 3.1 and table 1).

ResNets on every frame, whose last two stages also look at the frames before and after: the first
convolution of each of their blocks is 3 frames long. Nothing shortens the time. So all but that is
a ResNet with the frames merged into the batch, and a convolution over 3 frames is one over images
that have the channels of all three. On a CPU oneDNN computes it; XLA's convolution in 3 dimensions
took 1.5 to 2.6 times as long on two cores.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from byol_jax.models.resnet import BasicBlock, Bottleneck, ResNet

TEMPORAL_STAGES = 2  # the last ones


class Slow(ResNet):
    """A residual network of clips, up to and including the global average pool.

    Attributes: as of `ResNet`. Of a kernel with 3 x in channels, the first third belongs to the
    frame before, and the last to the frame after; beyond the ends of a clip all is 0.
    """

    of_clips: ClassVar[bool] = True

    def check_image_size(self, height: int, width: int) -> None:
        """Raises ValueError: it takes no images."""
        raise ValueError("name is of an encoder of video, not of images: choose rho_byol.")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Float (batch, frames, height, width, channels) -> float32 (batch, features)."""
        if x.ndim != 5:
            raise ValueError(
                f"a clip has the shape (frames, height, width, channels), not {x.shape[1:]}."
            )
        batch, frames = x.shape[:2]

        def first_conv(stage: int, conv: Callable) -> Callable:
            is_temporal = stage >= len(self.stage_sizes) - TEMPORAL_STAGES
            return partial(_temporal, conv, frames) if is_temporal else conv

        features = self._features(x.reshape(batch * frames, *x.shape[2:]), train, first_conv)
        return jnp.mean(features.reshape(batch, frames, features.shape[-1]), axis=1)


def _temporal(conv: Callable, frames: int, *args: int, name: str) -> Callable:
    """A convolution as `conv` makes it, over 3 frames."""
    over_all = conv(*args, name=name)
    return lambda x: over_all(with_neighbours(x, frames))


def with_neighbours(x: jax.Array, frames: int) -> jax.Array:
    """The channels of the frame before, of each frame, and of the frame after.

    Args:
      x: (batch * frames, height, width, channels).
      frames: of a clip.

    Returns:
      (batch * frames, height, width, 3 * channels), 0 beyond the ends of a clip.
    """
    clips = x.reshape(x.shape[0] // frames, frames, *x.shape[1:])
    padded = jnp.pad(clips, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    joined = jnp.concatenate([padded[:, i : i + frames] for i in range(3)], axis=-1)
    return joined.reshape(*x.shape[:-1], 3 * x.shape[-1])


SlowR18 = partial(Slow, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
SlowR50 = partial(Slow, stage_sizes=(3, 4, 6, 3), block=Bottleneck)
