"""What a source of images is: the contract between datasets and the pipeline.

A source hands out *raw* examples (an index, or an encoded record) in an order that the pipeline
asks for, and decodes one raw example when told to. The two are separate so that shuffling, skipping
and sharing the work between hosts never pay for decoding.

Each example has a *place* in the source, from 0 to num_examples - 1, that no order changes.
"""

from __future__ import annotations  # TensorFlow's types are named, but not needed, here

import abc
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from byol_jax.errors import UserError

if TYPE_CHECKING:
    from byol_jax.data._tensorflow import tf


class ShardOptions(NamedTuple):
    """What one of several hosts yields of every global batch.

    Attributes:
      rows: integers (n,), ascending: its rows of the global batch. Hosts have equally many.
      index: which of the hosts it is, from 0.
      count: how many hosts there are.
    """

    rows: np.ndarray
    index: int
    count: int


class Source(abc.ABC):
    """A finite set of images, with or without labels.

    Attributes:
      name: what to call the source in logs, e.g. "tfds:cifar10/train".
      num_examples: how many images it holds, at least 1.
      channels: channels of every decoded image: 1 (gray) or 3 (RGB).
      class_names: one name per class, in the order of the labels; None without labels.
      notes: sentences on what of it is left out, and a user may want to know.
      order_depends_on_hosts: whether another number of hosts sees other global batches.
    """

    order_depends_on_hosts = False

    def __init__(
        self, name: str, num_examples: int, channels: int, class_names: tuple[str, ...] | None
    ):
        """Keeps the attributes. Raises UserError if there is not a single example."""
        if num_examples < 1:
            raise UserError(f"{name} holds no images; choose a source with at least one.")
        self.name = name
        self.num_examples = num_examples
        self.channels = channels
        self.class_names = class_names
        self.notes: list[str] = []

    @property
    def num_classes(self) -> int | None:
        """How many classes the labels name; None without labels."""
        return None if self.class_names is None else len(self.class_names)

    def names(self) -> list[str]:
        """A name for each example, in the source's own order: its place, if it has no better."""
        return [str(place) for place in range(self.num_examples)]

    def fingerprint(self) -> str | None:
        """A digest of which examples there are, where files can come and go; None elsewhere."""
        return None

    def shard(self, index: int, count: int) -> Source:
        """What the host `index` of `count` draws its positions from: all, for random access."""
        return self

    @abc.abstractmethod
    def raw(self, positions: tf.Tensor, shuffle_seed: tf.Tensor | None = None) -> tf.data.Dataset:
        """The raw examples at some positions of an order of the source.

        Args:
          positions: int64 (n,), ascending and distinct, each in [0, num_examples).
          shuffle_seed: int64 (2,), chooses the order; None stands for the source's own order.

        Returns:
          n raw examples, in the order of `positions`. The same arguments always give the same.
        """

    @abc.abstractmethod
    def get(self, places: tf.Tensor) -> tf.data.Dataset:
        """The raw examples at some places, int64 (n,), of any number and order.

        Where examples are streamed, each costs a part of a file: this is for few.
        """

    @abc.abstractmethod
    def index(self, raw: Any) -> tf.Tensor:
        """The place of a raw example, int64 ()."""

    @abc.abstractmethod
    def decode(self, raw: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Turns one raw example into an image, uint8 (H, W, channels), and a label, int32 ().

        The label is -1 in a source without labels. Works inside a TensorFlow graph and outside.
        """

    def encoded(self, raw: Any) -> tf.Tensor | None:
        """The bytes of one raw example's image file, string (); None where there is no file."""
        return None

    @abc.abstractmethod
    def describe(self, place: int) -> str:
        """Names the example at a place, so that a person can find it."""


class RandomAccessSource(Source):
    """A source whose raw example is its place, an int64 scalar: any order costs the same."""

    def raw(self, positions, shuffle_seed=None):  # noqa: D102 (see Source)
        from byol_jax.data._tensorflow import tf

        if shuffle_seed is not None:
            order = tf.random.experimental.stateless_shuffle(
                tf.range(self.num_examples, dtype=tf.int64), shuffle_seed, alg="philox"
            )
            positions = tf.gather(order, positions)
        return self.get(positions)

    def get(self, places):  # noqa: D102 (see Source)
        from byol_jax.data._tensorflow import tf

        return tf.data.Dataset.from_tensor_slices(places)

    def index(self, raw):  # noqa: D102 (see Source)
        return raw


def one(raw: tuple) -> Any:
    """A raw example from the arguments of a function that a dataset maps: it spreads tuples."""
    return raw[0] if len(raw) == 1 else raw


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


def check_same_classes(train: Source, test: Source) -> None:
    """Raises UserError unless labels of `train` mean the same in `test`."""
    if test.class_names is None:
        raise UserError(f"{test.name} has no labels to test on; choose a split that has.")
    if train.class_names != test.class_names:
        raise UserError(
            f"{train.name} and {test.name} have different classes; choose splits of one data set "
            "(of npz: files, give each the same class_names)."
        )


def check_channels(name: str, has: int, wanted: int) -> None:
    """Raises UserError if a source's images have another number of channels than asked for."""
    if has != wanted:
        raise UserError(
            f"{name} has images with {has} channel{'s' if has != 1 else ''} but {wanted} "
            f"{'were' if wanted != 1 else 'was'} asked for; set --config.data.channels={has} when "
            "pre-training."
        )
