"""TensorFlow's SavedModel: the encoder for TensorFlow programs and TensorFlow Serving.

    saved_model.pb, variables/, ...   the signature 'serving_default': `images` to `features`
    config.json                       input, output, how to load, and how the encoder was trained

The computation is StableHLO within a TensorFlow operation (`jax2tf`'s native serialisation), the
weights are TensorFlow variables. It is for inference: no gradient is exported.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from byol_jax.errors import UserError
from byol_jax.export import inference
from byol_jax.runs import paths

if TYPE_CHECKING:
    from byol_jax.runs.encoder import Encoder

FORMAT = "byol_jax.savedmodel.1"
LOAD = """\
import tensorflow as tf

encoder = tf.saved_model.load(".").signatures["serving_default"]
features = encoder(images=tf.constant(images))["features"]
"""


def save(encoder: "Encoder", directory: Path) -> None:
    """Writes the encoder as a SavedModel of uint8 images, any number at a time.

    Args:
      encoder: what to export.
      directory: made if need be; an earlier export of this kind is replaced.

    Raises:
      UserError: the folder cannot be written, or holds something else; TensorFlow is missing.
    """
    from byol_jax.data._tensorflow import tf  # quiet, and without the GPU that JAX has

    # isort: split
    from jax.experimental import jax2tf  # imports TensorFlow too, as it finds it

    height, width, channels = inference.image_shape(encoder)
    embed = jax2tf.convert(
        inference.function(encoder),
        polymorphic_shapes=(None, f"(n, {height}, {width}, {channels})"),
        with_gradient=False,
        native_serialization_platforms=inference.PLATFORMS,
    )
    module = tf.Module()
    module.weights = jax.tree.map(lambda x: tf.Variable(np.asarray(x)), dict(encoder.variables))
    images = tf.TensorSpec((None, height, width, channels), tf.uint8, name="images")
    module.embed = tf.function(
        lambda images: {"features": embed(module.weights, images)},
        input_signature=[images],
        autograph=False,
    )
    with paths.write_folder(directory, inference.describe(encoder, FORMAT, LOAD)) as new:
        try:
            tf.saved_model.save(module, str(new), signatures={"serving_default": module.embed})
        except tf.errors.OpError as error:
            raise UserError(
                f"--output={directory} cannot be written ({error.message}): choose another folder."
            ) from error
