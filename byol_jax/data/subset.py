"""Some of the examples of a source: to hold out a part, or to keep a share of the labels."""

import hashlib

import numpy as np

from byol_jax.data.arrays import ArraySource
from byol_jax.data.source import RandomAccessSource, Source
from byol_jax.errors import ConfigError, DataError


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


def some_of_each_class(source: Source, share: float, seed: int = 0) -> Source:
    """A share of the examples of each class, drawn at random: at least one, where there is any.

    Args:
      source: with labels.
      share: in (0, 1], such as .01 for one percent of the labels.
      seed: of the choice.

    Raises:
      ConfigError: the share is out of range.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"a share of the labels lies within (0, 1], not {share}.")
    if share == 1:
        return source
    rng, labels, chosen = np.random.default_rng(seed), _labels(source), []
    for label in range(source.num_classes):
        of_class = rng.permutation(np.flatnonzero(labels == label))
        chosen.append(of_class[: max(1, round(share * len(of_class)))])
    return subset(source, np.concatenate(chosen), f"{source.name} ({100 * share:g}% of the labels)")


def listed(source: Source, names: list[str]) -> Source:
    """The examples with these names, such as those of the lists of SimCLR's authors.

    Args:
      source: a folder.
      names: of files, with or without the folders that they are in.

    Raises:
      DataError: the source has none of them.
    """
    wanted, found = set(names), []
    for index, name in enumerate(source.names()):
        if name in wanted or name.rpartition("/")[2] in wanted:
            found.append(index)
    if not found:
        example = (
            f"such as {source.names()[0]!r}, not {names[0]!r}" if names else "one on each line"
        )
        raise DataError(f"the list names no image of {source.name}: it has names {example}.")
    return subset(source, np.array(found), f"{source.name} (listed)")


def _labels(source: Source) -> np.ndarray:
    """int32 (num_examples,); of a streamed source, by one pass over its records."""
    if isinstance(source, RandomAccessSource):
        return source.labels
    from byol_jax.data._tensorflow import tf

    raws = source.raw(tf.range(source.num_examples, dtype=tf.int64))
    return np.fromiter(raws.map(lambda *raw: source.label(raw)).as_numpy_iterator(), np.int32)


class _Part:
    """What both kinds have in common: raw examples are those of the source, with its indices."""

    def decode(self, raw):
        return self._source.decode(raw)

    def encoded(self, raw):
        return self._source.encoded(raw)

    def label(self, raw):  # of a streamed source
        return self._source.label(raw)

    def names(self):
        names = self._source.names()
        return [names[index] for index in self._indices]

    def fingerprint(self):
        of_source = self._source.fingerprint()
        if of_source is None:
            return None
        return hashlib.sha256(of_source.encode() + self._indices.tobytes()).hexdigest()

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
