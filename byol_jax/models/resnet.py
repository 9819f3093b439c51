"""ResNets, in flax.linen.

He et al. 2015 (arXiv 1512.03385), with the stride of a bottleneck in its 3x3 convolution ("v1.5"),
as in torchvision and in the authors' code. Parameters and batch-norm statistics are float32;
`dtype` is what convolutions compute in.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from byol_jax.models.layers import BatchNorm


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and -34)."""

    channels: int
    stride: int
    conv: Any
    norm: Any
    zero_init_scale: bool
    project: bool = False
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, h, w, in) -> (batch, h / stride, w / stride, channels)."""
        residual = self.conv(self.channels, 3, self.stride, name="conv1")(x)
        residual = nn.relu(self.norm(name="bn1")(residual))
        residual = self.conv(self.channels, 3, 1, name="conv2")(residual)
        residual = self.norm(name="bn2", scale_init=last_scale(self.zero_init_scale))(residual)
        return nn.relu(shortcut(self, x, self.channels) + residual)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (ResNet-50 and deeper)."""

    channels: int
    stride: int
    conv: Any
    norm: Any
    zero_init_scale: bool
    project: bool = False
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, h, w, in) -> (batch, h / stride, w / stride, 4 channels)."""
        residual = self.conv(self.channels, 1, 1, name="conv1")(x)
        residual = nn.relu(self.norm(name="bn1")(residual))
        residual = self.conv(self.channels, 3, self.stride, name="conv2")(residual)
        residual = nn.relu(self.norm(name="bn2")(residual))
        residual = self.conv(4 * self.channels, 1, 1, name="conv3")(residual)
        residual = self.norm(name="bn3", scale_init=last_scale(self.zero_init_scale))(residual)
        return nn.relu(shortcut(self, x, 4 * self.channels) + residual)


def last_scale(zero: bool) -> nn.initializers.Initializer:
    """Initial scale of a block's last norm; with zero the block starts as its shortcut."""
    return nn.initializers.zeros if zero else nn.initializers.ones


def shortcut(block: BasicBlock | Bottleneck, x: jax.Array, channels: int) -> jax.Array:
    """The input of a block, projected where its shape differs from the output's or on request."""
    if block.stride == 1 and x.shape[-1] == channels and not block.project:
        return x
    x = block.conv(channels, 1, block.stride, name="downsample_conv")(x)
    return block.norm(name="downsample_bn")(x)


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
    """

    stage_sizes: Sequence[int]
    block: type[BasicBlock] | type[Bottleneck]
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

    def __post_init__(self):
        """Raises ValueError unless every convolution has channels."""
        stages, count = tuple(self.stage_channels), len(self.stage_sizes)
        if len(stages) != count or not all(isinstance(n, int) for n in stages):
            raise ValueError(
                f"stage_channels={stages} must be {count} whole numbers, one for each stage."
            )
        for key, least in (("stem_channels", self.stem_channels), ("stage_channels", min(stages))):
            if least < 1:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1.")
        if round(min(self.stem_channels, *stages) * self.width_multiplier) < 1:
            raise ValueError(f"width_multiplier={self.width_multiplier:g} leaves no channel.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Float (batch, height, width, channels) -> float32 (batch, features)."""
        conv = partial(conv2d, padding=self.padding, dtype=self.dtype)
        norm = partial(
            BatchNorm,
            use_running_average=not train,
            axis_name=self.axis_name,
            dtype=self.dtype,
        )
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
                    zero_init_scale=self.zero_init_scale,
                    project=self.first_shortcut and block == 0,
                    name=f"layer{stage + 1}_{block}",
                )(x)
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def conv2d(
    channels: int, size: int, stride: int, *, padding: str, dtype: jnp.dtype, name: str
) -> nn.Conv:
    """A square convolution without bias, with the padding of `ResNet.padding`."""
    return nn.Conv(
        channels,
        (size, size),
        strides=(stride, stride),
        padding=(size - 1) // 2 if padding == "torch" else "SAME",
        use_bias=False,
        dtype=dtype,
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
