"""Which example could not be decoded, and why: TensorFlow's errors say neither."""

from typing import Any

from byol_jax.data._tensorflow import tf
from byol_jax.data.decode import in_words
from byol_jax.data.source import Source


def fault(source: Source, raw: Any) -> str | None:
    """Why a raw example cannot be decoded, as half a sentence; None if it can."""
    try:
        source.decode(raw)
    except tf.errors.OpError as error:
        return in_words(error)
    return None


def faulty(source: Source, raws: tf.data.Dataset, error: tf.errors.OpError) -> str:
    """Names the first bad one of some raw examples, whose decoding together raised `error`.

    Returns:
      A sentence without its end, such as "PATH cannot be decoded: it is empty".
    """
    try:
        for raw in raws:
            reason = fault(source, raw)
            if reason is not None:
                place = int(source.index(raw))
                return f"{source.describe(place)} cannot be decoded: {reason}"
    except tf.errors.OpError as later:  # not even its raw examples can be read
        error = later
    return f"{source.name} could not be read: {in_words(error)}"
