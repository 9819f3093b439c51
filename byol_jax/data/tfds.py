"""Data sets that TensorFlow Datasets (TFDS) has prepared, read from its TFRecord files.

Images of one size are loaded into memory if they fit into a limit. Others are streamed: files in
random order, several of them interleaved, then a shuffle buffer, all before decoding. With several
processes, each reads a shard of the shuffled files. Nothing is downloaded.
"""

import copy
from functools import partial
from typing import NamedTuple

import numpy as np

from byol_jax.data._tensorflow import tf
from byol_jax.data.arrays import ArraySource
from byol_jax.data.decode import decode, first_decode_error
from byol_jax.data.source import ImageSource, check_channels
from byol_jax.errors import DataError

# CIFAR-10 takes 146 MiB, STL-10's unlabelled split 2.6 GiB.
MEMORY_LIMIT = 2**30

LABEL_SETS = "labels"  # the feature of data sets whose images have several labels

# Examples of ImageNet take about 110 KB each before decoding, so a full buffer takes 1.8 GB there.
SHUFFLE_BUFFER = 16_384


class RecordSource(ImageSource):
    """Examples streamed from TFRecord files. A raw example is its index and its record, a string.

    A shuffled order comes from files, interleaving and buffer: it is no uniform permutation.
    """

    order_depends_on_processes = True

    def __init__(self, name: str, features, split_info, channels: int):
        """Keeps where the split's examples lie; use `open_records`."""
        import tensorflow_datasets as tfds

        labelled = isinstance(dict(features).get("label"), tfds.features.ClassLabel)
        class_names = tuple(features["label"].names) if labelled else None
        super().__init__(name, split_info.num_examples, channels, class_names)
        # Other features (a mask, a second image) are not decoded at all, and the image is decoded
        # here, to the number of channels asked for.
        used = {key: features[key] for key in (("image", "label") if labelled else ("image",))}
        self._parse = partial(
            tfds.features.FeaturesDict(used).deserialize_example,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        sets = dict(features).get(LABEL_SETS)
        self._label_sets = None  # how they are parsed, and the names of the classes
        if isinstance(getattr(sets, "feature", None), tfds.features.ClassLabel):
            parse = tfds.features.FeaturesDict({LABEL_SETS: sets}).deserialize_example
            self._label_sets = parse, sets.feature.names
        pieces = split_info.file_instructions
        takes = tf.constant([piece.take for piece in pieces], tf.int64)
        self._pieces = _Pieces(
            paths=tf.constant([piece.filename for piece in pieces], tf.string),
            skips=tf.constant([piece.skip for piece in pieces], tf.int64),
            takes=takes,
            indices=tf.cumsum(takes, exclusive=True),
        )
        self._range = (0, self.num_examples)

    def shard(self, index, count):
        """The source of one process: disjoint from other processes', other files in each epoch."""
        shard = copy.copy(self)
        start, stop = (self.num_examples * i // count for i in (index, index + 1))
        shard._range, shard.num_examples = (start, stop), stop - start
        return shard

    def raw(self, positions, shuffle_seed=None):  # noqa: D102 (see Source)
        wanted = tf.scatter_nd(
            positions[:, None], tf.ones_like(positions, tf.bool), [self.num_examples]
        )
        records = self.records(shuffle_seed).enumerate()
        records = records.filter(lambda i, _: wanted[i]).map(lambda _, raw: raw)
        return records.take(tf.size(positions, tf.int64))  # stops reading after the last

    def get(self, indices):  # noqa: D102 (see Source)
        return tf.data.Dataset.from_tensor_slices(indices).flat_map(
            lambda index: _read(*self._find(index), 1, index)
        )

    def _find(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The file of the example at an index, and the number of its record there."""
        pieces = self._pieces
        i = tf.searchsorted(pieces.indices, [index], side="right")[0] - 1
        return pieces.paths[i], pieces.skips[i] + index - pieces.indices[i]

    def records(self, shuffle_seed: tf.Tensor | None = None) -> tf.data.Dataset:
        """All raw examples of the shard, in the order of `shuffle_seed` (see Source.raw)."""
        pieces = self._pieces
        if shuffle_seed is not None:
            order = tf.random.experimental.stateless_shuffle(
                tf.range(len(pieces.paths)), shuffle_seed, alg="philox"
            )
            pieces = _Pieces(*(tf.gather(column, order) for column in pieces))
        files = tf.data.Dataset.from_tensor_slices(tuple(_part(pieces, *self._range)))
        records = files.interleave(
            _read,
            cycle_length=16,  # files at a time
            block_length=16,  # consecutive examples of each
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        return records if shuffle_seed is None else _shuffle(records, shuffle_seed)

    def label_sets(self) -> np.ndarray | None:
        """Which classes each example has, bool (num_examples, classes), by index.

        By one pass over the records; None without a feature "labels", as of VOC 2007.
        """
        if self._label_sets is None:
            return None
        parse, names = self._label_sets
        sets = np.zeros((self.num_examples, len(names)), bool)
        records = self.records().map(lambda i, record: (i, parse(record)[LABEL_SETS]))
        for index, classes in records.as_numpy_iterator():
            sets[index, classes] = True
        return sets

    def decode(self, raw):  # noqa: D102 (see Source)
        return decode(self.encoded(raw), self.channels), self.label(raw)

    def label(self, raw) -> tf.Tensor:
        """The label of a raw example, int32 (); -1 without labels."""
        return tf.cast(self._parse(raw[1]).get("label", -1), tf.int32)

    def encoded(self, raw):  # noqa: D102 (see Source)
        return self._parse(raw[1])["image"]

    def describe(self, index):  # noqa: D102 (see Source)
        path, number = self._find(tf.constant(index, tf.int64))
        return f"record {number} of {path.numpy().decode()}"


class _Pieces(NamedTuple):
    """Consecutive parts of record files: tensors with an element for each part."""

    paths: tf.Tensor  # string
    skips: tf.Tensor  # int64: records of the file before the part
    takes: tf.Tensor  # int64: records in the part
    indices: tf.Tensor  # int64: the index of its first record


def _read(path, skip, take, index) -> tf.data.Dataset:
    """The raw examples of one piece."""
    return tf.data.TFRecordDataset(path).skip(skip).take(take).enumerate(index)


def _part(pieces: _Pieces, start: int, stop: int) -> _Pieces:
    """Records start to stop - 1 of all pieces; they begin and end within files."""
    ends = tf.cumsum(pieces.takes)
    before = tf.maximum(start - (ends - pieces.takes), 0)
    takes = pieces.takes - before - tf.maximum(ends - stop, 0)
    kept = _Pieces(pieces.paths, pieces.skips + before, takes, pieces.indices + before)
    return _Pieces(*(tf.boolean_mask(column, takes > 0) for column in kept))


def _shuffle(records: tf.data.Dataset, seed: tf.Tensor) -> tf.data.Dataset:
    """Shuffles through a buffer, as a function of `seed` alone."""
    mixed = tf.random.stateless_uniform((), seed, 0, 2**31 - 1, tf.int64, alg="philox")

    def shuffled(buffer_seed):
        # A shuffle also depends on TensorFlow's global seed, which belongs to the caller. In a
        # function that is traced, this line sets the seed of its graph only.
        tf.random.set_seed(1)
        return records.shuffle(SHUFFLE_BUFFER, buffer_seed, reshuffle_each_iteration=False)

    return tf.data.Dataset.from_tensors(mixed).flat_map(shuffled)


def open_records(
    dataset: str, split: str, data_dir: str | None, channels: int, memory_limit: int = MEMORY_LIMIT
) -> ImageSource:
    """A source of a split of a prepared TFDS dataset; slices such as "train[:90%]" are splits too.

    Labels are the feature "label" if it is a class label; other data sets have no labels.

    Args:
      dataset: TFDS name, "NAME", "NAME/CONFIG" or "NAME:VERSION".
      split: a split of the dataset.
      data_dir: where the dataset is prepared; None for TFDS's own default.
      channels: channels of the images.
      memory_limit: the largest decoded split, in bytes, to load into memory rather than stream.

    Raises:
      DataError: if the dataset is not prepared there, has no such split or no images, or the number
        of channels does not fit.
    """
    import tensorflow_datasets as tfds

    name = f"tfds:{dataset}/{split}"
    builder = _builder(dataset, data_dir)
    try:
        split_info = builder.info.splits[split]
    except (KeyError, ValueError):
        raise DataError(
            f"tfds:{dataset} has no split {split!r}; choose one of "
            f"{', '.join(builder.info.splits)}, or a slice such as 'train[:90%]'."
        ) from None
    features = builder.info.features
    if not isinstance(dict(features).get("image"), tfds.features.Image):
        raise DataError(f"tfds:{dataset} has no feature 'image'; choose a dataset of images.")
    shape = features["image"].shape
    if shape[-1] is not None:
        check_channels(name, shape[-1], channels)
    source = RecordSource(name, features, split_info, channels)
    if None in shape or source.num_examples * np.prod(shape) > memory_limit:
        (raw,) = source.records().take(1)
        if source.label(raw) < 0:  # as in STL-10's "unlabelled" and ImageNet's "test"
            source.class_names = None
        return source
    return _load(source)


def _builder(dataset: str, data_dir: str | None):
    import tensorflow_datasets as tfds

    folder = tfds.core.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    missing = DataError(
        f"the dataset tfds:{dataset} is not prepared in {folder}; run `tfds build {dataset}`, or "
        "point --config.data.dir (of evaluate and export: --data_dir) at the folder that holds it."
    )
    # Checked before TFDS is called: it may search the network for a dataset that it does not find.
    if not (folder / dataset.partition(":")[0].partition("/")[0]).exists():
        raise missing
    try:
        builder = tfds.builder(dataset, data_dir=folder, try_gcs=False)
    except (AssertionError, ValueError) as error:  # an unknown version or config, an unknown name
        raise missing from error
    if not builder.is_prepared():
        raise missing
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        raise DataError(
            f"tfds:{dataset} is stored as {builder.info.file_format.value}, which cannot be read "
            f"here; run `tfds build {dataset} --file_format=tfrecord`."
        )
    return builder


def _load(source: RecordSource) -> ArraySource:
    """Decodes all examples of a source, in its own order."""
    examples = source.records().map(
        lambda *raw: source.decode(raw), num_parallel_calls=tf.data.AUTOTUNE
    )
    try:
        batches = list(examples.batch(1024).as_numpy_iterator())
    except tf.errors.OpError as error:
        raise DataError(
            f"{first_decode_error(source, source.records(), error)}; prepare it again."
        ) from error
    images, labels = (np.concatenate(column) for column in zip(*batches, strict=True))
    class_names = None if labels.min() < 0 else source.class_names
    return ArraySource(source.name, images, labels, class_names)
