"""What the exports that carry a computation share: the function, and what config.json says of it.

The function takes images as they come, uint8 (n, image_size, image_size, channels) for any n,
normalises them and returns float32 (n, features). It computes in float32 whatever the encoder was
trained in: weights are float32 in any case, and bfloat16 convolutions are missing from most
runtimes on CPUs. Features of an encoder trained in bfloat16 are therefore more exact than those of
its own `embed`, from which they differ by bfloat16's rounding.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.augment import image as image_augment
from byol_jax.errors import UserError

if TYPE_CHECKING:
    from byol_jax.runs.encoder import Encoder

PLATFORMS = ("cpu", "cuda", "tpu")
# Protocol buffers and FlatBuffers end at 2 GiB; a little is left for all that is no weight.
LARGEST_WEIGHTS = 2**31 - 2**24


def function(encoder: "Encoder") -> Callable[[dict[str, Any], jax.Array], jax.Array]:
    """The function of variables and images; not compiled."""
    module = encoder.module.clone(dtype=jnp.float32)
    mean, std = encoder.config["mean"], encoder.config["std"]

    def embed(variables: dict[str, Any], images: jax.Array) -> jax.Array:
        return module.apply(variables, image_augment.normalize(images, mean, std), train=False)

    return embed


def with_weights(encoder: "Encoder") -> Callable[[jax.Array], jax.Array]:
    """The function of images alone, the weights being constants of it.

    Raises:
      UserError: the weights are more than one file of such a format can hold.
    """
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(encoder.variables))
    if size > LARGEST_WEIGHTS:
        raise UserError(
            f"The encoder's weights take {size / 2**30:.1f} GiB, and a file of this format holds "
            "2 at most: use --format=byol_jax, orbax or savedmodel."
        )
    embed = function(encoder)
    return lambda images: embed(encoder.variables, images)


def image_shape(encoder: "Encoder") -> tuple[int, int, int]:
    """(height, width, channels) of an image."""
    size = encoder.config["image_size"]
    return size, size, encoder.config["channels"]


def num_features(encoder: "Encoder") -> int:
    """How long an embedding is."""
    images = jax.ShapeDtypeStruct((1, *image_shape(encoder)), jnp.uint8)
    return jax.eval_shape(function(encoder), encoder.variables, images).shape[1]


def describe(encoder: "Encoder", kind: str, load: str) -> dict[str, Any]:
    """What config.json says.

    Args:
      encoder: what is exported.
      kind: name and version of the format.
      load: Python that makes `features` of `images`, to be run in the exported folder.
    """
    return {
        "format": kind,
        "input": {
            "name": "images",
            "dtype": "uint8",
            "shape": ["n", *image_shape(encoder)],
            "meaning": "0 to 255, not normalised: mean and std are applied inside",
        },
        "output": {"name": "features", "dtype": "float32", "shape": ["n", num_features(encoder)]},
        "load": load.splitlines(),
        **encoder.config,
        "dtype": "float32",
    }
