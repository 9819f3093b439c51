"""ResNets, in flax.linen.

He et al. 2015 (arXiv 1512.03385), with the stride of a bottleneck in its 3x3 convolution ("v1.5"),
as in torchvision and in the authors' code. Parameters and batch-norm statistics are float32;
`dtype` is what convolutions compute in.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from byol_jax.models.layers import BatchNorm


class Block(nn.Module):
    """A residual block: relu(x + residual(x)), with x projected where the shape changes.

    Attributes:
      channels: of the 3x3 convolutions.
      stride: divides height and width.
      conv: makes a convolution, from channels, size and stride.
      norm: makes a norm.
      last_norm: makes the last norm of the residual.
      first_conv: makes the first convolution of the residual; None: as the others.
      project: project x even where the shape does not change.
    """

    channels: int
    stride: int
    conv: Any
    norm: Any
    last_norm: Any
    first_conv: Any = None
    project: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, h, w, in) -> (batch, h / stride, w / stride, expansion * channels)."""
        residual = self.residual(x)
        channels = residual.shape[-1]
        if self.project or self.stride > 1 or x.shape[-1] != channels:
            x = self.conv(channels, 1, self.stride, name="downsample_conv")(x)
            x = self.norm(name="downsample_bn")(x)
        return nn.relu(x + residual)


class BasicBlock(Block):
    """Two 3x3 convolutions (ResNet-18 and -34)."""

    expansion = 1

    def residual(self, x: jax.Array) -> jax.Array:
        """What the block adds to its input."""
        x = (self.first_conv or self.conv)(self.channels, 3, self.stride, name="conv1")(x)
        x = nn.relu(self.norm(name="bn1")(x))
        x = self.conv(self.channels, 3, 1, name="conv2")(x)
        return self.last_norm(name="bn2")(x)


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions (ResNet-50 and deeper)."""

    expansion = 4

    def residual(self, x: jax.Array) -> jax.Array:
        """What the block adds to its input."""
        x = (self.first_conv or self.conv)(self.channels, 1, 1, name="conv1")(x)
        x = nn.relu(self.norm(name="bn1")(x))
        x = self.conv(self.channels, 3, self.stride, name="conv2")(x)
        x = nn.relu(self.norm(name="bn2")(x))
        x = self.conv(self.expansion * self.channels, 1, 1, name="conv3")(x)
        return self.last_norm(name="bn3")(x)


class ResNet(nn.Module):
    """A residual network up to and including the global average pool.

    Attributes:
      stage_sizes: blocks in each stage; every stage but the first halves height and width.
      block: BasicBlock or Bottleneck.
      stem_channels: of the first convolution.
      stage_channels: of each stage's 3x3 convolutions.
      width_multiplier: multiplies the channels of every convolution, including the stem's.
      stem: 'imagenet' (7x7 stride 2, 3x3 max-pool stride 2), 'cifar' (3x3 stride 1, no pool), or
        'strided' (3x3 stride 2, no pool: a quarter of the work of 'cifar', for small machines).
      padding: 'torch' (symmetric, as torchvision's weights expect) or 'same' (XLA's and
        TensorFlow's, as in the authors' code: with stride 2 the odd pixel goes to the end).
      first_shortcut: project the shortcut of the first stage even if its shape does not change, as
        the authors' ResNet-18 and -34 do; torchvision's do not.
      zero_init_scale: start the last norm of each block at scale 0 (arXiv 1706.02677).
      remat: keep only the input of each block for the backward pass, which recomputes the rest
        (arXiv 1604.06174): a third more work for much less memory. XLA's CPU backend undoes it,
        unless XLA_FLAGS has --xla_disable_hlo_passes=cse_barrier_expander.
      dtype: what convolutions compute in.
      axis_name: mapped axis over which batch statistics are averaged; None for one replica.
      convolution: computes convolutions, a function like `jax.lax.conv_general_dilated`.
    """

    stage_sizes: Sequence[int]
    block: type[Block]
    stem_channels: int = 64
    stage_channels: Sequence[int] = (64, 128, 256, 512)
    width_multiplier: float = 1.0
    stem: Literal["imagenet", "cifar", "strided"] = "imagenet"
    padding: Literal["torch", "same"] = "torch"
    first_shortcut: bool = False
    zero_init_scale: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    convolution: Callable = jax.lax.conv_general_dilated

    def __post_init__(self):
        """Raises ValueError unless every convolution has channels."""
        stages, count = tuple(self.stage_channels), len(self.stage_sizes)
        if len(stages) != count or not all(isinstance(n, int) for n in stages):
            raise ValueError(
                f"stage_channels={stages} must be {count} whole numbers, one for each stage."
            )
        if self.stem_channels < 1:
            raise ValueError(f"stem_channels={self.stem_channels} must be at least 1.")
        if min(stages) < 1:
            raise ValueError(f"stage_channels={stages} must be at least 1.")
        if round(min(self.stem_channels, *stages) * self.width_multiplier) < 1:
            raise ValueError(f"width_multiplier={self.width_multiplier:g} leaves no channel.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Float (batch, height, width, channels) -> float32 (batch, features)."""
        return self._features(x, train)

    def _features(self, x: jax.Array, train: bool, first_conv: Callable | None = None) -> jax.Array:
        """As `__call__`; `first_conv` makes a block's, from its stage and what makes others."""
        conv = partial(conv2d, padding=self.padding, dtype=self.dtype, convolution=self.convolution)
        norm = partial(BatchNorm, not train, self.axis_name, self.dtype)
        scale_init = nn.initializers.zeros if self.zero_init_scale else nn.initializers.ones
        stem_channels = round(self.stem_channels * self.width_multiplier)
        size, stride = {"imagenet": (7, 2), "cifar": (3, 1), "strided": (3, 2)}[self.stem]
        x = conv(stem_channels, size, stride, name="conv1")(x.astype(self.dtype))
        x = nn.relu(norm(name="bn1")(x))
        if self.stem == "imagenet":
            if self.padding == "torch":
                # Separate from the pool, whose padding jax2onnx (export/onnx.py) loses.
                x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
            pool_padding = "VALID" if self.padding == "torch" else "SAME"
            x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=pool_padding)
        make_block = nn.remat(self.block) if self.remat else self.block
        stages = zip(self.stage_sizes, self.stage_channels, strict=True)
        for stage, (blocks, channels) in enumerate(stages):
            for block in range(blocks):
                x = make_block(
                    channels=round(channels * self.width_multiplier),
                    stride=2 if stage > 0 and block == 0 else 1,
                    conv=conv,
                    norm=norm,
                    last_norm=partial(norm, scale_init=scale_init),
                    first_conv=first_conv and first_conv(stage, conv),
                    project=self.first_shortcut and block == 0,
                    name=f"layer{stage + 1}_{block}",
                )(x)
            self.sow("intermediates", f"layer{stage + 1}", x)
        self.sow("intermediates", "features", x)
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def conv2d(
    channels: int,
    size: int,
    stride: int,
    *,
    padding: str,
    dtype: jnp.dtype,
    convolution: Callable,
    name: str,
) -> nn.Conv:
    """A square convolution without bias, with the padding of `ResNet.padding`."""
    return nn.Conv(
        channels,
        (size, size),
        strides=(stride, stride),
        padding=(size - 1) // 2 if padding == "torch" else "SAME",
        use_bias=False,
        dtype=dtype,
        conv_general_dilated=convolution,
        name=name,
    )


ResNet10 = partial(ResNet, stage_sizes=(1, 1, 1, 1), block=BasicBlock)  # for small machines
ResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)
ResNet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck)
ResNet101 = partial(ResNet, stage_sizes=(3, 4, 23, 3), block=Bottleneck)
ResNet152 = partial(ResNet, stage_sizes=(3, 8, 36, 3), block=Bottleneck)
ResNet200 = partial(ResNet, stage_sizes=(3, 24, 36, 3), block=Bottleneck)
# The smallest of He et al.'s CIFAR networks (6n + 2 layers, n = 1): for tests and small machines.
ResNet8 = partial(
    ResNet,
    stage_sizes=(1, 1, 1),
    block=BasicBlock,
    stem_channels=16,
    stage_channels=(16, 32, 64),
)
