"""Decodes every image of a source before a long run, and finds what is unusual."""

import io
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from byol_jax.data._tensorflow import tf
from byol_jax.data.decode import decode_error, error_reason, orientation
from byol_jax.data.source import ImageSource

BITS = 258  # the tag of TIFF 6.0 for the bits of each sample
SMALL = 16  # pixels; few crops of such an image show anything


class Finding(NamedTuple):
    """What was found about one example."""

    name: str
    decode_error: str | None  # why it cannot be decoded; None if it can
    warnings: tuple[str, ...]  # what may surprise its owner, but is no error


def check(source: ImageSource, workers: int) -> Iterator[Finding]:
    """Decodes every example, as training does.

    Yields a finding for each, in the source's own order; `workers` are decoded at a time. If the
    files of a streamed source cannot be read any further, the last finding has the name of the
    source and the error.
    """
    # Pillow's warnings about metadata and size. For the whole process: threads share filters.
    warnings.filterwarnings("ignore", module=r"PIL\b")
    with ThreadPoolExecutor(workers) as pool:
        pending = deque()
        try:
            for raw in _raws(source):
                pending.append(pool.submit(_find, source, raw))
                if len(pending) > 4 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # also if the caller stops early
            pool.shutdown(cancel_futures=True)


def _raws(source: ImageSource) -> Iterator[tuple | tf.errors.OpError]:
    """All raw examples; if they cannot be read any further, the error instead of the next one."""
    try:
        yield from source.raw(tf.range(source.num_examples, dtype=tf.int64))
    except tf.errors.OpError as error:
        yield error


def _find(source: ImageSource, raw: tuple | tf.errors.OpError) -> Finding:
    if isinstance(raw, tf.errors.OpError):
        return Finding(source.name, f"it cannot be read any further: {error_reason(raw)}", ())
    reason = decode_error(source, raw)
    warnings = () if reason else tuple(_warnings(source, raw))
    return Finding(source.describe(int(raw[0])), reason, warnings)


def _warnings(source, raw):
    height, width, _ = source.decode(raw)[0].shape
    if min(height, width) < SMALL:
        yield f"it is only {width} x {height} pixels"
    data = source.encoded(raw)
    if data is None or source.channels not in (1, 3):  # which Pillow does not know
        return
    data = data.numpy()
    try:
        with Image.open(io.BytesIO(data)) as image:  # reads the header only
            if image.mode == "CMYK":
                yield "its CMYK colours are converted to RGB without their profile"
            bits = max(getattr(image, "tag_v2", {}).get(BITS, (8,)))  # of a TIFF
            is_deep = image.mode.startswith("I") or bits > 8
            if is_deep and getattr(source, "value_range", None) is None:
                yield f"only the upper 8 of its {max(bits, 16)} bits are used"
            if getattr(image, "is_animated", False):
                yield "of its animation only the first frame is used"
    # Not an error, as TensorFlow can read it.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        yield "Pillow cannot read it"
    if len(byte := orientation(data).numpy()) == 1 and byte > b"\1":
        yield f"it is turned upright (EXIF orientation {byte[0]})"
