"""TensorFlow as the input pipeline uses it: on the CPU, and quiet."""

import contextlib
import os

from byol_jax.errors import UserError

# TensorFlow reads these while it is being imported, so they cannot wait. oneDNN has nothing to
# offer to an input pipeline, and switching it off also silences the notice about its rounding.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

try:
    import tensorflow as tf
except ImportError as error:
    raise UserError(
        f"This needs TensorFlow ({error}): pip install tensorflow (tensorflow-cpu on Linux)."
    ) from error

# Left alone, TensorFlow reserves the whole memory of the GPU that JAX needs. Where somebody else
# has already started TensorFlow's devices, the choice was made and cannot be changed any more.
with contextlib.suppress(RuntimeError):
    tf.config.set_visible_devices([], "GPU")

__all__ = ["tf"]
