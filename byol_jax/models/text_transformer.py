"""A small transformer for texts, in flax.linen.

Blocks with the norm before attention and MLP, as those of a ViT (vit.py), over tokens and their
positions, as in BERT (arXiv 1810.04805). Dropout of every residual branch and of the sum of the
embeddings makes two views of one text differ (SimCSE, arXiv 2104.08821). Parameters are float32;
`dtype` is what matrix products compute in.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from byol_jax.models.layers import layer_norm
from byol_jax.models.vit import TransformerBlock, check_sizes


class TextTransformer(nn.Module):
    """The mean of a text's tokens after the blocks, and a norm.

    Attributes:
      width: of tokens, and of the embedding.
      heads: of each attention; divides the width.
      depth: blocks.
      dropout: of each number of a residual branch, and of the embedded tokens.
      num_tokens: of the vocabulary; no setting, as the data has it.
      dtype: what matrix products compute in.
    """

    width: int = 256
    heads: int = 4
    depth: int = 4
    dropout: float = 0.1
    num_tokens: int | None = None
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        """Raises ValueError for a setting that cannot work."""
        check_sizes(self.width, self.heads, self.depth)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout:g} must be at least 0 and below 1.")
        super().__post_init__()

    def check_image_size(self, height: int, width: int) -> None:
        """Raises ValueError: it takes no images."""
        raise ValueError(
            "name='text_transformer' takes texts, not images: choose a preset of text."
        )

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """Int32 (batch, length), where 0 is padding -> float32 (batch, width)."""
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"it takes numbers of tokens, not {tokens.dtype} {tokens.shape[1:]}")
        if self.num_tokens is None:
            raise ValueError("num_tokens must be given: that of the vocabulary.")
        normal = nn.initializers.normal(0.02)
        is_token = tokens != 0
        x = nn.Embed(self.num_tokens, self.width, embedding_init=normal, name="token_embedding")(
            tokens
        )
        shape = (tokens.shape[1], self.width)
        x = x + self.param("position_embedding", normal, shape, jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for block in range(1, self.depth + 1):
            name = f"transformer_block{block}"
            layer = TransformerBlock(self.heads, self.dropout, train, self.dtype, (), name=name)
            x = layer(x, is_token[:, None, None])
        weights = is_token[..., None].astype(jnp.float32)
        mean = jnp.sum(x * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1)
        return layer_norm(name="norm")(mean)
