"""ONNX: the encoder for runtimes outside Python and outside JAX.

    encoder.onnx   the graph with its weights, `images` to `features`
    config.json    input, output, how to load, and how the encoder was trained

jax2onnx converts operation by operation, and has been seen to change what one computes without a
word (a pool's padding given in numbers is lost). So what it made is run beside the encoder on
random images, and kept only if the features agree.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.errors import UserError
from byol_jax.export import inference
from byol_jax.runs import paths

if TYPE_CHECKING:
    from byol_jax.runs.encoder import Encoder

FORMAT = "byol_jax.onnx.1"
LOAD = """\
import onnxruntime

encoder = onnxruntime.InferenceSession("encoder.onnx")
(features,) = encoder.run(["features"], {"images": images})
"""
BATCH_SIZES = (2, 3)  # to compare at: two, as a batch size may have been fixed by mistake
TOLERANCE = 1e-4  # relative to the largest feature; float32 sums in another order give 1e-6


def save(encoder: "Encoder", directory: Path) -> None:
    """Writes the encoder as an ONNX graph of uint8 images, any number at a time.

    Args:
      encoder: what to export.
      directory: made if need be; an earlier export of this kind is replaced.

    Raises:
      UserError: the folder cannot be written, or holds something else; a package is missing;
        the encoder cannot be converted, or becomes another function by it; weights above 2 GiB.
    """
    try:
        import jax2onnx
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"--format=onnx needs more packages ({error}): pip install onnx onnx-ir onnxruntime, "
            "then pip install --no-deps jax2onnx."
        ) from error
    embed = inference.with_weights(encoder)
    images = jax.ShapeDtypeStruct(("n", *inference.image_shape(encoder)), jnp.uint8)
    with paths.write_folder(directory, inference.describe(encoder, FORMAT, LOAD)) as new:
        try:
            with _quiet():
                model = jax2onnx.to_onnx(
                    embed, [images], input_names=["images"], output_names=["features"]
                )
            onnx.checker.check_model(model)
            (new / "encoder.onnx").write_bytes(model.SerializeToString())
            session = onnxruntime.InferenceSession(new / "encoder.onnx")
            difference = _difference(encoder, session)
        except OSError:
            raise  # of the folder, which answers for it
        except Exception as error:  # neither package has a type of its own
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"jax2onnx cannot convert this encoder ({reason}): use --format=stablehlo or "
                "savedmodel."
            ) from error
        if not difference <= TOLERANCE:
            raise UserError(
                f"jax2onnx made a graph whose features are off by {difference:.1e} of the largest, "
                "so nothing was written: use --format=stablehlo or savedmodel."
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without jax2onnx's tracebacks of every optional package that is not there."""
    logger = logging.getLogger("jax2onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _difference(encoder: "Encoder", session: Any) -> float:
    """The largest difference between the features of graph and encoder, over the largest feature.

    Shapes and dtypes that differ count as infinitely far.
    """
    shape = (max(BATCH_SIZES), *inference.image_shape(encoder))
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    want = np.asarray(jax.jit(inference.function(encoder))(encoder.variables, images))
    differences = []
    for n in BATCH_SIZES:
        (got,) = session.run(["features"], {"images": images[:n]})
        if got.shape != want[:n].shape or got.dtype != want.dtype:
            return float("inf")
        differences.append(np.abs(got - want[:n]).max())
    return float(np.max(differences) / np.abs(want).max())  # NaN if any is
