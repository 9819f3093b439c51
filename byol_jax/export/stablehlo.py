"""StableHLO: the encoder as one file that JAX runs without this package or any class of ours.

    encoder.stablehlo   what `jax.export` serialises, weights inside, for CPU, CUDA and TPU
    config.json         input, output, how to load, and how the encoder was trained

Sources: the documentation of `jax.export` and its promise to read such files for six months at
least (docs.jax.dev, "Exporting and serializing staged-out computations").
"""

from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from byol_jax.export import inference
from byol_jax.runs import paths

if TYPE_CHECKING:
    from byol_jax.runs.encoder import Encoder

FORMAT = "byol_jax.stablehlo.1"
LOAD = """\
import jax.export

with open("encoder.stablehlo", "rb") as file:
    encoder = jax.export.deserialize(file.read())
features = encoder.call(images)
"""


def save(encoder: "Encoder", directory: Path) -> None:
    """Writes the encoder as a computation of uint8 images, any number at a time.

    Args:
      encoder: what to export.
      directory: made if need be; an earlier export of this kind is replaced.

    Raises:
      UserError: the folder cannot be written, or holds something else; weights above 2 GiB.
    """
    from jax import export  # not an attribute of jax until it is imported

    embed = jax.jit(inference.with_weights(encoder))
    (n,) = export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((n, *inference.image_shape(encoder)), jnp.uint8)
    record = inference.describe(encoder, FORMAT, LOAD)
    with paths.write_folder(directory, record | {"platforms": list(inference.PLATFORMS)}) as new:
        exported = export.export(embed, platforms=inference.PLATFORMS)(images)
        (new / "encoder.stablehlo").write_bytes(exported.serialize())
