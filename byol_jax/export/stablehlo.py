"""StableHLO: the encoder as one file that JAX runs without this package.

    encoder.stablehlo   serialised by `jax.export`, with the weights, for CPU, CUDA and TPU
    config.json         input, output, how to load it, and how the encoder was trained

JAX reads such a file for at least six months after the version that wrote it (docs.jax.dev,
"Exporting and serializing staged-out computations").
"""

from pathlib import Path

import jax

from byol_jax.export import inference
from byol_jax.runs import paths
from byol_jax.runs.encoder import Encoder

FORMAT = "byol_jax.stablehlo.1"
LOAD = """\
import jax.export

with open("encoder.stablehlo", "rb") as file:
    encoder = jax.export.deserialize(file.read())
features = encoder.call(images)
"""


def save(encoder: Encoder, directory: Path) -> None:
    """Writes the encoder as a computation on any number of uint8 images.

    Args:
      encoder: is exported.
      directory: made if needed; an earlier export of this kind is replaced.

    Raises:
      CheckpointError: the folder cannot be written, or holds something else; weights above 2 GiB.
    """
    from jax import export  # an attribute of jax only after this import

    embed = jax.jit(inference.with_weights(encoder))
    (n,) = export.symbolic_shape("n")
    examples = inference.input_spec(encoder, n)
    record = inference.record(encoder, FORMAT, LOAD)
    with paths.write_folder(directory, record | {"platforms": list(inference.PLATFORMS)}) as new:
        exported = export.export(embed, platforms=inference.PLATFORMS)(examples)
        (new / "encoder.stablehlo").write_bytes(exported.serialize())
