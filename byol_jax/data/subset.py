"""Some of the examples of a source: to hold out a part, or to keep a share of the labels."""

import numpy as np

from byol_jax.data.arrays import ArraySource
from byol_jax.data.source import RandomAccessSource, Source
from byol_jax.errors import DataError


def subset(source: Source, indices: np.ndarray, name: str) -> Source:
    """The examples of a source at some indices.

    Args:
      source: any source. Of a streamed one, every pass reads all files, but decodes no more than
        the examples that are asked for.
      indices: integers (n,), distinct, each in [0, source.num_examples).
      name: what to call the result.

    Raises:
      DataError: there are no indices.
    """
    indices = np.sort(np.asarray(indices, np.int64))
    if isinstance(source, ArraySource):
        labels = source.labels[indices]
        return ArraySource(name, source.images[indices], labels, source.class_names)
    if isinstance(source, RandomAccessSource):
        return _RandomAccessSubset(source, indices, name)
    return _StreamedSubset(source, indices, name)


def hold_out(source: Source, share: float = 0.1, most: int = 10_009, seed: int = 0) -> list[Source]:
    """Divides a source at random: the examples to fit on, and those to choose settings on.

    Args:
      source: at least two examples.
      share: of the examples that are held out, in (0, 1); at least one of them is.
      most: the largest number that is held out; the paper holds out 10,009 of ImageNet's.
      seed: of the choice.

    Raises:
      DataError: there is one example only.
    """
    count = min(max(1, round(source.num_examples * share)), most)
    if count >= source.num_examples:
        raise DataError(f"{source.name} has one image: some must be held out; name more images.")
    order = np.random.default_rng(seed).permutation(source.num_examples)
    parts = {"fitted": order[count:], "held out": order[:count]}
    return [subset(source, part, f"{source.name} ({what})") for what, part in parts.items()]


class _Part:
    """What both kinds have in common: raw examples are those of the source, with its indices."""

    def decode(self, raw):
        return self._source.decode(raw)

    def encoded(self, raw):
        return self._source.encoded(raw)

    def describe(self, index):
        return self._source.describe(index)

    def get(self, indices):
        from byol_jax.data._tensorflow import tf

        return self._source.get(tf.gather(tf.constant(self._indices), indices))


class _RandomAccessSubset(_Part, RandomAccessSource):
    def __init__(self, source: RandomAccessSource, indices: np.ndarray, name: str):
        super().__init__(name, source.labels[indices], source.channels, source.class_names)
        self._source, self._indices = source, indices


class _StreamedSubset(_Part, Source):
    order_depends_on_processes = True

    def __init__(self, source: Source, indices: np.ndarray, name: str):
        super().__init__(name, len(indices), source.channels, source.class_names)
        self._source, self._indices = source, indices

    def raw(self, positions, shuffle_seed=None):
        from byol_jax.data._tensorflow import tf

        def mask(indices, size):
            ones = tf.ones_like(indices, tf.bool)
            return tf.scatter_nd(tf.cast(indices, tf.int64)[:, None], ones, [size])

        everything = tf.range(self._source.num_examples, dtype=tf.int64)
        is_mine = mask(tf.constant(self._indices), self._source.num_examples)
        is_wanted = mask(positions, self.num_examples)
        mine = self._source.raw(everything, shuffle_seed).filter(lambda index, *_: is_mine[index])
        wanted = mine.enumerate().filter(lambda i, _: is_wanted[i]).map(lambda _, raw: raw)
        return wanted.take(tf.size(positions, tf.int64))  # stops reading after the last
