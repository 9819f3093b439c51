"""Evaluation batches: the central view of every example once, in an order that never changes."""

from collections.abc import Callable, Iterator

import numpy as np

from byol_jax.augment import crops
from byol_jax.data.arrays import ArraySource
from byol_jax.data.source import Source
from byol_jax.errors import ConfigError, DataError

ADVICE = (
    "; repair it, or leave it out with --on_decode_error=skip (of evaluate and export) or "
    "--config.data.on_decode_error=skip (of pretrain)."
)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    crop_fraction: float = 0.875,
    limit: int | None = None,
    on_decode_error: Callable[[int, str], None] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The central view of every example, once, in an order that never changes.

    Args:
      source: where the images come from.
      batch_size: examples in a batch; the last one may have fewer.
      image_size: height and width S of a view.
      crop_fraction: side of the central square as a fraction of the shorter side of the image.
      limit: if given, only this many examples, drawn at random but always the same.
      on_decode_error: if given, what cannot be decoded is left out, and this is called with its
        index in the source, and its name and error; if None, it raises DataError.

    Yields:
      Images, uint8 (B, S, S, C), and labels, int32 (B,), or None.

    Raises:
      ConfigError: at the call, if an argument is out of its range.
      DataError: while iterating, if an image cannot be decoded and `on_decode_error` is None.
    """
    crops.check_size(image_size)
    if batch_size < 1:
        raise ConfigError(f"the batch size must be at least 1, not {batch_size}.")
    if not 0 < crop_fraction <= 1:
        raise ConfigError(f"the crop fraction must lie within (0, 1], not {crop_fraction}.")
    if limit is not None and limit < 1:
        raise ConfigError(f"the limit of examples must be at least 1, not {limit}.")
    if limit is not None and limit >= source.num_examples:
        limit = None
    if isinstance(source, ArraySource):
        return _array_batches(source, batch_size, image_size, crop_fraction, limit)
    return _decoded_batches(source, batch_size, image_size, crop_fraction, limit, on_decode_error)


def _array_batches(source, batch_size, size, crop_fraction, limit):
    """As `crops.resized_crop`, without TensorFlow: all images have the same box."""
    indices = np.arange(source.num_examples)
    if limit is not None:
        indices = np.random.default_rng(0).permutation(source.num_examples)[:limit]
    height, width = source.images.shape[1:3]
    top, left, side, _ = crops.central_box(np.float32([height, width]), crop_fraction, xp=np)
    rows = crops.bicubic_matrix(top, side, height, size, xp=np)
    columns = crops.bicubic_matrix(left, side, width, size, xp=np)
    is_unchanged = (height, width) == (side, side) == (size, size)
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size]
        images = source.images[chosen]
        if not is_unchanged:
            pixels = np.einsum(
                "yh,nhwc,xw->nyxc", rows, images.astype(np.float32), columns, optimize=True
            )
            images = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
        yield images, None if source.num_classes is None else source.labels[chosen]


def _decoded_batches(source, batch_size, size, crop_fraction, limit, on_decode_error):
    """The batches of any source, by TensorFlow."""
    from byol_jax.data._tensorflow import tf
    from byol_jax.data.crop import center_crop
    from byol_jax.data.decode import NOT_REPLACED, decode_errors, first_decode_error

    # Of a limited number, the first ones in a shuffled order: labels may be sorted or periodic, and
    # a streamed source can stop reading there.
    positions = tf.range(limit or source.num_examples, dtype=tf.int64)
    shuffle_seed = None if limit is None else tf.constant([0, 0], tf.int64)

    def view(*raw):
        image, label = source.decode(raw)
        return center_crop(image, size, crop_fraction), label, tf.constant(NOT_REPLACED, tf.int64)

    def view_or_index(*raw):
        blank = tf.zeros((size, size, source.channels), tf.uint8)
        nothing = tf.data.Dataset.from_tensors((blank, -1, raw[0]))
        views = tf.data.Dataset.from_tensors(raw).map(view)
        return views.ignore_errors().concatenate(nothing).take(1)

    parallel = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    dataset = source.raw(positions, shuffle_seed)
    if on_decode_error is None:
        dataset = dataset.map(view, **parallel)
    else:
        dataset = dataset.interleave(view_or_index, cycle_length=tf.data.AUTOTUNE, **parallel)
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
        count += len(images)
        is_decoded = failed == NOT_REPLACED
        if not is_decoded.all():
            images, labels = images[is_decoded], labels[is_decoded]
            for index, message in decode_errors(source, failed.tolist()):
                on_decode_error(index, message)
        if len(images):
            yield images, None if source.num_classes is None else labels
