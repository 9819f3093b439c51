"""TensorFlow as the input pipeline uses it: on the CPU, and quiet."""

import contextlib
import os
import sys

from byol_jax.errors import UserError

# TensorFlow reads these while it is imported. oneDNN does not help an input pipeline, and without
# it TensorFlow does not print its notice about rounding.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

# TensorFlow imports Keras last, which takes a quarter of the time, and does without it where it is
# missing, as it seems to be here. `tf.keras` still imports it when it is first used.
hidden = "keras" not in sys.modules
if hidden:
    sys.modules["keras"] = None
try:
    import tensorflow as tf
except ImportError as error:
    raise UserError(f"This needs TensorFlow ({error}): pip install 'byol_jax[train]'.") from error
finally:
    if hidden:
        del sys.modules["keras"]

# By default TensorFlow reserves all memory of the GPU that JAX needs. Where the caller has
# initialised TensorFlow's devices already, this can no longer be changed.
with contextlib.suppress(RuntimeError):
    tf.config.set_visible_devices([], "GPU")

__all__ = ["tf"]
