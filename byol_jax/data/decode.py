"""From the bytes of an image file to pixels; and why that failed, in words.

The format is what the bytes say, whatever the file is called: JPEG (CMYK and YCCK too), PNG (of any
depth, 16 bits lose the lower 8), GIF, BMP and WebP. Of an animation the first frame counts, an
alpha channel is left out, and a JPEG is turned upright as its EXIF orientation says.

References: the tag "Orientation" of EXIF (CIPA DC-008, section 4.6.4), encoded as in TIFF 6.0
(section 2).
"""

from byol_jax.data._tensorflow import tf

EXIF_WITHIN = 4096  # EXIF is the first segment of a JPEG, or the next after a short one
LONGEST = 2**16  # no segment is longer
ORIENTATION, SHORT = 0x0112, 3  # a tag and a type of TIFF


def decode(data: tf.Tensor, channels: int) -> tf.Tensor:
    """Decodes one image, in a TensorFlow graph or outside.

    Args:
      data: string (), the bytes of a file.
      channels: 3 for RGB, 1 for gray, which colours are turned into.

    Returns:
      uint8 (H, W, channels).

    Raises:
      tf.errors.OpError: it cannot be decoded; `in_words` says why.
    """
    image = _colour(data) if channels == 3 else _gray(data)
    with tf.control_dependencies([image]):  # an error is always that of the decoder
        head = tf.strings.substr(data, 0, EXIF_WITHIN)
    has_exif = tf.strings.regex_full_match(head, r"\C*Exif\x00\x00\C*")
    return tf.cond(has_exif, lambda: _upright(image, data), lambda: image)


def in_words(error: tf.errors.OpError) -> str:
    """What TensorFlow's error about reading or decoding an example means, as half a sentence."""
    if isinstance(error, tf.errors.NotFoundError):
        return "it is not there any more"
    if isinstance(error, tf.errors.PermissionDeniedError):
        return "it may not be read"
    for said, meant in (
        ("Input is empty", "it is empty"),
        ("Unknown image file format", "it is not a JPEG, PNG, GIF, BMP or WebP image"),
        ("corrupted record", "its record is damaged"),
        ("truncated record", "its file of records is cut short"),
    ):
        if said in error.message:
            return meant
    if isinstance(error, tf.errors.InvalidArgumentError):
        return "it is damaged or cut short"
    return " ".join(error.message.rpartition("}}")[2].partition(" [Op:")[0].split())


def orientation(data: tf.Tensor) -> tf.Tensor:
    """The EXIF orientation of a JPEG, 1 to 8, int32 (); 1, upright, where none can be read.

    Args:
      data: string (), the bytes of a file in which "Exif" and two zeros occur.
    """
    head = tf.strings.substr(data, 0, EXIF_WITHIN + LONGEST)
    parts = tf.raw_ops.StringSplitV2(input=head[None], sep=b"Exif\0\0", maxsplit=1).values
    before, tiff = parts[0], parts[1]
    octets = tf.cast(tf.io.decode_raw(tiff, tf.uint8), tf.int64)
    octets = tf.concat([octets, tf.zeros(12, tf.int64)], 0)  # so that a header is always there
    little_endian = octets[0] == ord("I")

    def number(octets, size):
        powers = 256 ** tf.range(size, dtype=tf.int64)
        weights = tf.where(little_endian, powers, powers[::-1])
        return tf.reduce_sum(octets * weights, -1)

    # A directory: how many entries it has, and these, of 12 bytes: tag, type, count, value.
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


# Kept as one node of the graph: in a branch that is not taken, each node costs some microseconds.
@tf.function(
    input_signature=[tf.TensorSpec((None, None, None), tf.uint8), tf.TensorSpec((), tf.string)],
    autograph=False,
    experimental_attributes={"_noinline": True},
)
def _upright(image, data):
    """Undoes the orientation: 5 to 8 have rows and columns exchanged, the rest are mirrors."""
    turned = orientation(data)
    image = tf.cond(turned >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    is_mirrored = tf.reduce_any(turned == tf.constant([[3, 4, 7, 8], [2, 3, 6, 7]]), 1)
    return tf.reverse(image, tf.boolean_mask([0, 1], is_mirrored))


def _colour(data):
    return tf.io.decode_image(data, channels=3, expand_animations=False)


def _gray(data):
    """TensorFlow makes gray of PNG and JPEG by itself, but not of CMYK and other formats."""

    def turned_gray():
        return tf.image.rgb_to_grayscale(_colour(data))

    def itself():
        return tf.io.decode_image(data, channels=1, expand_animations=False)

    def of_jpeg():
        is_cmyk = tf.io.extract_jpeg_shape(data)[2] == 4
        return tf.cond(is_cmyk, turned_gray, itself)

    is_png = tf.strings.substr(data, 0, 4) == b"\x89PNG"
    return tf.cond(tf.io.is_jpeg(data), of_jpeg, lambda: tf.cond(is_png, itself, turned_gray))
