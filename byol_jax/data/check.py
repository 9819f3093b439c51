"""Looks at every image of a source before a long run: what cannot be decoded, and what is odd."""

import io
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from PIL import Image

from byol_jax.data._tensorflow import tf
from byol_jax.data.decode import in_words, orientation
from byol_jax.data.decode_errors import fault
from byol_jax.data.source import Source

SMALL = 16  # pixels; few of the crops of such an image have anything to show


class Finding(NamedTuple):
    """What was seen of one example.

    Attributes:
      name: its name.
      fault: why it cannot be decoded; None if it can.
      oddities: what may surprise its owner, but is no fault.
    """

    name: str
    fault: str | None
    oddities: tuple[str, ...]


def check(source: Source, workers: int) -> Iterator[Finding]:
    """Decodes every example, as training does.

    Args:
      source: the images.
      workers: how many to decode at a time.

    Yields:
      A finding for each, in the source's own order. Where the files of a streamed source cannot be
      read any further, the last one says so, under the name of the source.
    """
    # Of broken metadata and large images. For the whole process: threads share their filters.
    warnings.filterwarnings("ignore", module=r"PIL\b")
    with ThreadPoolExecutor(workers) as pool:
        pending = deque()
        try:
            for raw in _raws(source):
                pending.append(pool.submit(_look_at, source, raw))
                if len(pending) > 4 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # where the caller stops early, too
            pool.shutdown(cancel_futures=True)


def _raws(source: Source) -> Iterator[Any]:
    """All raw examples; where they cannot be read any further, the error in place of the next."""
    try:
        yield from source.raw(tf.range(source.num_examples, dtype=tf.int64))
    except tf.errors.OpError as error:
        yield error


def _look_at(source: Source, raw: Any) -> Finding:
    if isinstance(raw, tf.errors.OpError):
        return Finding(source.name, f"it cannot be read any further: {in_words(raw)}", ())
    name = source.describe(int(source.index(raw)))
    reason = fault(source, raw)
    if reason is not None:
        return Finding(name, reason, ())
    return Finding(name, None, tuple(_oddities(source, raw)))


def _oddities(source, raw):
    height, width, _ = source.decode(raw)[0].shape
    if min(height, width) < SMALL:
        yield f"it is only {width} x {height} pixels"
    data = source.encoded(raw)
    if data is None:
        return
    data = data.numpy()
    try:
        # Only its header is read.
        with Image.open(io.BytesIO(data)) as image:
            if image.mode == "CMYK":
                yield "its CMYK colours are turned into RGB without their profile"
            if image.mode.startswith("I"):
                yield "only the upper 8 of its 16 bits are used"
            if getattr(image, "is_animated", False):
                yield "of its animation only the first frame is used"
    # TensorFlow could read it: that counts.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        yield "Pillow cannot read it"
    if b"Exif\0\0" in data[:4096] and (turned := int(orientation(data))) > 1:
        yield f"it is turned upright (EXIF orientation {turned})"
