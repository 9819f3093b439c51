"""From the bytes of an image file to pixels, and the reason where that fails.

The format is detected from the bytes, not the name: JPEG (CMYK and YCCK too), PNG (of any depth; 16
bits lose the lower 8), GIF, BMP and WebP. Animations give their first frame, alpha channels are
dropped, and images are turned upright by an EXIF orientation within their first 4096 bytes, where
JPEG files have it. more_formats.py adds TIFF and PNM.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from byol_jax.data._tensorflow import tf
from byol_jax.data.source import ImageSource

# What an error of Python code in a graph begins with: TensorFlow puts text around it.
PYTHON_MARK = "byol_jax says: "
NOT_REPLACED = -1  # instead of the index of an example that cannot be decoded

# EXIF is the first segment of a JPEG, or the second after a short one.
EXIF_WITHIN = 4096
# The tag "Orientation" (0x0112) of EXIF (CIPA DC-008, section 4.6.4): one 16-bit number from 1 to 8
# in the first directory of TIFF 6.0 (section 2), little-endian (II) or big-endian (MM). Writers put
# that directory right after the header. Its entries of 12 bytes ascend by their tags.
ORIENTATION = (
    r"\C*?Exif\x00\x00(?:"
    r"II\*\x00\x08\x00{3}\C\C(?:(?:\C\x00|[\x00-\x11]\x01)\C{10})*"
    r"\x12\x01\x03\x00\x01\x00{3}([\x01-\x08])\x00|"
    r"MM\x00\*\x00{3}\x08\C\C(?:(?:\x00\C|\x01[\x00-\x11])\C{10})*"
    r"\x01\x12\x00\x03\x00{3}\x01\x00([\x01-\x08]))\C*"
)


def decode(data: tf.Tensor, channels: int) -> tf.Tensor:
    """Decodes one image, in a TensorFlow graph or outside.

    Args:
      data: string (), the bytes of a file.
      channels: 3 for RGB, 1 for gray; gray and colour images are converted.

    Returns:
      uint8 (H, W, channels).

    Raises:
      tf.errors.OpError: it cannot be decoded; `error_reason` explains why.
    """
    image = _colour(data) if channels == 3 else _gray(data)
    with tf.control_dependencies([image]):  # an error is always that of the decoder
        byte = orientation(data)
    return tf.cond(tf.strings.length(byte) == 1, lambda: _upright(image, byte), lambda: image)


def error_reason(error: tf.errors.OpError) -> str:
    """What TensorFlow's error means, such as "it is empty"."""
    if isinstance(error, tf.errors.NotFoundError):
        return "it is not there any more"
    if isinstance(error, tf.errors.PermissionDeniedError):
        return "it may not be read"
    if PYTHON_MARK in error.message:
        return error.message.partition(PYTHON_MARK)[2].splitlines()[0]
    for message, reason in (
        ("Input is empty", "it is empty"),
        ("Unknown image file format", "it is not a JPEG, PNG, GIF, BMP or WebP image"),
        ("corrupted record", "its record is damaged"),
        ("truncated record", "its file of records is truncated"),
    ):
        if message in error.message:
            return reason
    if isinstance(error, tf.errors.InvalidArgumentError):
        return "it is damaged or truncated"
    return " ".join(error.message.rpartition("}}")[2].partition(" [Op:")[0].split())


def decode_error(source: ImageSource, raw: tuple) -> str | None:
    """Why a raw example cannot be decoded, as from `error_reason`; None if it can."""
    try:
        source.decode_views(raw, 2)
    except tf.errors.OpError as error:
        return error_reason(error)
    return None


def first_decode_error(source: ImageSource, raws: tf.data.Dataset, error: tf.errors.OpError) -> str:
    """Names the first of some raw examples that cannot be decoded, after `error` in their batch.

    Returns:
      A clause such as "PATH cannot be decoded: it is empty".
    """
    try:
        for raw in raws:
            if reason := decode_error(source, raw):
                return f"{source.describe(int(raw[0]))} cannot be decoded: {reason}"
    except tf.errors.OpError as later:  # not even the raw examples can be read
        error = later
    return f"{source.name} could not be read: {error_reason(error)}"


def decode_errors(source: ImageSource, indices: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Index, and name and reason, of some examples; NOT_REPLACED and repetitions are skipped."""
    for index in sorted({*indices} - {NOT_REPLACED}):
        (raw,) = source.get(tf.constant([index], tf.int64))
        reason = decode_error(source, raw) or "it could not be read at first"
        yield index, f"{source.describe(index)}: {reason}"


def orientation(data: tf.Tensor) -> tf.Tensor:
    """The EXIF orientation of an image file: string (), one byte from 1 to 8.

    If none can be read, the file is upright, and the result is the file's beginning.
    """
    head = tf.strings.substr(data, 0, EXIF_WITHIN)
    return tf.strings.regex_replace(head, ORIENTATION, r"\1\2", replace_global=False)


# One node of the graph: each node of a branch costs some microseconds, even if it is not taken.
@tf.function(
    input_signature=[tf.TensorSpec((None, None, None), tf.uint8), tf.TensorSpec((), tf.string)],
    autograph=False,
    experimental_attributes={"_noinline": True},
)
def _upright(image, byte):
    """Undoes the orientation: 5 to 8 exchange rows and columns, and some of all are mirrored."""
    turned = tf.io.decode_raw(byte, tf.uint8)[0]
    image = tf.cond(turned >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    is_mirrored = tf.reduce_any(turned == np.uint8([[3, 4, 7, 8], [2, 3, 6, 7]]), 1)
    return tf.reverse(image, tf.boolean_mask([0, 1], is_mirrored))


def _gray(data):
    """TensorFlow decodes PNG and JPEG to gray, but neither CMYK nor other formats."""

    def directly():
        return tf.io.decode_image(data, channels=1, expand_animations=False)

    def from_colour():
        return tf.image.rgb_to_grayscale(_colour(data))

    def jpeg():
        is_cmyk = tf.io.extract_jpeg_shape(data)[2] == 4
        return tf.cond(is_cmyk, from_colour, directly)

    is_png = tf.strings.substr(data, 0, 4) == b"\x89PNG"
    return tf.cond(tf.io.is_jpeg(data), jpeg, lambda: tf.cond(is_png, directly, from_colour))


def _colour(data):
    return tf.io.decode_image(data, channels=3, expand_animations=False)
