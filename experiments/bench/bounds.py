"""Limits of the device: the rate of a matrix product, and of a copy in its memory."""

import jax
import jax.numpy as jnp

from experiments.bench import measure


def matrix_product(dtype: str) -> tuple[measure.Turn, float]:
    """A turn that multiplies two square matrices, and its FLOPs.

    Args:
      dtype: of both factors; sums are float32, as in the networks.
    """
    size = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32))
    return measure.repeated(lambda: product(matrix, matrix), jax.block_until_ready), 2.0 * size**3


def memory_copy() -> tuple[measure.Turn, float]:
    """A turn that passes once over an array larger than any cache, and the bytes read and written.

    In place, because newly allocated memory would take longer.
    """
    size = 2**26 if jax.default_backend() == "cpu" else 2**28
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    array = jnp.zeros(size, jnp.float32)
    moved = 2.0 * array.nbytes

    def work() -> jax.Array:
        nonlocal array
        array = add(array)
        return array

    return measure.repeated(work, jax.block_until_ready), moved
