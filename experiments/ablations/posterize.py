"""A view of one's own, for the row "function" of docs/ablations.md."""

import jax
import jax.numpy as jnp


def posterize(key: jax.Array, image: jax.Array) -> jax.Array:
    """Rounds an image, float32 in 0..1, to 2 to 8 levels, uniformly drawn."""
    levels = jax.random.randint(key, (), 2, 9)
    return jnp.round(image * (levels - 1)) / (levels - 1)
