"""Image files that TensorFlow does not decode, by Pillow and tifffile; values of more than 8 bits.

TIFF and PNM (PPM, PGM and PBM, plain or binary) are decoded in Python threads, one for each image
that the input pipeline decodes at a time. Pillow reads PNM, and TIFF of up to 8 bits or of one
channel; tifffile (extra `tiff`) reads TIFF of more bits in several channels, and of any number of
channels: all samples of a pixel, or the pages of a stack that are one channel each (axes CYX of
ImageJ and OME). Of other TIFFs with several pages the first counts.

Values of more than 8 bits become uint8 by a fixed rule. Without a range, the range of their type is
that of 0 to 255, of which the upper 8 bits are kept: 16 unsigned bits are divided by 256 and
rounded down, as TensorFlow does for PNG. With a range (low, high), low becomes 0 and high 255,
linear between, rounded to even, clipped beyond; NaN becomes low. Floats have no range of their own.
Values of up to 8 bits stay as they are.
"""

import functools
import io

import numpy as np

from byol_jax.data import optional
from byol_jax.data._tensorflow import tf
from byol_jax.data.decode import PYTHON_MARK
from byol_jax.data.decode import decode as decode_by_tensorflow
from byol_jax.errors import UserError

# The first bytes of TIFF (6.0 and BigTIFF) and PNM.
MAGIC = r"II\*\x00|MM\x00\*|II\+\x00|MM\x00\+|P[1-6]\s\C"
# Tags of TIFF 6.0: bits of a sample; what samples mean (0 and 1: gray); description; samples of a
# pixel; format of a sample (2: signed).
BITS, PHOTOMETRIC, DESCRIPTION, SAMPLES, FORMAT = 258, 262, 270, 277, 339
RGB, ALPHA = 2, (1, 2)  # values of the tags for what samples, and those after the colours, mean
STACKS = ("ImageJ=", "<OME")  # in the description of a file whose pages may be channels
# Axes of tifffile: channels, and pages without a meaning.
CHANNEL, PAGES = "C", "IQ"

Range = tuple[float, float] | None


def decode(data: tf.Tensor, channels: int, value_range: Range) -> tf.Tensor:
    """As `decode.decode`, of more formats, in a TensorFlow graph or outside.

    Args:
      data: string (), the bytes of a file.
      channels: 3 for RGB, 1 for gray; gray and colour images are converted. Any other number: that
        of a TIFF, as it is.
      value_range: of values of more than 8 bits, as above; None for that of their type.

    Returns:
      uint8 (H, W, channels).

    Raises:
      tf.errors.OpError: it cannot be decoded; `error_reason` explains why.
    """

    def by_python() -> tf.Tensor:
        run = functools.partial(_decode, channels=channels, value_range=value_range)
        image = tf.numpy_function(run, [data], tf.uint8, stateful=False)
        image.set_shape([None, None, channels])
        return image

    def by_tensorflow() -> tf.Tensor:
        if value_range is None:
            return decode_by_tensorflow(data, channels)
        return tf.cond(_is_deep_png(data), deep_png, lambda: decode_by_tensorflow(data, channels))

    def deep_png() -> tf.Tensor:
        values = tf.io.decode_png(data, channels, tf.uint16)
        return tf.gather(tf.constant(_table("<u2", value_range)), tf.cast(values, tf.int32))

    if channels not in (1, 3):
        return by_python()
    return tf.cond(
        tf.strings.regex_full_match(tf.strings.substr(data, 0, 4), MAGIC), by_python, by_tensorflow
    )


def to_uint8(values: np.ndarray, value_range: Range = None) -> np.ndarray:
    """Numbers as uint8, by the rule above.

    Raises:
      ValueError: floats without a range, or no real numbers; the text is the reason.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return 255 * values.astype(np.uint8)
    if values.dtype.kind not in "iuf" or (values.dtype.kind == "f" and value_range is None):
        raise ValueError(
            f"its values are {values.dtype}, which have no range of their own: set "
            "--config.data.value_range=LOW,HIGH"
        )
    if values.dtype.kind in "iu" and values.dtype.itemsize == 2:
        values = values.astype(values.dtype.newbyteorder("<"), copy=False)
        return _table(values.dtype.str, value_range)[values.view("<u2")]
    return _mapped(values, value_range)


@functools.lru_cache(8)
def _table(dtype: str, value_range: Range) -> np.ndarray:
    """Uint8 (65536,): what 16-bit values become, by their bits; in a tenth of `_mapped`'s time."""
    return _mapped(np.arange(2**16, dtype="<u2").view(dtype), value_range)


def _mapped(values: np.ndarray, value_range: Range) -> np.ndarray:
    if value_range is None:
        info = np.iinfo(values.dtype)
        return ((values.astype(np.int64) - info.min) >> (info.bits - 8)).astype(np.uint8)
    low, high = value_range
    inside = np.clip(np.where(np.isnan(values), low, values.astype(np.float64)), low, high)
    return np.rint((inside - low) * (255 / (high - low))).astype(np.uint8)


def require(channels: int) -> None:
    """Raises UserError if images of so many channels need a package that is not installed."""
    if channels not in (1, 3):
        _tifffile()


def _tifffile():
    return optional.package("tifffile", "TIFF files that Pillow does not read", "tiff")


def _is_deep_png(data):
    """Whether it is a PNG of 16 bits: byte 24, in the chunk IHDR, is the depth."""
    return tf.strings.regex_full_match(tf.strings.substr(data, 0, 25), r"\CPNG\C{20}\x10")


def _decode(data: bytes | np.ndarray, channels: int, value_range: Range) -> np.ndarray:
    """The pixels, uint8 (H, W, channels); raises an OpError that begins with PYTHON_MARK.

    TensorFlow gives bytes in a graph, and an array () of them outside.
    """
    data = data if isinstance(data, bytes) else data.item()
    try:
        return np.ascontiguousarray(_pixels(data, channels, value_range))
    except MemoryError:
        reason = "it does not fit into memory"
    except (_UnsuitableError, UserError) as error:
        reason = str(error).rstrip(".")
    except Exception as error:  # what is raised for damaged files differs from format to format
        lines = str(error).splitlines() or [type(error).__name__]
        reason = f"it is damaged, or of a kind that is not read ({lines[0].rstrip('.')[:200]})"
    raise tf.errors.InvalidArgumentError(None, None, f"{PYTHON_MARK}{reason}")


class _UnsuitableError(Exception):
    """A file that is sound, but cannot be used; the text is the reason."""


def _pixels(data, channels, value_range):
    from PIL import Image, ImageOps

    is_tiff = data[:2] in (b"II", b"MM")
    if channels not in (1, 3) and not is_tiff:
        raise _UnsuitableError(f"only TIFF files have config.data.channels={channels}")
    try:
        image = Image.open(io.BytesIO(data))
    except Image.UnidentifiedImageError:
        if not is_tiff:
            raise
        image = None
    tags = getattr(image, "tag_v2", {})
    bits, samples = max(tags.get(BITS, (1,))), tags.get(SAMPLES, 1)
    if is_tiff and (
        image is None
        or channels not in (1, 3)
        or (samples > 1 and bits > 8)
        or (samples > 2 and tags.get(PHOTOMETRIC) in (0, 1))
        or (samples == 1 and channels == 3 and _is_stack(image))
    ):
        return _converted(_samples(data, channels), channels, value_range)
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        values = np.asarray(image)
        if image.mode == "I":  # int32, whatever the file has; a PGM has values up to 65535
            is_signed = tags.get(FORMAT, (1,))[0] == 2
            values = values.astype(f"{'i' if is_signed else 'u'}{bits // 8 if tags else 2}")
        return _converted(values[..., None], channels, value_range)
    if image.mode not in ("1", "L", "RGB", "CMYK", "YCbCr"):  # palettes and alpha channels
        image = image.convert("LA" if image.mode.lower() == "la" else "RGBA")
    pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _converted(values, channels, value_range):
    """Samples (H, W, n) as uint8 (H, W, channels)."""
    from PIL import Image

    try:
        pixels = to_uint8(values, value_range)
    except ValueError as error:
        raise _UnsuitableError(str(error)) from error
    has = pixels.shape[-1]
    if has == channels:
        return pixels
    if channels == 3 and has == 1:
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    if channels == 1 and has == 3:
        return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    raise _UnsuitableError(f"it has {has} channels, and config.data.channels={channels}")


def _is_stack(image):
    """Whether the pages of a TIFF may be its channels."""
    description = str(image.tag_v2.get(DESCRIPTION, ""))
    return image.n_frames > 1 and any(text in description for text in STACKS)


def _samples(data, channels):
    """All samples of a TIFF (H, W, n), in its own type; by tifffile."""
    with _tifffile().TiffFile(io.BytesIO(data)) as tiff:
        page, series = tiff.pages[0], tiff.series[0]
        stacked = CHANNEL if channels == 3 else CHANNEL + PAGES
        lengths = {axis: n for axis, n in zip(series.axes, series.shape, strict=True) if n > 1}
        is_stack = any(n == channels and axis in stacked for axis, n in lengths.items())
        chosen = series if is_stack and "S" not in page.axes else page
        values, axes, meaning = chosen.asarray(), chosen.axes, page.photometric
        has_alpha = any(extra in ALPHA for extra in page.extrasamples)
    keep = [i for i, axis in enumerate(axes) if axis in "YX" or values.shape[i] > 1]
    values, axes = values.reshape([values.shape[i] for i in keep]), "".join(axes[i] for i in keep)
    if axes == "YX":
        return values[..., None]
    if values.ndim != 3:
        raise _UnsuitableError(
            f"it has the axes {axes}, and one of channels is possible beside Y and X"
        )
    (at,) = (i for i, axis in enumerate(axes) if axis not in "YX")
    values = np.moveaxis(values, at, -1)
    if channels in (1, 3) and meaning == RGB:
        return values[..., :3]  # without what comes after the colours
    return values[..., :1] if channels in (1, 3) and has_alpha else values
