"""Vision Transformers, in flax.linen.

Dosovitskiy et al. 2020 (arXiv 2010.11929), in the sizes of DeiT (arXiv 2012.12877). Initial
weights, fixed positions and the frozen patch embedding are those of MoCo v3 (arXiv 2104.02057, and
vits.py of its code). Parameters are float32; `dtype` is what matrix products and the patch
embedding compute in. Layer norm, softmax and the sums of the residual branches are float32.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.models.layers import check_drop_path, drop_path_rate, layer_norm

MLP_RATIO = 4  # of the hidden layer of a block to its width
MAX_DEPTH = 100  # each block takes time to compile
TEMPERATURE = 10_000  # longest wavelength of the fixed positions, over 2 pi


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Attributes:
      heads: of the attention.
      dropout: probability that a residual branch of an example is left out (drop path, arXiv
        1603.09382); with `shared` () that a number in it is.
      train: leave branches out.
      dtype: what matrix products compute in.
      shared: axes along which all numbers are left out together.
    """

    heads: int
    dropout: float
    train: bool
    dtype: jnp.dtype
    shared: Sequence[int] = (1, 2)

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Float32 (batch, tokens, width) -> the same.

        Args:
          x: the tokens.
          mask: bool (batch, 1, 1, tokens): which tokens are attended to; None: all.
        """
        width = x.shape[-1]
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
        drop = nn.Dropout(self.dropout, broadcast_dims=self.shared, deterministic=not self.train)

        # Query, key and value are three matrices, each with the initial range of its own shape.
        initial = uniform(width, width)
        qkv = dense(3 * width, kernel_init=initial, name="qkv")(layer_norm(name="norm1")(x))
        qkv = qkv.reshape(*x.shape[:2], 3, self.heads, width // self.heads)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        attended = jax.nn.dot_product_attention(query, key, value, mask=mask)
        x = x + drop(dense(width, name="proj")(attended.reshape(x.shape)))

        hidden = dense(MLP_RATIO * width, name="dense1")(layer_norm(name="norm2")(x))
        hidden = nn.gelu(hidden, approximate=False)
        return x + drop(dense(width, name="dense2")(hidden))


class ViT(nn.Module):
    """A Vision Transformer up to and including its final norm.

    Attributes:
      width: of tokens, and of the embedding.
      heads: of each attention; divides the width.
      depth: blocks.
      patch_size: height and width of a patch; divides those of the image.
      positions: 'sincos' (fixed: sines and cosines of row and column) or 'learned', which fixes the
        image size.
      pool: 'class' (the class token after the final norm) or 'mean' (the final norm of the mean of
        the patches' tokens).
      drop_path: probability that a residual branch of the last block is left out; those of the
        others rise linearly from 0 at the first.
      freeze_patch_embedding: stop the gradient after the patch embedding, whose random weights then
        stay (MoCo v3). The optimizer must leave them alone too: see `frozen`.
      remat: keep only the input of each block for the backward pass, which recomputes the rest
        (arXiv 1604.06174).
      dtype: what matrix products and the patch embedding compute in.
      convolution: computes the patch embedding, a function like `jax.lax.conv_general_dilated`.
    """

    width: int = 192
    heads: int = 3
    depth: int = 12
    patch_size: int = 16
    positions: Literal["sincos", "learned"] = "sincos"
    pool: Literal["class", "mean"] = "class"
    drop_path: float = 0.0
    freeze_patch_embedding: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    convolution: Callable = jax.lax.conv_general_dilated

    def __post_init__(self):
        """Raises ValueError for a setting that cannot work."""
        if self.patch_size < 1:
            raise ValueError(f"patch_size={self.patch_size} must be at least 1.")
        check_sizes(self.width, self.heads, self.depth)
        if self.positions == "sincos" and self.width % 4:
            raise ValueError(f"width={self.width} must be a multiple of 4 for positions=sincos.")
        check_drop_path(self.drop_path)
        super().__post_init__()

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the parameters that training leaves as they are."""
        return ("patch_embedding",) if self.freeze_patch_embedding else ()

    def check_image_size(self, height: int, width: int) -> None:
        """Raises ValueError for an image that cannot be divided into patches."""
        if height % self.patch_size or width % self.patch_size or not height or not width:
            raise ValueError(
                f"patch_size={self.patch_size} does not divide images of {height} x {width} "
                "pixels: choose another patch size, or an image size that is a multiple of it."
            )

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Float (batch, height, width, channels) -> float32 (batch, width of tokens)."""
        self.check_image_size(*x.shape[1:3])
        size = (self.patch_size, self.patch_size)
        x = nn.Conv(
            self.width,
            size,
            strides=size,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=uniform(self.patch_size**2 * x.shape[-1], self.width),
            conv_general_dilated=self.convolution,
            name="patch_embedding",
        )(x.astype(self.dtype))
        if self.freeze_patch_embedding:
            x = jax.lax.stop_gradient(x)
        rows, columns = x.shape[1:3]
        x = x.reshape(x.shape[0], rows * columns, self.width).astype(jnp.float32)

        normal = nn.initializers.normal
        class_token = self.param("class_token", normal(1e-6), (self.width,), jnp.float32)
        shape = (1 + rows * columns, self.width)
        if self.positions == "sincos":
            table = sincos_positions(rows, columns, self.width)
        else:
            table = self.param("position_embedding", normal(0.02), shape, jnp.float32)
        # Room for the class token, which is part of the table: a sum needs no copies of it.
        table = jnp.concatenate([table[:1] + class_token, table[1:]])
        x = jnp.pad(x, ((0, 0), (1, 0), (0, 0))) + table

        make_block = nn.remat(TransformerBlock) if self.remat else TransformerBlock
        for block in range(self.depth):
            rate = drop_path_rate(self.drop_path, block, self.depth)
            name = f"transformer_block{block + 1}"
            x = make_block(self.heads, rate, train, self.dtype, name=name)(x)
            self.sow("intermediates", f"block{block + 1}", as_map(x, rows, columns))

        norm = layer_norm(name="norm")
        if self.is_mutable_collection("intermediates"):  # else a mean needs no norm of each token
            self.sow("intermediates", "features", as_map(norm(x), rows, columns))
        return norm(x[:, 0] if self.pool == "class" else jnp.mean(x[:, 1:], axis=1))


def check_sizes(width: int, heads: int, depth: int) -> None:
    """Raises ValueError, beginning with the setting, for sizes that no transformer can have."""
    for name, value in (("width", width), ("heads", heads), ("depth", depth)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if depth > MAX_DEPTH:
        raise ValueError(f"depth={depth} must be at most {MAX_DEPTH}.")
    if width % heads:
        raise ValueError(f"heads={heads} must divide width={width}.")


def as_map(tokens: jax.Array, rows: int, columns: int) -> jax.Array:
    """The patches of (batch, 1 + rows * columns, width) as (batch, rows, columns, width)."""
    return tokens[:, 1:].reshape(tokens.shape[0], rows, columns, tokens.shape[-1])


def sincos_positions(rows: int, columns: int, width: int) -> jax.Array:
    """Fixed positions of the class token (zero) and of each patch, row by row.

    A quarter of the width each: sin(row f), cos(row f), sin(column f), cos(column f), for the
    frequencies f = TEMPERATURE ** -(i / quarter), i = 0, 1, ...; as in MoCo v3's code.

    Returns:
      Float32 (1 + rows * columns, width).
    """
    quarter = width // 4
    frequencies = float(TEMPERATURE) ** (-np.arange(quarter) / quarter)
    row, column = np.divmod(np.arange(rows * columns), columns)
    angles = [np.outer(row, frequencies), np.outer(column, frequencies)]
    table = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)
    return jnp.asarray(np.pad(table, ((1, 0), (0, 0))), jnp.float32)


def uniform(inputs: int, outputs: int) -> nn.initializers.Initializer:
    """Xavier's uniform distribution for a matrix of this shape, whatever shape it is kept in."""
    limit = (6 / (inputs + outputs)) ** 0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -limit, limit
    )


ViTTi = ViT
ViTS = partial(ViT, width=384, heads=6)
ViTB = partial(ViT, width=768, heads=12)
