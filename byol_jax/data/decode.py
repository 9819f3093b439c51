"""From the bytes of an image file to pixels, and the reason where that fails.

The format is detected from the bytes, not the name: JPEG (CMYK and YCCK too), PNG (of any depth; 16
bits lose the lower 8), GIF, BMP and WebP. Animations give their first frame, alpha channels are
dropped, and a JPEG is turned upright by its EXIF orientation.

References: the tag "Orientation" of EXIF (CIPA DC-008, section 4.6.4), encoded as in TIFF 6.0
(section 2).
"""

from collections.abc import Iterable, Iterator
from typing import Any

from byol_jax.data._tensorflow import tf
from byol_jax.data.source import Source

NOT_REPLACED = -1  # instead of the index of an example that cannot be decoded

EXIF_WITHIN = 4096  # EXIF is the first segment of a JPEG, or the second after a short one
MAX_SEGMENT = 2**16
ORIENTATION, SHORT = 0x0112, 3  # a tag and a type of TIFF


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
        head = tf.strings.substr(data, 0, EXIF_WITHIN)
    has_exif = tf.strings.regex_full_match(head, r"\C*Exif\x00\x00\C*")
    return tf.cond(has_exif, lambda: _upright(image, data), lambda: image)


def error_reason(error: tf.errors.OpError) -> str:
    """What TensorFlow's error means, such as "it is empty"."""
    if isinstance(error, tf.errors.NotFoundError):
        return "it is not there any more"
    if isinstance(error, tf.errors.PermissionDeniedError):
        return "it may not be read"
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


def decode_error(source: Source, raw: Any) -> str | None:
    """Why a raw example cannot be decoded, as from `error_reason`; None if it can."""
    try:
        source.decode(raw)
    except tf.errors.OpError as error:
        return error_reason(error)
    return None


def first_decode_error(source: Source, raws: tf.data.Dataset, error: tf.errors.OpError) -> str:
    """Names the first of some raw examples that cannot be decoded, after `error` in their batch.

    Returns:
      A clause such as "PATH cannot be decoded: it is empty".
    """
    try:
        for raw in raws:
            reason = decode_error(source, raw)
            if reason is not None:
                name = source.describe(int(source.index(raw)))
                return f"{name} cannot be decoded: {reason}"
    except tf.errors.OpError as later:  # not even the raw examples can be read
        error = later
    return f"{source.name} could not be read: {error_reason(error)}"


def decode_errors(source: Source, indices: Iterable[int]) -> Iterator[str]:
    """Name and reason of each example at some indices; NOT_REPLACED and repetitions are skipped."""
    for index in sorted({*indices} - {NOT_REPLACED}):
        (raw,) = source.get(tf.constant([index], tf.int64))
        reason = decode_error(source, raw) or "it could not be read at first"
        yield f"{source.describe(index)}: {reason}"


def orientation(data: tf.Tensor) -> tf.Tensor:
    """The EXIF orientation of a JPEG, 1 to 8, int32 (); 1, upright, if none can be read.

    Args:
      data: string (), the bytes of a file in which "Exif" and two zeros occur.
    """
    head = tf.strings.substr(data, 0, EXIF_WITHIN + MAX_SEGMENT)
    parts = tf.raw_ops.StringSplitV2(input=head[None], sep=b"Exif\0\0", maxsplit=1).values
    before, tiff = parts[0], parts[1]
    octets = tf.cast(tf.io.decode_raw(tiff, tf.uint8), tf.int64)
    octets = tf.concat([octets, tf.zeros(12, tf.int64)], 0)  # so that a header is always there
    little_endian = octets[0] == ord("I")

    def number(octets, size):
        powers = 256 ** tf.range(size, dtype=tf.int64)
        weights = tf.where(little_endian, powers, powers[::-1])
        return tf.reduce_sum(octets * weights, -1)

    # A directory: the number of its entries, then the entries of 12 bytes: tag, type, count, value.
    start = tf.minimum(number(octets[4:8], 4), tf.size(octets, tf.int64) - 2)
    entries = octets[start + 2 :][: 12 * number(octets[start : start + 2], 2)]
    entries = tf.reshape(entries[: tf.size(entries) // 12 * 12], [-1, 12])
    is_wanted = (number(entries[:, :2], 2) == ORIENTATION) & (number(entries[:, 2:4], 2) == SHORT)
    values = number(tf.boolean_mask(entries, is_wanted)[:, 8:10], 2)
    value = tf.concat([values, [1]], 0)[0]
    # A segment begins with its marker and its length, two bytes each.
    marker = tf.strings.substr(before, tf.maximum(tf.strings.length(before) - 4, 0), 2)
    is_valid = (marker == b"\xff\xe1") & (value >= 1) & (value <= 8)
    return tf.where(is_valid, tf.cast(value, tf.int32), 1)


# One node of the graph: each node of a branch costs some microseconds, even if it is not taken.
@tf.function(
    input_signature=[tf.TensorSpec((None, None, None), tf.uint8), tf.TensorSpec((), tf.string)],
    autograph=False,
    experimental_attributes={"_noinline": True},
)
def _upright(image, data):
    """Undoes the orientation: 5 to 8 exchange rows and columns, and some of all are mirrored."""
    turned = orientation(data)
    image = tf.cond(turned >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    is_mirrored = tf.reduce_any(turned == tf.constant([[3, 4, 7, 8], [2, 3, 6, 7]]), 1)
    return tf.reverse(image, tf.boolean_mask([0, 1], is_mirrored))


def _colour(data):
    return tf.io.decode_image(data, channels=3, expand_animations=False)


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
