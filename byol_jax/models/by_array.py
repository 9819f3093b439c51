"""One encoder for each array of an example, such as each sensor of a device."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from byol_jax.models.networks import encode


class ByArray(nn.Module):
    """Encoders of arrays by name, into one space: their projector and predictor are common.

    Attributes:
      encoders: modules as of `encode`, whose features are of one size.
    """

    encoders: dict[str, nn.Module]

    @nn.compact
    def __call__(self, view: dict[str, Any], train: bool) -> jax.Array:
        """Any of the arrays by name -> the mean of their embeddings, float32 (batch, features)."""
        found = [encode(self.encoders[name], view[name], train) for name in sorted(view)]
        return jnp.mean(jnp.stack(found), axis=0)
