"""What a source of examples is, and of images: the contract of data sets and pipeline.

A source of images returns *raw* examples in the order that the pipeline asks for, and decodes one
raw example at a time. The two are separate so that shuffling, skipping and sharding never pay for
decoding.

A raw example is a tuple: its *index* in the source, int64 () from 0 to num_examples - 1, which no
order changes, and what else the source needs to decode it.
"""

from __future__ import annotations  # annotations name TensorFlow's types without importing it

import abc
import copy
import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from byol_jax.errors import ConfigError, DataError

if TYPE_CHECKING:
    from byol_jax.data._tensorflow import tf


class ShardOptions(NamedTuple):
    """Which part of every global batch one of several processes yields."""

    rows: np.ndarray  # integers (n,) of the global batch, ascending; n is equal for all processes
    index: int  # the number of the process, from 0
    count: int  # how many processes there are


class Source(abc.ABC):
    """A finite set of examples, with or without labels.

    Attributes:
      name: what to call the source in logs, e.g. "tfds:cifar10/train".
      num_examples: how many it holds, at least 1.
      class_names: one name per class, in the order of the labels; None without labels.
      warnings: lines about what was left out.
      order_depends_on_processes: whether the global batches depend on the number of processes.
    """

    order_depends_on_processes = False

    def __init__(self, name: str, num_examples: int, class_names: tuple[str, ...] | None):
        """Keeps the attributes. Raises DataError if there are no examples."""
        if num_examples < 1:
            raise DataError(f"{name} holds no examples; choose a source with at least one.")
        self.name = name
        self.num_examples = num_examples
        self.class_names = class_names
        self.warnings: list[str] = []

    @property
    def num_classes(self) -> int | None:
        """How many classes there are; None without labels."""
        return None if self.class_names is None else len(self.class_names)

    def names(self) -> list[str]:
        """A name for each example, in the source's own order; by default its index."""
        return [str(index) for index in range(self.num_examples)]

    def fingerprint(self) -> str | None:
        """A digest of the examples, for sources whose files can change; None for others."""
        return None

    @abc.abstractmethod
    def describe(self, index: int) -> str:
        """Names the example at an index, so that a person can find it."""


class ImageSource(Source):
    """A source of images.

    Attributes:
      channels: channels of every decoded image: 1 (gray), 3 (RGB), or any other number.
      uses_python: whether `decode` runs Python code, which other machines lack.
    """

    uses_python = False

    def __init__(
        self, name: str, num_examples: int, channels: int, class_names: tuple[str, ...] | None
    ):
        """Keeps the attributes. Raises DataError if there are no examples."""
        super().__init__(name, num_examples, class_names)
        self.channels = channels

    def shard(self, index: int, count: int) -> ImageSource:
        """What process `index` of `count` reads from: all of it, for random access."""
        return self

    @abc.abstractmethod
    def raw(self, positions: tf.Tensor, shuffle_seed: tf.Tensor | None = None) -> tf.data.Dataset:
        """The raw examples at some positions of an order of the source, always the same.

        Args:
          positions: int64 (n,), ascending and distinct, each in [0, num_examples).
          shuffle_seed: int64 (2,), chooses the order; None stands for the source's own order.
        """

    @abc.abstractmethod
    def get(self, indices: tf.Tensor) -> tf.data.Dataset:
        """The raw examples at some indices, int64 (n,), in any order, repeated or not.

        For a few indices only: a streamed source reads a part of a file for each.
        """

    @abc.abstractmethod
    def decode(self, raw: tuple) -> tuple[tf.Tensor, tf.Tensor]:
        """Decodes one raw example: an image, uint8 (H, W, channels), and a label, int32 ().

        The label is -1 in a source without labels. Works inside a TensorFlow graph and outside.
        """

    def decode_views(self, raw: tuple, count: int) -> tuple[tuple[tf.Tensor, ...], tf.Tensor]:
        """The image that each of `count` views is taken from, and the label: see `decode`."""
        image, label = self.decode(raw)
        return (image,) * count, label

    def encoded(self, raw: tuple) -> tf.Tensor | None:
        """The bytes of one raw example's image file, string (); None where there is no file."""
        return None


class RandomAccessSource(ImageSource):
    """A source whose raw example is its index alone: any order costs the same.

    Attributes:
      labels: int32 (N,), -1 without labels.
    """

    def __init__(
        self, name: str, labels: np.ndarray, channels: int, class_names: tuple[str, ...] | None
    ):
        """Keeps the attributes. Raises DataError if there are no examples."""
        super().__init__(name, len(labels), channels, class_names)
        self.labels = np.asarray(labels, np.int32)

    @functools.cached_property
    def labels_tensor(self) -> tf.Tensor:
        """The labels as a tensor that graphs share."""
        from byol_jax.data._tensorflow import tf

        with tf.init_scope():  # outside the graph that asks first
            return tf.constant(self.labels)

    def raw(self, positions, shuffle_seed=None):  # noqa: D102 (see Source)
        from byol_jax.data._tensorflow import tf

        if shuffle_seed is not None:
            order = tf.random.experimental.stateless_shuffle(
                tf.range(self.num_examples, dtype=tf.int64), shuffle_seed, alg="philox"
            )
            positions = tf.gather(order, positions)
        return self.get(positions)

    def get(self, indices):  # noqa: D102 (see Source)
        from byol_jax.data._tensorflow import tf

        return tf.data.Dataset.from_tensor_slices((indices,))


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """How many full batches an epoch has; each epoch leaves out other examples.

    Raises:
      ConfigError: if there is not even one.
    """
    if batch_size < 1:
        raise ConfigError(f"the batch size must be at least 1, not {batch_size}.")
    if source.num_examples < batch_size:
        raise ConfigError(
            f"{source.name} has {source.num_examples} examples, fewer than a batch of "
            f"{batch_size}; choose a smaller --config.batch_size (4 at least), or more images."
        )
    return source.num_examples // batch_size


def match_classes(train: Source, test: Source) -> Source:
    """The test source with labels that mean the same as those of the training source.

    Labels are matched by class name, so the test source may lack classes.

    Raises:
      DataError: it has no labels, or classes that the training source does not have; or it lacks
        some and is streamed.
    """
    if test.class_names is None:
        raise DataError(
            f"{test.name} has no labels to test on; choose a split that has (a single folder is no "
            "class)."
        )
    if train.class_names == test.class_names:
        return test
    if not set(test.class_names) <= set(train.class_names or ()):
        raise DataError(
            f"{train.name} and {test.name} have different classes; choose splits of one data set "
            "(of npz: files, give each the same class_names)."
        )
    if not hasattr(test, "labels"):
        raise DataError(f"the labels of {test.name} cannot be changed; choose one data set.")
    matched = copy.copy(test)
    vars(matched).pop("labels_tensor", None)
    matched.class_names = train.class_names
    new_labels = np.array([train.class_names.index(name) for name in test.class_names], np.int32)
    matched.labels = new_labels[test.labels]
    return matched


def check_labels(
    name: str, count: int, labels: np.ndarray | None, class_names: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """A name for each class, "0", "1", ... if they have none; None without labels.

    Args:
      name: of the source.
      count: examples.
      labels: integers (count,) from 0 up, or None.
      class_names: a name for each label, or None.

    Raises:
      DataError: a shape, dtype or value is not as above.
    """
    if labels is None:
        if class_names is not None:
            raise DataError(f"{name}: class names mean nothing without labels; leave them out.")
        return None
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise DataError(
            f"{name}: labels must have shape ({count},), one for each example, not {labels.shape}."
        )
    highest = int(labels.max(initial=-1))
    if not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=0) < 0:
        raise DataError(f"{name}: labels must be integers from 0 up.")
    if class_names is None:
        class_names = tuple(map(str, range(highest + 1)))
    if highest >= len(class_names):
        raise DataError(
            f"{name}: label {highest} has no name among the {len(class_names)} class names."
        )
    return tuple(class_names)


def check_channels(name: str, has: int, wanted: int) -> None:
    """Raises DataError if a source's images do not have the number of channels asked for."""
    if has != wanted:
        raise DataError(
            f"{name} has images of channels={has}, not {wanted}; set --config.data.channels={has} "
            "when pre-training."
        )
