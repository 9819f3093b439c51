"""Training batches made on the host: pairs of random views of every example of each epoch.

All randomness is a function of (seed, epoch, position in the epoch's order). There is no state to
save: any process makes any step, and neither a resume nor the number of processes changes a pixel.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from byol_jax.augment.crops import Crop, LocalViews, check_crop, check_size
from byol_jax.byol import Batch
from byol_jax.data import service as service_lib
from byol_jax.data._tensorflow import tf
from byol_jax.data.crop import random_views
from byol_jax.data.decode import NOT_REPLACED, decode_errors, first_decode_error
from byol_jax.data.source import ImageSource, ShardOptions, steps_per_epoch
from byol_jax.errors import ConfigError, DataError

# How many other examples are tried in place of one that cannot be decoded. If half of a source
# cannot be, one search in 65,536 fails, and something is wrong.
REPLACEMENTS = 16

# Added to the seed of the global views' crops, which is below 2**62, for the local views.
LOCAL_SEED = np.array([0, 2**62])

# What to do about an image that cannot be decoded, after the clause that names it.
ADVICE = (
    "; repair it, or put another image under its name, as the number of images of a run cannot "
    "change. --config.data.on_decode_error=skip replaces such images by others."
)
ADVICE_WHEN_REPLACING = (
    f", nor can {REPLACEMENTS} others drawn in its place: check the data with "
    "`byol-jax check-data`."
)


def train_batches(
    source: ImageSource,
    *,
    batch_size: int,
    image_size: int,
    seed: int,
    num_steps: int,
    start_step: int = 0,
    crop: Crop | None = None,
    local: LocalViews | None = None,
    views: int = 2,
    shard: ShardOptions | None = None,
    on_decode_error: Callable[[int, str], None] | None = None,
    service: str = "",
) -> Iterator[Batch]:
    """Pairs of random views of every example of each epoch, in random order.

    Args:
      source: where the images come from.
      batch_size: examples in the global batch, the sum over processes.
      image_size: height and width S of a view.
      seed: all randomness follows from it.
      num_steps: steps of the complete run.
      start_step: the first step to yield; nothing before it is decoded.
      crop: the distribution of the boxes; the paper's by default.
      local: local views beside the pair; none by default.
      views: of each example; BYOL needs a pair, a classifier one.
      shard: the rows of the global batch to yield; None for all of them.
      on_decode_error: if given, an example that cannot be decoded is replaced by another one (a
        function of seed, epoch and position), and this is called with the number of the update that
        uses it, start_step + 1 for the first, and the example's name and error. Input takes 25%
        to 50% more processor time (measured on photographs at 224 pixels), even if every image can
        be decoded, as each is a data set of its own. If None, such an example raises DataError.
      service: "grpc://HOST:PORT" of a tf.data service that makes the batches; "" for this process.

    Yields:
      Steps start_step to num_steps - 1 as NumPy arrays (read-only): examples uint8 (B, views, S, S,
      C), labels int32 (B,) or None, positions int32 (B,). There are B rows in the shard, and
      positions are their rows in the global batch. With local views, examples are a dictionary of
      "global" (B, views, S, S, C) and "local" (B, local.count, local.size, local.size, C).

    Raises:
      ConfigError: at the call, if an argument is out of its range.
      DataError: while iterating, if an image cannot be decoded and `on_decode_error` is None, if no
        replacement can be decoded either, or if the service is lost.
    """
    epoch_steps = steps_per_epoch(source, batch_size)
    crop = Crop() if crop is None else crop
    check_crop(crop)
    check_size(image_size)
    shard = ShardOptions(np.arange(batch_size), 0, 1) if shard is None else shard
    rows = np.asarray(shard.rows, np.int64)
    if rows.size * shard.count != batch_size or np.any(np.diff(rows) < 1):
        raise ConfigError(
            f"a batch of {batch_size} cannot be divided equally among {shard.count} processes; "
            "make --config.batch_size a multiple of the number of devices."
        )
    part, replace = source.shard(shard.index, shard.count), on_decode_error is not None
    pipeline = TrainPipeline(
        source, part, epoch_steps, batch_size, rows, image_size, crop, local, views, seed, replace
    )
    if service and source.uses_python:
        raise ConfigError(
            f"{source.name} has images that Python code decodes (TIFF, PNM, or with "
            "config.data.value_range), which a tf.data service cannot run: leave out "
            "--config.data.service."
        )
    if service:
        arrays = service_lib.batches(
            pipeline.batches, start_step, num_steps, service, source.order_depends_on_processes
        )
    else:
        arrays = pipeline.batches(start_step, num_steps).prefetch(tf.data.AUTOTUNE)
        arrays = arrays.as_numpy_iterator()
    return _as_batches(pipeline, arrays, start_step, on_decode_error)


def _as_batches(pipeline, arrays, step, on_decode_error):
    """Yields the batches from `step` on; reports or raises what cannot be decoded."""
    source = pipeline.source
    while True:
        try:
            arrays_of_step = next(arrays, None)
        except tf.errors.OpError as error:
            raws = pipeline.examples(step, step + 1).map(lambda epoch, position, raw: raw)
            message = first_decode_error(source, raws, error)
            advice = ADVICE_WHEN_REPLACING if pipeline.replace else ADVICE
            raise DataError(f"{message}{advice}") from error
        if arrays_of_step is None:
            return
        examples, labels, positions, replaced = arrays_of_step
        for _, message in decode_errors(source, replaced.tolist()):
            on_decode_error(step + 1, message)
        yield Batch(examples, None if source.num_classes is None else labels, positions)
        step += 1


def _stack(views):
    """Stacks views, and those in a dictionary, of a batch: (n, views, S, S, C)."""
    if isinstance(views, dict):
        return {name: _stack(some) for name, some in views.items()}
    return tf.stack(views, 1)


class TrainPipeline(NamedTuple):
    """The TensorFlow graph of the batches of one process."""

    source: ImageSource
    shard: ImageSource  # what of it this process reads (Source.shard)
    epoch_steps: int
    batch_size: int  # of the global batch
    rows: np.ndarray  # int64 (n,): this process's rows of it
    image_size: int
    crop: Crop
    local: LocalViews | None
    views: int
    seed: int
    replace: bool  # whether another example replaces one that cannot be decoded

    def examples(self, first: tf.Tensor, last: tf.Tensor) -> tf.data.Dataset:
        """(epoch, position in the epoch's order, raw example) of steps first to last - 1."""

        def steps_of(epoch):
            start = tf.maximum(first - epoch * self.epoch_steps, 0)
            stop = tf.minimum(last - epoch * self.epoch_steps, self.epoch_steps)
            return self._epoch(epoch, start, stop)

        epochs = tf.data.Dataset.range(first // self.epoch_steps, -(-last // self.epoch_steps))
        return epochs.flat_map(steps_of)

    def batches(self, first: tf.Tensor, last: tf.Tensor) -> tf.data.Dataset:
        """Batches of steps first to last - 1.

        Each is: examples as of `train_batches`, labels int32 (n,), rows int32 (n,) of the global
        batch, and int64 (n,) the index of the example that was replaced, or NOT_REPLACED.
        """
        parallel = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
        dataset = self.examples(first, last)
        if self.replace:
            # Interleaves data sets of one element each, which keeps the order.
            parallel["cycle_length"] = tf.data.AUTOTUNE
            dataset = dataset.interleave(self._first_decodable, **parallel)
        else:
            dataset = dataset.map(self._views, **parallel)
        # Stacked as a batch, which copies each view once.
        return dataset.batch(len(self.rows), drop_remainder=True).map(
            lambda views, *rest: (_stack(views), *rest)
        )

    def _epoch(self, epoch, start, stop):
        rows = tf.constant(self.rows, tf.int64)
        positions = tf.reshape(tf.range(start, stop)[:, None] * self.batch_size + rows, [-1])
        wanted = positions
        if self.source.order_depends_on_processes:  # positions within the process's own shard
            wanted = tf.range(start * len(self.rows), stop * len(self.rows))
        # Seeds of orders are negative and seeds of crops are not, so the two are independent.
        raw = self.shard.raw(wanted, shuffle_seed=tf.stack([self.seed, -1 - epoch]))
        return tf.data.Dataset.zip(tf.data.Dataset.from_tensor_slices(positions), raw).map(
            lambda position, raw: (epoch, position, raw)
        )

    def _views(self, epoch, position, raw, replaced=NOT_REPLACED):
        images, label = self.source.decode_views(raw, self.views)
        seed = tf.stack([self.seed, epoch * 2**32 + position])
        views = random_views(images, self.image_size, self.crop, seed)
        if self.local is not None:
            size, crop = self.local.size, self.local.crop
            in_turn = tuple(images[i % self.views] for i in range(self.local.count))
            views = {
                "global": views,
                "local": random_views(in_turn, size, crop, seed + LOCAL_SEED),
            }
        row = tf.cast(position % self.batch_size, tf.int32)
        return views, label, row, tf.cast(replaced, tf.int64)

    def _first_decodable(self, epoch, position, raw):
        """A data set of one element: the example's views, or those of the first replacement.

        If nothing can be decoded, reading it raises the error of the example itself.
        """
        # Below the seeds of orders, which are not below -2**62.
        seed = tf.stack([self.seed, -(2**62) - 1 - (epoch * 2**32 + position)])
        indices = tf.random.stateless_uniform(
            (REPLACEMENTS,), seed, 0, self.source.num_examples, tf.int64, alg="philox"
        )
        views = tf.data.Dataset.from_tensors(raw).map(
            lambda *raw: self._views(epoch, position, raw)
        )
        others = self.source.get(indices).map(
            lambda *other: self._views(epoch, position, other, replaced=raw[0])
        )
        return views.concatenate(others).ignore_errors().concatenate(views).take(1)
