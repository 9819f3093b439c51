"""ONNX: the encoder for runtimes outside Python and outside JAX.

    encoder.onnx   the graph with its weights, `images` to `features`
    config.json    input, output, how to load, and how the encoder was trained

jax2onnx converts operation by operation, and can silently change what one computes (it loses a
pool's padding that is given in numbers). So the graph and the encoder are run on the same random
images, and the graph is kept only if the features agree.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from byol_jax.errors import CheckpointError, UserError
from byol_jax.export import inference
from byol_jax.runs import paths
from byol_jax.runs.encoder import Encoder

FORMAT = "byol_jax.onnx.1"
LOAD = """\
import onnxruntime

encoder = onnxruntime.InferenceSession("encoder.onnx")
(features,) = encoder.run(["features"], {"images": images})
"""
BATCH_SIZES = (2, 3)  # of the comparison: two of them, as the graph may have a fixed size
TOLERANCE = 1e-4  # relative to the largest feature; another order of summation gives 1e-6


def save(encoder: Encoder, directory: Path) -> None:
    """Writes the encoder as an ONNX graph of any number of uint8 images.

    Args:
      encoder: is exported.
      directory: made if needed; an earlier export of this kind is replaced.

    Raises:
      UserError: a package is missing.
      CheckpointError: the folder cannot be written, or holds something else; the encoder cannot be
        converted, or not correctly; weights above 2 GiB.
    """
    try:
        import jax2onnx
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"--format=onnx needs more packages ({error}): pip install 'byol_jax[export]', then "
            "pip install --no-deps jax2onnx."
        ) from error
    embed = inference.with_weights(encoder)
    spec, name = inference.input_spec(encoder), encoder.kind.unit
    examples = jax.ShapeDtypeStruct(("n", *spec.shape[1:]), spec.dtype)
    with paths.write_folder(directory, inference.record(encoder, FORMAT, LOAD)) as new:
        try:
            with _quiet():
                model = jax2onnx.to_onnx(
                    embed, [examples], input_names=[name], output_names=[encoder.output_name]
                )
            onnx.checker.check_model(model)
            (new / "encoder.onnx").write_bytes(model.SerializeToString())
            session = onnxruntime.InferenceSession(new / "encoder.onnx")
            difference = _difference(encoder, session)
        except OSError:
            raise  # `write_folder` translates it
        except Exception as error:  # neither package has an exception type of its own
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise CheckpointError(
                f"jax2onnx cannot convert this encoder ({reason}): use --format=stablehlo or "
                "savedmodel."
            ) from error
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"jax2onnx made a graph whose features are off by {difference:.1e} of the largest, "
                "so nothing was written: use --format=stablehlo or savedmodel."
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides jax2onnx's tracebacks about missing packages, and warnings about what it leaves out."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _difference(encoder: Encoder, session: Any) -> float:
    """The largest difference of features between graph and encoder, over the largest feature.

    Infinite if shapes or dtypes differ.
    """
    spec = inference.input_spec(encoder, max(BATCH_SIZES))
    rng = np.random.default_rng(0)
    if np.issubdtype(spec.dtype, np.integer):  # pixels, or numbers of tokens
        limit = len(encoder.config.get("vocabulary", range(256)))
        drawn = rng.integers(0, limit, spec.shape)
    else:
        drawn = rng.uniform(-1, 1, spec.shape)
    examples = drawn.astype(spec.dtype)
    want = np.asarray(jax.jit(inference.function(encoder))(encoder.variables, examples))
    differences = []
    for n in BATCH_SIZES:
        (got,) = session.run([encoder.output_name], {encoder.kind.unit: examples[:n]})
        if got.shape != want[:n].shape or got.dtype != want.dtype:
            return float("inf")
        differences.append(np.abs(got - want[:n]).max())
    return float(np.max(differences) / np.abs(want).max())  # NaN if any feature is
