"""Some of the examples of a source: to hold out a part, or to keep a share of the labels."""

import hashlib

import numpy as np

from byol_jax.data.arrays import ArraySource
from byol_jax.data.source import ImageSource, RandomAccessSource
from byol_jax.errors import ConfigError, DataError


def subset(source: ImageSource, indices: np.ndarray, name: str) -> ImageSource:
    """The examples of a source at some indices.

    Args:
      source: any source, a part of another too. Of a streamed one, every pass reads all files, but
        decodes only the examples of the part; it is for one process.
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


def hold_out(
    source: ImageSource, share: float = 0.1, most: int = 10_009, seed: int = 0
) -> list[ImageSource]:
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


def some_of_each_class(source: ImageSource, share: float, seed: int = 0) -> ImageSource:
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


def listed(source: ImageSource, names: list[str]) -> tuple[ImageSource, ImageSource | None]:
    """Divides a folder by a list of names, such as those of SimCLR's authors.

    Args:
      source: a folder.
      names: of files, with or without the folders that they are in.

    Returns:
      The images with these names, and the others, if there are any.

    Raises:
      DataError: the source is no folder, or has none of them.
    """
    from byol_jax.data.image_files import ImageFiles

    if not isinstance(source, ImageFiles):
        raise DataError(f"{source.name} is no folder: only the images of folder:PATH have names.")
    wanted, all_names = set(names), source.names()
    is_listed = np.array(
        [name in wanted or name.rpartition("/")[2] in wanted for name in all_names]
    )
    if not is_listed.any():
        raise DataError(
            f"the list names no image of {source.name}, whose first is {all_names[0]!r}: give one "
            "name on each line."
        )
    others = np.flatnonzero(~is_listed)
    return (
        subset(source, np.flatnonzero(is_listed), f"{source.name} (listed)"),
        subset(source, others, f"{source.name} (not listed)") if len(others) else None,
    )


def _labels(source: ImageSource) -> np.ndarray:
    """int32 (num_examples,), by index; of a streamed source, by one pass over its records."""
    if isinstance(source, RandomAccessSource):
        return source.labels
    from byol_jax.data._tensorflow import tf

    labels = np.empty(source.num_examples, np.int32)
    raws = source.raw(tf.range(source.num_examples, dtype=tf.int64))
    for index, label in raws.map(lambda *raw: (raw[0], source.label(raw))).as_numpy_iterator():
        labels[index] = label
    return labels


class _Part:
    """What both kinds have in common.

    A raw example is its index in the part, followed by the raw example of the source.
    """

    def encoded(self, raw):
        return self._source.encoded(raw[1:])

    def describe(self, index):
        return self._source.describe(int(self._indices[index]))

    def names(self):
        names = self._source.names()
        return [names[index] for index in self._indices]

    def fingerprint(self):
        of_source = self._source.fingerprint()
        if of_source is None:
            return None
        return hashlib.sha256(of_source.encode() + self._indices.tobytes()).hexdigest()

    def get(self, indices):
        from byol_jax.data._tensorflow import tf

        raws = self._source.get(tf.gather(tf.constant(self._indices), indices))
        own = tf.data.Dataset.from_tensor_slices(indices)
        return tf.data.Dataset.zip(own, raws).map(lambda index, raw: (index, *raw))


class _RandomAccessSubset(_Part, RandomAccessSource):
    def __init__(self, source: RandomAccessSource, indices: np.ndarray, name: str):
        super().__init__(name, source.labels[indices], source.channels, source.class_names)
        self._source, self._indices = source, indices

    def decode(self, raw):
        image, _ = self._source.decode(raw[1:])
        return image, self.labels_tensor[raw[0]]  # which `match_classes` may have changed

    def decode_views(self, raw, count):
        images, _ = self._source.decode_views(raw[1:], count)
        return images, self.labels_tensor[raw[0]]


class _StreamedSubset(_Part, ImageSource):
    order_depends_on_processes = True

    def __init__(self, source: ImageSource, indices: np.ndarray, name: str):
        super().__init__(name, len(indices), source.channels, source.class_names)
        self._source, self._indices = source, indices

    def shard(self, index, count):
        if count > 1:
            raise DataError(f"{self.name} is a part of a stream, which one process reads alone.")
        return self

    def decode(self, raw):
        return self._source.decode(raw[1:])

    def label(self, raw):
        return self._source.label(raw[1:])

    def raw(self, positions, shuffle_seed=None):
        from byol_jax.data._tensorflow import tf

        own = np.full(self._source.num_examples, -1)  # index in the part, by that in the source
        own[self._indices] = np.arange(self.num_examples)
        own = tf.constant(own, tf.int64)
        wanted = tf.scatter_nd(
            positions[:, None], tf.ones_like(positions, tf.bool), [self.num_examples]
        )
        everything = tf.range(self._source.num_examples, dtype=tf.int64)
        raws = self._source.raw(everything, shuffle_seed).map(lambda *raw: (own[raw[0]], *raw))
        mine = raws.filter(lambda index, *_: index >= 0).enumerate()
        mine = mine.filter(lambda i, _: wanted[i]).map(lambda _, raw: raw)
        return mine.take(tf.size(positions, tf.int64))  # stops reading after the last
