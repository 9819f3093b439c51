"""What the exports that carry the computation share: the function, and its record in config.json.

The function takes a batch of any size, such as uint8 images (n, image_size, image_size, channels),
normalises it and returns float32 (n, features), or the probabilities of a classifier. It computes
in float32, as most runtimes on CPUs lack bfloat16 convolutions; weights are float32 in any case.
The features of an encoder trained in bfloat16 therefore differ from those of its own `embed` by
bfloat16's rounding.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from byol_jax import models
from byol_jax.errors import CheckpointError, describe
from byol_jax.runs.encoder import Encoder

PLATFORMS = ("cpu", "cuda", "tpu")
# Protocol buffers and FlatBuffers are limited to 2 GiB; a little is left for all but the weights.
MAX_WEIGHT_BYTES = 2**31 - 2**24


def function(encoder: Encoder) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
    """The function of variables and images, not compiled."""
    return encoder.output_fn(models.with_fields(encoder.module, dtype=jnp.float32))


def with_weights(encoder: Encoder) -> Callable[[jax.Array], jax.Array]:
    """The function of images alone, with the weights as its constants.

    Raises:
      CheckpointError: the weights are larger than a file of such a format can be.
    """
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(encoder.variables))
    if size > MAX_WEIGHT_BYTES:
        raise CheckpointError(
            f"The encoder's weights take {size / 2**30:.1f} GiB, and a file of this format holds "
            "2 at most: use --format=byol_jax, orbax or savedmodel."
        )
    embed = function(encoder)
    return lambda images: embed(encoder.variables, images)


def input_spec(encoder: Encoder, n: Any = 1) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a batch of n examples.

    Raises:
      CheckpointError: an example is more than one array.
    """
    spec = encoder.blank(n)
    if not isinstance(spec, jax.ShapeDtypeStruct):
        raise CheckpointError(
            f"This encoder takes several arrays ({', '.join(spec)}), and a file of this format "
            "takes one: use --format=byol_jax or orbax."
        )
    return spec


def num_features(encoder: Encoder, n: Any = 1) -> int:
    """The size of an output, from tracing the encoder on n images."""
    return jax.eval_shape(function(encoder), encoder.variables, input_spec(encoder, n)).shape[1]


def record(encoder: Encoder, file_format: str, load: str) -> dict[str, Any]:
    """The contents of config.json.

    Args:
      encoder: what is exported.
      file_format: name and version of the format.
      load: Python that makes `features` from `images`, to be run in the exported folder.

    Raises:
      CheckpointError: the encoder, a user's own, cannot be traced for any number of images.
    """
    (n,), spec = export.symbolic_shape("n"), input_spec(encoder)
    try:
        features = num_features(encoder, n)
    except Exception as error:  # whatever the module raises
        raise CheckpointError(
            f"{encoder.config['encoder']['name']} takes no unknown number of "
            f"{encoder.kind.unit}, which this format needs ({describe(error)}): use x.shape[0] and "
            "-1 in place of len(x), or --format=byol_jax or orbax."
        ) from error
    return {
        "format": file_format,
        "input": {
            "name": encoder.kind.unit,
            "dtype": str(spec.dtype),
            "shape": ["n", *spec.shape[1:]],
            "meaning": encoder.kind.input_meaning,
        },
        "output": {"name": encoder.output_name, "dtype": "float32", "shape": ["n", features]},
        "load": load.replace("features", encoder.output_name)
        .replace("images", encoder.kind.unit)
        .splitlines(),
        **encoder.config,
        "dtype": "float32",
    }
