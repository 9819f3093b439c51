"""ConvNeXt, in flax.linen.

Liu et al. 2022, "A ConvNet for the 2020s" (arXiv 2201.03545), with their initial weights.
Parameters are float32; `dtype` is what convolutions and dense layers compute in. Layer norm and the
sums of the residual branches are float32.
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from byol_jax.models.layers import check_drop_path, drop_path_rate, layer_norm

STEM_STRIDE = 4
MAX_BLOCKS = 100  # of a stage: each takes time to compile
LAYER_SCALE = 1e-6  # initial factor of each residual branch
MLP_RATIO = 4  # of the hidden layer of a block to its channels
initial_kernel = nn.initializers.normal(0.02)  # theirs is truncated at 2, which never occurs


class ConvNeXtBlock(nn.Module):
    """x + scale * mlp(norm(depthwise convolution(x))).

    Attributes:
      conv: makes a convolution, from the arguments of `nn.Conv`.
      drop_path: probability that the residual branch of an example is left out (arXiv 1603.09382).
      train: leave branches out.
      dtype: what the dense layers compute in.
    """

    conv: Callable
    drop_path: float
    train: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Float32 (batch, h, w, channels) -> the same."""
        channels = x.shape[-1]
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=initial_kernel)
        y = self.conv(channels, (7, 7), padding=3, feature_group_count=channels, name="conv")(x)
        y = dense(MLP_RATIO * channels, name="dense1")(layer_norm(name="norm")(y))
        y = dense(channels, name="dense2")(nn.gelu(y, approximate=False))
        initial = nn.initializers.constant(LAYER_SCALE)
        y = y * self.param("layer_scale", initial, (channels,), jnp.float32)
        drop = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3), deterministic=not self.train)
        return x + drop(y)


class ConvNeXt(nn.Module):
    """A ConvNeXt up to and including the norm after the global average pool.

    Attributes:
      stage_sizes: blocks in each stage; every stage but the first halves height and width.
      stage_channels: of each stage.
      drop_path: probability that the residual branch of the last block is left out; those of the
        others rise linearly from 0 at the first.
      remat: keep only the input of each block for the backward pass, which recomputes the rest
        (arXiv 1604.06174).
      dtype: what convolutions and dense layers compute in.
      convolution: computes convolutions, a function like `jax.lax.conv_general_dilated`.
    """

    stage_sizes: Sequence[int] = (3, 3, 9, 3)
    stage_channels: Sequence[int] = (96, 192, 384, 768)
    drop_path: float = 0.0
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    convolution: Callable = jax.lax.conv_general_dilated

    def __post_init__(self):
        """Raises ValueError for a setting that cannot work."""
        for name in ("stage_sizes", "stage_channels"):
            values = tuple(getattr(self, name))
            if not values or not all(isinstance(n, int) and n >= 1 for n in values):
                raise ValueError(f"{name}={values} must be whole numbers of at least 1.")
        if max(self.stage_sizes) > MAX_BLOCKS:
            raise ValueError(
                f"stage_sizes={tuple(self.stage_sizes)} must be at most {MAX_BLOCKS} each."
            )
        if len(self.stage_channels) != len(self.stage_sizes):
            raise ValueError(
                f"stage_channels={tuple(self.stage_channels)} must be {len(self.stage_sizes)} "
                "numbers, one for each stage."
            )
        check_drop_path(self.drop_path)
        super().__post_init__()

    def check_image_size(self, height: int, width: int) -> None:
        """Raises ValueError for an image of which the strides leave nothing."""
        smallest = STEM_STRIDE * 2 ** (len(self.stage_sizes) - 1)
        if min(height, width) < smallest:
            raise ValueError(
                f"stage_sizes={tuple(self.stage_sizes)} needs images of at least {smallest} x "
                f"{smallest} pixels, not {height} x {width}: choose larger images or fewer stages."
            )

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Float (batch, height, width, channels) -> float32 (batch, features)."""
        self.check_image_size(*x.shape[1:3])
        conv = partial(
            nn.Conv,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=initial_kernel,
            conv_general_dilated=self.convolution,
        )
        make_block = nn.remat(ConvNeXtBlock) if self.remat else ConvNeXtBlock
        depth, done = sum(self.stage_sizes), 0
        stages = zip(self.stage_sizes, self.stage_channels, strict=True)
        for stage, (blocks, channels) in enumerate(stages, start=1):
            if stage == 1:
                size = (STEM_STRIDE, STEM_STRIDE)
                x = conv(channels, size, strides=size, name="stem_conv")(x)
                x = layer_norm(name="stem_norm")(x)
            else:
                x = layer_norm(name=f"downsample{stage}_norm")(x)
                x = conv(channels, (2, 2), strides=(2, 2), name=f"downsample{stage}_conv")(x)
            x = x.astype(jnp.float32)
            for block in range(blocks):
                rate = drop_path_rate(self.drop_path, done, depth)
                name = f"layer{stage}_{block}"
                x = make_block(conv, rate, train, self.dtype, name=name)(x)
                done += 1
            self.sow("intermediates", f"layer{stage}", x)
        self.sow("intermediates", "features", x)
        return layer_norm(name="norm")(jnp.mean(x, axis=(1, 2)))


ConvNeXtT = ConvNeXt
ConvNeXtS = partial(ConvNeXt, stage_sizes=(3, 3, 27, 3))
