"""Evaluation batches: central views of every example once, in an order that never changes."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from byol_jax.augment import crops
from byol_jax.data.arrays import ArraySource
from byol_jax.data.source import ImageSource
from byol_jax.errors import ConfigError, DataError

ADVICE = (
    "; repair it, or leave it out with --on_decode_error=skip (of evaluate and export) or "
    "--config.data.on_decode_error=skip (of pretrain)."
)


class CentralView(NamedTuple):
    """A central square of an image, resized.

    Attributes:
      image_size: height and width S of the view.
      crop_fraction: side of the square as a fraction of the shorter side of the image.
    """

    image_size: int
    crop_fraction: float = 0.875


def eval_batches(
    source: ImageSource,
    *,
    batch_size: int,
    image_size: int,
    crop_fraction: float = 0.875,
    limit: int | None = None,
    on_decode_error: Callable[[int, str], None] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """As `eval_views`, for one view: yields images, uint8 (B, S, S, C), and labels."""
    views = [CentralView(image_size, crop_fraction)]
    batches = eval_views(
        source, views, batch_size=batch_size, limit=limit, on_decode_error=on_decode_error
    )
    return ((images, labels) for (images,), labels in batches)


def eval_views(
    source: ImageSource,
    views: Sequence[CentralView],
    *,
    batch_size: int,
    limit: int | None = None,
    on_decode_error: Callable[[int, str], None] | None = None,
) -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray | None]]:
    """Central views of every example, once, in an order that never changes.

    Args:
      source: where the images come from; each is decoded once.
      views: which views of each image.
      batch_size: examples in a batch; the last one may have fewer.
      limit: if given, only this many examples, drawn at random but always the same.
      on_decode_error: if given, what cannot be decoded is left out, and this is called with its
        index in the source, and its name and error; if None, it raises DataError.

    Yields:
      Images, uint8 (B, S, S, C) for each view, and labels, int32 (B,), or None.

    Raises:
      ConfigError: at the call, if an argument is out of its range.
      DataError: while iterating, if an image cannot be decoded and `on_decode_error` is None.
    """
    for view in views:
        crops.check_size(view.image_size)
        if not 0 < view.crop_fraction <= 1:
            raise ConfigError(
                f"the crop fraction must lie within (0, 1], not {view.crop_fraction}."
            )
    if batch_size < 1:
        raise ConfigError(f"the batch size must be at least 1, not {batch_size}.")
    if limit is not None and limit < 1:
        raise ConfigError(f"the limit of examples must be at least 1, not {limit}.")
    if limit is not None and limit >= source.num_examples:
        limit = None
    if isinstance(source, ArraySource):
        return _array_batches(source, views, batch_size, limit)
    return _decoded_batches(source, views, batch_size, limit, on_decode_error)


def _array_batches(source, views, batch_size, limit):
    """As `crops.resized_crop`, without TensorFlow: all images have the same box."""
    indices = np.arange(source.num_examples)
    if limit is not None:
        indices = np.random.default_rng(0).permutation(source.num_examples)[:limit]
    take = [_central_view(source.images.shape[1:3], view) for view in views]
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size]
        images = source.images[chosen]
        labels = None if source.num_classes is None else source.labels[chosen]
        yield tuple(view(images) for view in take), labels


def _central_view(shape, view):
    """A function from images of a (height, width) to their views."""
    height, width = shape
    size = view.image_size
    top, left, side, _ = crops.central_box(np.float32([height, width]), view.crop_fraction, xp=np)
    rows = crops.bicubic_matrix(top, side, height, size, xp=np)
    columns = crops.bicubic_matrix(left, side, width, size, xp=np)
    if (height, width) == (side, side) == (size, size):
        return lambda images: images

    def resized(images):
        pixels = np.einsum(
            "yh,nhwc,xw->nyxc", rows, images.astype(np.float32), columns, optimize=True
        )
        return np.clip(np.round(pixels), 0, 255).astype(np.uint8)

    return resized


def _decoded_batches(source, views, batch_size, limit, on_decode_error):
    """The batches of any source, by TensorFlow."""
    from byol_jax.data._tensorflow import tf
    from byol_jax.data.crop import center_crop
    from byol_jax.data.decode import NOT_REPLACED, decode_errors, first_decode_error

    # Of a limited number, the first ones in a shuffled order: labels may be sorted or periodic, and
    # a streamed source can stop reading there.
    positions = tf.range(limit or source.num_examples, dtype=tf.int64)
    shuffle_seed = None if limit is None else tf.constant([0, 0], tf.int64)

    def decoded(*raw):
        image, label = source.decode(raw)
        found = tuple(center_crop(image, view.image_size, view.crop_fraction) for view in views)
        return found, label, tf.constant(NOT_REPLACED, tf.int64)

    def decoded_or_index(*raw):
        sizes = [view.image_size for view in views]
        blank = tuple(tf.zeros((size, size, source.channels), tf.uint8) for size in sizes)
        nothing = tf.data.Dataset.from_tensors((blank, -1, raw[0]))
        found = tf.data.Dataset.from_tensors(raw).map(decoded)
        return found.ignore_errors().concatenate(nothing).take(1)

    parallel = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    dataset = source.raw(positions, shuffle_seed)
    if on_decode_error is None:
        dataset = dataset.map(decoded, **parallel)
    else:
        dataset = dataset.interleave(decoded_or_index, cycle_length=tf.data.AUTOTUNE, **parallel)
    arrays = dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    count = 0
    while True:
        try:
            batch = next(arrays, None)
        except tf.errors.OpError as error:
            raws = source.raw(positions[count:], shuffle_seed)
            raise DataError(f"{first_decode_error(source, raws, error)}{ADVICE}") from error
        if batch is None:
            return
        images, labels, failed = batch
        count += len(labels)
        is_decoded = failed == NOT_REPLACED
        if not is_decoded.all():
            images, labels = tuple(view[is_decoded] for view in images), labels[is_decoded]
            for index, message in decode_errors(source, failed.tolist()):
                on_decode_error(index, message)
        if len(labels):
            yield images, None if source.num_classes is None else labels
