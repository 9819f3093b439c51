"""The graph of the training batches: which examples, where they are cut, what replaces a bad one.

Whatever is random is a function of (seed, epoch, position in the epoch's order), and of the size of
the batch where small images are cut together, so there is no state to save: any step can be made
from nothing, on any host or machine.
"""

from typing import Any, NamedTuple

import numpy as np

from byol_jax.augment.crops import DRAWS, Crop
from byol_jax.data._tensorflow import tf
from byol_jax.data.crop import random_views
from byol_jax.data.small import SmallImages
from byol_jax.data.source import Source, one

# How many other examples are tried in place of a bad one. With half of a source bad, one in 65,536
# finds none, and something is wrong.
REPLACEMENTS = 16
NOT_REPLACED = -1  # in place of the place of a bad example


class TrainPipeline(NamedTuple):
    """What the batches of one host are.

    Attributes:
      source: where the images come from.
      part: what of it this host draws its own from (Source.part).
      epoch_steps: steps in an epoch.
      batch_size: examples in the global batch.
      rows: int64 (n,): the host's rows of it.
      image_size: height and width S of a view.
      crop: the distribution of boxes and flips.
      seed: all randomness follows from it.
      replace_bad: whether another example stands in for one that cannot be decoded.
      small: the images of `source`, if their views can be cut a whole batch at a time.
    """

    source: Source
    part: Source
    epoch_steps: int
    batch_size: int
    rows: np.ndarray
    image_size: int
    crop: Crop
    seed: int
    replace_bad: bool
    small: SmallImages | None

    def examples(self, first: tf.Tensor, last: tf.Tensor) -> tf.data.Dataset:
        """(epoch, position in the epoch's order, raw example) of steps first to last - 1."""
        epochs = tf.data.Dataset.range(first // self.epoch_steps, -(-last // self.epoch_steps))
        return epochs.flat_map(
            lambda epoch: self._of_epoch(
                epoch,
                tf.maximum(first - epoch * self.epoch_steps, 0),
                tf.minimum(last - epoch * self.epoch_steps, self.epoch_steps),
            )
        )

    def batches(self, first: tf.Tensor, last: tf.Tensor) -> tf.data.Dataset:
        """Batches of steps first to last - 1.

        Each is: views uint8 (n, 2, S, S, C), labels int32 (n,), rows int32 (n,) of the global
        batch, and int64 (n,) places of the bad examples that were replaced, NOT_REPLACED elsewhere.
        """
        dataset = self.examples(first, last)
        if self.small is not None:  # in memory, where nothing is bad
            dataset = dataset.batch(len(self.rows), drop_remainder=True)
            return dataset.map(
                self._small_views, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
            )
        if self.replace_bad:
            # Datasets of one element each: their turns leave the order as it was.
            dataset = dataset.interleave(
                self._first_good,
                cycle_length=tf.data.AUTOTUNE,
                num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=True,
            )
        else:
            dataset = dataset.map(
                self._views, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
            )
        return dataset.batch(len(self.rows), drop_remainder=True).map(
            lambda first, second, *rest: (tf.stack([first, second], 1), *rest)
        )

    def _of_epoch(self, epoch, start, stop):
        rows = tf.constant(self.rows, tf.int64)
        positions = tf.reshape(tf.range(start, stop)[:, None] * self.batch_size + rows, [-1])
        wanted = positions
        if self.source.order_depends_on_hosts:  # all of the host's own part is its own
            wanted = tf.range(start * len(self.rows), stop * len(self.rows))
        # Seeds of orders are negative, seeds of crops are not, so the two have nothing in common.
        raw = self.part.raw(wanted, shuffle_seed=tf.stack([self.seed, -1 - epoch]))
        return tf.data.Dataset.zip(tf.data.Dataset.from_tensor_slices(positions), raw).map(
            lambda position, raw: (epoch, position, raw)
        )

    def _views(self, epoch, position, raw, place_of_bad: Any = NOT_REPLACED):
        image, label = self.source.decode(raw)
        views_seed = tf.stack([self.seed, epoch * 2**32 + position])
        first, second = random_views(image, self.image_size, self.crop, views_seed)
        row = tf.cast(position % self.batch_size, tf.int32)
        return first, second, label, row, tf.cast(place_of_bad, tf.int64)

    def _small_views(self, epochs, positions, places):
        # The numbers of the whole global batch, as the host's rows may be any of it.
        step = positions[0] // self.batch_size
        seed = tf.stack([self.seed, epochs[0] * 2**32 + step])
        uniform = tf.random.stateless_uniform((2, self.batch_size, DRAWS), seed, alg="philox")
        rows = positions % self.batch_size
        views = self.small.random_views(places, self.crop, tf.gather(uniform, rows, axis=1))
        labels = self.small.labels(places)
        return (
            views,
            labels,
            tf.cast(rows, tf.int32),
            tf.fill(tf.shape(rows), np.int64(NOT_REPLACED)),
        )

    def _first_good(self, epoch, position, raw):
        """A dataset of one element: the example's views, or those of the first good replacement.

        If none is good, reading it raises the error of the example itself.
        """
        # Below the seeds of orders, which are not below -2**62.
        seed = tf.stack([self.seed, -(2**62) - 1 - (epoch * 2**32 + position)])
        places = tf.random.stateless_uniform(
            (REPLACEMENTS,), seed, 0, self.source.num_examples, tf.int64, alg="philox"
        )
        itself = tf.data.Dataset.from_tensors(raw)
        views = itself.map(lambda *raw: self._views(epoch, position, one(raw)))
        bad = self.source.index(raw)
        others = self.source.get(places).map(
            lambda *raw: self._views(epoch, position, one(raw), bad)
        )
        return views.concatenate(others).ignore_errors().concatenate(views).take(1)
