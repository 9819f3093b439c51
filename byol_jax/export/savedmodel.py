"""TensorFlow's SavedModel: the encoder for TensorFlow programs and TensorFlow Serving.

    saved_model.pb, variables/, ...   the signature 'serving_default': `images` to `features`
    config.json                       input, output, how to load it, how the encoder was trained

The computation is StableHLO in a TensorFlow operation (`jax2tf`'s native serialisation), and the
weights are TensorFlow variables. It is for inference: no gradient is exported.
"""

from pathlib import Path

import jax
import numpy as np

from byol_jax.errors import CheckpointError
from byol_jax.export import inference
from byol_jax.runs import paths
from byol_jax.runs.encoder import Encoder

FORMAT = "byol_jax.savedmodel.1"
LOAD = """\
import tensorflow as tf

encoder = tf.saved_model.load(".").signatures["serving_default"]
features = encoder(images=tf.constant(images))["features"]
"""


def save(encoder: Encoder, directory: Path) -> None:
    """Writes the encoder as a SavedModel that takes any number of uint8 images.

    Args:
      encoder: is exported.
      directory: made if needed; an earlier export of this kind is replaced.

    Raises:
      UserError: TensorFlow is missing.
      CheckpointError: the folder cannot be written, or holds something else.
    """
    from byol_jax.data._tensorflow import tf  # without log lines, and without the GPU

    # isort: split
    from jax.experimental import jax2tf  # imports TensorFlow too

    spec = inference.input_spec(encoder)
    shape = spec.shape[1:]
    embed = jax2tf.convert(
        inference.function(encoder),
        polymorphic_shapes=(None, f"(n, {', '.join(map(str, shape))})"),
        with_gradient=False,
        native_serialization_platforms=inference.PLATFORMS,
    )
    module = tf.Module()
    module.weights = jax.tree.map(lambda x: tf.Variable(np.asarray(x)), dict(encoder.variables))
    examples = tf.TensorSpec((None, *shape), tf.as_dtype(spec.dtype), name=encoder.kind.unit)
    module.embed = tf.function(
        lambda given: {encoder.output_name: embed(module.weights, given)},
        input_signature=[examples],
        autograph=False,
    )
    with paths.write_folder(directory, inference.record(encoder, FORMAT, LOAD)) as new:
        try:
            tf.saved_model.save(module, str(new), signatures={"serving_default": module.embed})
        except tf.errors.OpError as error:
            raise CheckpointError(
                f"--output={directory} cannot be written ({error.message}): choose another folder."
            ) from error
