"""What the images of a source are like, from a sample of them."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from byol_jax.data.arrays import ArraySource
from byol_jax.data.source import ImageSource
from byol_jax.errors import DataError

SAMPLE = 256  # images
PIXELS = 64  # of a side, at most, that colours are measured on


class Look(NamedTuple):
    """What a sample shows."""

    num_examples: int  # of the source
    sampled: int  # images that were decoded
    unreadable: int  # images of the sample that could not be
    side: int  # pixels: the median of the shorter sides,
    smallest: int  # the smallest of them,
    largest: int  # and the largest of the longer ones
    is_gray: bool  # all channels are equal, and the source can decode to one
    mean: tuple[float, ...]  # of each channel, for values in 0..1, over images
    std: tuple[float, ...]  # likewise, over all pixels; at least .001


def look(source: ImageSource, seed: int = 0) -> Look:
    """Decodes up to SAMPLE images of a source, always the same ones.

    Raises:
      DataError: none of them can be decoded.
    """
    count = min(SAMPLE, source.num_examples)
    indices = np.random.default_rng(seed).choice(source.num_examples, count, replace=False)
    shapes, means, squares = [], [], []
    is_gray = source.channels == 3 and not isinstance(source, ArraySource)
    for images in _decoded(source, np.sort(indices)):
        shapes.append(images[0].shape[:2])
        for image in images:
            steps = [-(-size // PIXELS) for size in image.shape[:2]]
            pixels = image[:: steps[0], :: steps[1]] / 255.0
            means.append(pixels.mean((0, 1)))
            squares.append((pixels**2).mean((0, 1)))
            is_gray = is_gray and bool((image == image[..., :1]).all())
    if not shapes:
        raise DataError(
            f"{source.name}: none of {count} images can be decoded; byol-jax check-data says why."
        )
    mean = np.mean(means, axis=0)
    std = np.sqrt(np.maximum(np.mean(squares, axis=0) - mean**2, 1e-6))
    shorter = np.min(shapes, axis=1)
    return Look(
        num_examples=source.num_examples,
        sampled=len(shapes),
        unreadable=count - len(shapes),
        side=int(np.median(shorter)),
        smallest=int(shorter.min()),
        largest=int(np.max(shapes)),
        is_gray=is_gray,
        mean=tuple(round(float(x), 3) for x in mean),
        std=tuple(max(0.001, round(float(x), 3)) for x in std),
    )


def _decoded(source: ImageSource, indices: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """The image at each index, or both images of a pair, without damaged ones.

    They are uint8 (height, width, channels).
    """
    if isinstance(source, ArraySource):
        yield from source.images[indices][:, None]
        return
    from byol_jax.data._tensorflow import tf
    from byol_jax.data.pairs import PairSource

    count = 2 if isinstance(source, PairSource) else 1
    decoded = source.get(tf.constant(indices, tf.int64)).map(
        lambda *raw: source.decode_views(raw, count)[0], num_parallel_calls=tf.data.AUTOTUNE
    )
    yield from decoded.ignore_errors().as_numpy_iterator()
