"""Datasets that TensorFlow Datasets (TFDS) has prepared, read from its TFRecord files.

A dataset of images of one size is held in memory if it fits into a limit. Any other is streamed:
files in random order, several of them read in turns, then a shuffle buffer, all before decoding.
Nothing is ever downloaded.
"""

from functools import partial

import numpy as np

from byol_jax.errors import UserError
from byol_jax.input._tensorflow import tf
from byol_jax.input.arrays import ArraySource
from byol_jax.input.base import Source, check_channels

# CIFAR-10 takes 146 MiB, STL-10's unlabelled split 2.6 GiB.
MEMORY_LIMIT = 2**30

# Examples of ImageNet take about 110 KB each before decoding, so a full buffer takes 1.8 GB there.
SHUFFLE_BUFFER = 16_384

# How many files are read in turns, and how many examples from one before the next has its turn.
INTERLEAVED_FILES = 16
INTERLEAVED_EXAMPLES = 16


class RecordSource(Source):
    """Examples streamed from TFRecord files. A raw example is a record, a string of bytes.

    A shuffled order is as good as files, turns and buffer make it, not a uniform permutation.
    Every host reads all records of an epoch, and keeps those whose positions it is asked for.
    """

    def __init__(self, name: str, features, split_info, channels: int):
        """Keeps where the split's examples lie; use `open_records`."""
        import tensorflow_datasets as tfds

        labelled = isinstance(dict(features).get("label"), tfds.features.ClassLabel)
        class_names = tuple(features["label"].names) if labelled else None
        super().__init__(name, split_info.num_examples, channels, class_names)
        # Any other feature (a mask, a second image) would be decoded for nothing; the image is
        # decoded here, to the number of channels asked for.
        used = {key: features[key] for key in (("image", "label") if labelled else ("image",))}
        self._parse = partial(
            tfds.features.FeaturesDict(used).deserialize_example,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        pieces = split_info.file_instructions
        self._files = (
            tf.constant([piece.filename for piece in pieces]),
            tf.constant([piece.skip for piece in pieces], tf.int64),
            tf.constant([piece.take for piece in pieces], tf.int64),
        )

    def raw(self, positions, shuffle_seed=None):  # noqa: D102 (see Source)
        wanted = tf.scatter_nd(
            positions[:, None], tf.ones_like(positions, tf.bool), [self.num_examples]
        )
        records = self.records(shuffle_seed).enumerate()
        records = records.filter(lambda i, _: wanted[i]).map(lambda _, record: record)
        return records.take(tf.size(positions, tf.int64))  # do not read on to the end

    def records(self, shuffle_seed: tf.Tensor | None = None) -> tf.data.Dataset:
        """All raw examples, in the order that `shuffle_seed` stands for (see Source.raw)."""
        files = tf.data.Dataset.from_tensor_slices(self._shuffled_files(shuffle_seed))
        records = files.interleave(
            lambda path, skip, take: tf.data.TFRecordDataset(path).skip(skip).take(take),
            cycle_length=INTERLEAVED_FILES,
            block_length=INTERLEAVED_EXAMPLES,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        return records if shuffle_seed is None else _shuffle(records, shuffle_seed)

    def decode(self, raw):  # noqa: D102 (see Source)
        example = self._parse(raw)
        image = tf.io.decode_image(
            example["image"], channels=self.channels, expand_animations=False
        )
        return image, tf.cast(example.get("label", -1), tf.int32)

    def describe(self, raw):  # noqa: D102 (see Source)
        return f"a record of {len(raw.numpy())} bytes in {self.name}"

    def _shuffled_files(self, shuffle_seed):
        if shuffle_seed is None:
            return self._files
        order = tf.random.experimental.stateless_shuffle(
            tf.range(len(self._files[0])), shuffle_seed, alg="philox"
        )
        return tuple(tf.gather(column, order) for column in self._files)


def _shuffle(records: tf.data.Dataset, seed: tf.Tensor) -> tf.data.Dataset:
    """Shuffles through a buffer, by nothing but `seed`."""
    mixed = tf.random.stateless_uniform((), seed, 0, 2**31 - 1, tf.int64, alg="philox")

    def shuffled(buffer_seed):
        # A shuffle also depends on TensorFlow's global seed, which is not ours to set. In here,
        # where a graph is being built, this line sets the seed of that graph alone.
        tf.random.set_seed(1)
        return records.shuffle(SHUFFLE_BUFFER, buffer_seed, reshuffle_each_iteration=False)

    return tf.data.Dataset.from_tensors(mixed).flat_map(shuffled)


def open_records(
    dataset: str, split: str, data_dir: str | None, channels: int, memory_limit: int = MEMORY_LIMIT
) -> Source:
    """A source of a split of a prepared TFDS dataset; slices such as "train[:90%]" are splits too.

    Labels are the feature "label" where it is a class label; any other dataset has no labels.

    Args:
      dataset: TFDS name, "NAME", "NAME/CONFIG" or "NAME:VERSION".
      split: a split of the dataset.
      data_dir: where the dataset is prepared; None for TFDS's own default.
      channels: channels of the images.
      memory_limit: bytes that the decoded split may take to be held in memory instead of streamed.

    Raises:
      UserError: if the dataset is not prepared there, has no such split, no images, or images with
        another number of channels.
    """
    import tensorflow_datasets as tfds

    name = f"tfds:{dataset}/{split}"
    builder = _builder(dataset, data_dir)
    try:
        split_info = builder.info.splits[split]
    except (KeyError, ValueError):
        raise UserError(
            f"tfds:{dataset} has no split {split!r}; choose one of "
            f"{', '.join(builder.info.splits)}, or a slice such as 'train[:90%]'."
        ) from None
    features = builder.info.features
    if not isinstance(dict(features).get("image"), tfds.features.Image):
        raise UserError(f"tfds:{dataset} has no feature 'image'; choose a dataset of images.")
    shape = features["image"].shape
    if shape[-1] is not None:
        check_channels(name, shape[-1], channels)
    source = RecordSource(name, features, split_info, channels)
    if None in shape or source.num_examples * np.prod(shape) > memory_limit:
        if source.class_names is not None and _first_label(source) < 0:
            source.class_names = None
        return source
    return _load(source)


def _first_label(source: RecordSource) -> int:
    (record,) = source.records().take(1)
    return int(source.decode(record)[1])


def _builder(dataset: str, data_dir: str | None):
    import tensorflow_datasets as tfds

    folder = tfds.core.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    missing = UserError(
        f"the dataset tfds:{dataset} is not prepared in {folder}; run `tfds build {dataset}`, or "
        "point --config.data.dir (of evaluate and export: --data_dir) at the folder that holds it."
    )
    # Asked before TFDS is: for a dataset it does not find, it may go and look on the network.
    if not (folder / dataset.partition(":")[0].partition("/")[0]).exists():
        raise missing
    try:
        builder = tfds.builder(dataset, data_dir=folder, try_gcs=False)
    except (AssertionError, ValueError) as error:  # an unknown version or config, an unknown name
        raise missing from error
    if not builder.is_prepared():
        raise missing
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        raise UserError(
            f"tfds:{dataset} is stored as {builder.info.file_format.value}, which cannot be read "
            f"here; run `tfds build {dataset} --file_format=tfrecord`."
        )
    return builder


def _load(source: RecordSource) -> ArraySource:
    """Decodes all of a source, in its own order."""
    examples = source.records().map(source.decode, num_parallel_calls=tf.data.AUTOTUNE)
    batches = list(examples.batch(1024).as_numpy_iterator())
    images, labels = (np.concatenate(column) for column in zip(*batches, strict=True))
    # Splits without labels carry -1 (STL-10's "unlabelled", ImageNet's "test").
    if source.class_names is None or labels.min() < 0:
        return ArraySource(source.name, images, None, None)
    return ArraySource(source.name, images, labels, source.class_names)
