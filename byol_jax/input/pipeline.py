"""From a source to batches: pairs of random views for training, one central view for evaluation.

Whatever is random is a function of (seed, epoch, position in the epoch's order), so a run can be
resumed at any step, and split among any number of hosts, without a change to a single pixel.
"""

from collections.abc import Iterator

import numpy as np

from byol_jax.byol import Batch
from byol_jax.errors import UserError
from byol_jax.input._tensorflow import tf
from byol_jax.input.base import Source
from byol_jax.input.crops import Crop, center_crop, check_crop, random_views


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """How many whole batches an epoch has; the examples left over sit out, others in each epoch.

    Raises:
      UserError: if there is not even one.
    """
    if batch_size < 1:
        raise UserError(f"the batch size must be at least 1, not {batch_size}.")
    if source.num_examples < batch_size:
        raise UserError(
            f"{source.name} has {source.num_examples} examples, fewer than a batch of "
            f"{batch_size}; choose a smaller --config.batch_size (4 at least), or more images."
        )
    return source.num_examples // batch_size


def train_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    seed: int,
    num_steps: int,
    start_step: int = 0,
    crop: Crop | None = None,
    host_index: int = 0,
    host_count: int = 1,
) -> Iterator[Batch]:
    """Pairs of random views of every example of each epoch, in random order.

    Args:
      source: where the images come from.
      batch_size: examples in the global batch, the sum over hosts.
      image_size: height and width S of a view.
      seed: all randomness follows from it.
      num_steps: steps of the whole run.
      start_step: the first step to yield; nothing before it is decoded.
      crop: the distribution of the boxes; the paper's by default.
      host_index: which rows of the global batch to yield: the host_index-th of host_count equal,
        contiguous parts.
      host_count: hosts that share the global batch.

    Yields:
      Steps start_step to num_steps - 1 as NumPy arrays (read-only): views uint8 (2, B, S, S, C),
      labels int32 (B,) or None, positions int32 (B,), where B = batch_size / host_count and
      positions are the rows in the global batch.

    Raises:
      UserError: at the call if an argument is out of its range; while iterating if an image cannot
        be decoded.
    """
    epoch_steps = steps_per_epoch(source, batch_size)
    crop = Crop() if crop is None else crop
    check_crop(crop)
    _check_size(image_size)
    if batch_size % host_count:
        raise UserError(f"a batch of {batch_size} cannot be shared equally by {host_count} hosts.")
    local_size = batch_size // host_count

    def epoch_examples(epoch, start, stop):
        """(position in the epoch's order, raw example) of this host, of steps start to stop - 1."""
        rows = tf.range(local_size, dtype=tf.int64) + host_index * local_size
        positions = tf.range(start, stop)[:, None] * batch_size + rows
        positions = tf.reshape(positions, [-1])
        # Seeds of orders are negative, seeds of crops are not, so the two have nothing in common.
        raw = source.raw(positions, shuffle_seed=tf.stack([seed, -1 - epoch]))
        return tf.data.Dataset.zip(tf.data.Dataset.from_tensor_slices(positions), raw).map(
            lambda position, raw: (epoch, position, raw)
        )

    def examples(first, last):
        epochs = tf.data.Dataset.range(first // epoch_steps, -(-last // epoch_steps))
        return epochs.flat_map(
            lambda epoch: epoch_examples(
                epoch,
                tf.maximum(first - epoch * epoch_steps, 0),
                tf.minimum(last - epoch * epoch_steps, epoch_steps),
            )
        )

    def views(epoch, position, raw):
        image, label = source.decode(raw)
        view_seed = tf.stack([seed, epoch * 2**32 + position])
        first, second = random_views(image, image_size, crop, view_seed)
        return first, second, label, tf.cast(position % batch_size, tf.int32)

    def batches():
        dataset = examples(start_step, num_steps)
        dataset = dataset.map(views, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        dataset = dataset.batch(local_size, drop_remainder=True).map(
            lambda first, second, *rest: (tf.stack([first, second]), *rest)
        )
        return dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()

    def raw_of_batch(index):
        step = start_step + index
        return (raw for _, _, raw in examples(step, step + 1))

    labelled = source.num_classes is not None
    return (
        Batch(views=views, labels=labels if labelled else None, positions=positions)
        for views, labels, positions in _naming_what_is_broken(batches(), source, raw_of_batch)
    )


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    crop_fraction: float = 0.875,
    limit: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The central view of every example, once, in an order that never changes.

    Args:
      source: where the images come from.
      batch_size: examples in a batch; the last one may have fewer.
      image_size: height and width S of a view.
      crop_fraction: side of the central square as a share of the shorter side of the image.
      limit: take only so many examples, drawn at random and always the same.

    Yields:
      Images, uint8 (B, S, S, C), and labels, int32 (B,), or None.

    Raises:
      UserError: at the call if an argument is out of its range; while iterating if an image cannot
        be decoded.
    """
    _check_size(image_size)
    if batch_size < 1:
        raise UserError(f"the batch size must be at least 1, not {batch_size}.")
    if not 0 < crop_fraction <= 1:
        raise UserError(f"the crop fraction must lie within (0, 1], not {crop_fraction}.")
    if limit is not None and limit < 1:
        raise UserError(f"the limit of examples must be at least 1, not {limit}.")
    count, shuffle_seed = source.num_examples, None
    if limit is not None and limit < count:
        # The first of a shuffled order, not evenly spaced: labels may well come in turn, and a
        # streamed source can stop reading there.
        count, shuffle_seed = limit, tf.constant([0, 0], tf.int64)
    positions = tf.range(count, dtype=tf.int64)

    def view(raw):
        image, label = source.decode(raw)
        return center_crop(image, image_size, crop_fraction), label

    def raw_of_batch(index):
        start = index * batch_size
        return source.raw(positions[start : start + batch_size], shuffle_seed)

    dataset = source.raw(positions, shuffle_seed)
    dataset = dataset.map(view, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)
    labelled = source.num_classes is not None
    return (
        (images, labels if labelled else None)
        for images, labels in _naming_what_is_broken(
            dataset.as_numpy_iterator(), source, raw_of_batch
        )
    )


def _naming_what_is_broken(batches, source, raw_of_batch):
    """Yields from batches; TensorFlow's error about an example becomes a UserError that names it.

    TensorFlow does not tell which example it failed at, but batches arrive in order: the failed
    example is in the first batch that did not arrive, so decoding that batch once more finds it.
    """
    count = 0
    while True:
        try:
            batch = next(batches, None)
        except tf.errors.OpError as error:
            for raw in raw_of_batch(count):
                try:
                    source.decode(raw)
                except tf.errors.OpError:
                    raise UserError(
                        f"{source.describe(raw)} cannot be decoded; repair it, or put another "
                        "image under its name: a run that has begun needs as many as before."
                    ) from error
            raise
        if batch is None:
            return
        yield batch
        count += 1


def _check_size(image_size: int) -> None:
    if image_size < 1:
        raise UserError(f"the image size must be at least 1, not {image_size}.")
