"""Parts of a source: held-out examples, of arrays, files and streams."""

import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from batches import numbered, put, train

from byol_jax.data import (
    ArraySource,
    eval_batches,
    hold_out,
    listed,
    match_classes,
    open_source,
    some_of_each_class,
    subset,
)
from byol_jax.data._tensorflow import tf
from byol_jax.data.tfds import RecordSource
from byol_jax.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A source of 20 files, each with its own gray value, in two classes."""
    folder = tmp_path_factory.mktemp("files")
    for i in range(20):
        put(folder / f"{i % 2}" / f"{i:02}.png", 10 * i)
    return open_source(f"folder:{folder}", "train")


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """40 images in 10 classes, streamed from two files of records.

    Files are longer than what is read of them at a time: examples are not in order of their index.
    """
    folder = tmp_path_factory.mktemp("records")
    image = tfds.features.Image(shape=(None, None, 3))
    label = tfds.features.ClassLabel(num_classes=10)
    features = tfds.features.FeaturesDict({"image": image, "label": label})
    rng, pieces = np.random.default_rng(0), []
    for file in range(2):
        path = str(folder / f"{file}.tfrecord")
        pieces.append(types.SimpleNamespace(filename=path, skip=0, take=20))
        with tf.io.TFRecordWriter(path) as writer:
            for number in range(20):
                pixels = rng.integers(0, 256, (9, 8, 3), np.uint8)
                example = {"image": pixels, "label": (20 * file + number) // 4}
                writer.write(features.serialize_example(example))
    split_info = types.SimpleNamespace(num_examples=40, file_instructions=pieces)
    return RecordSource("records", features, split_info, 3)


SOURCES = {
    "arrays": lambda request: numbered(20),
    "folder": lambda request: request.getfixturevalue("folder"),
    "streamed": lambda request: request.getfixturevalue("streamed"),
}


@pytest.fixture(params=SOURCES)
def source(request):
    return SOURCES[request.param](request)


def evaluated(source, size=6):
    """All central views and labels."""
    batches = list(eval_batches(source, batch_size=7, image_size=size))
    return tuple(np.concatenate(column) for column in zip(*batches, strict=True))


def order_of(source):
    """The indices of the examples, in the source's own order."""
    return [int(raw[0]) for raw in source.raw(tf.range(source.num_examples, dtype=tf.int64))]


def test_a_subset_has_its_examples_in_the_order_of_the_source(source):
    images, labels = evaluated(source)
    part = subset(source, np.array([17, 3, 8]), "some")
    assert (part.name, part.num_examples, part.channels) == ("some", 3, source.channels)
    assert part.class_names == source.class_names
    places = [place for place, index in enumerate(order_of(source)) if index in (3, 8, 17)]
    found = evaluated(part)
    np.testing.assert_array_equal(found[0], images[places])
    np.testing.assert_array_equal(found[1], labels[places])


def test_the_streamed_order_is_not_that_of_the_indices(streamed):
    assert order_of(streamed) != list(range(40)) and sorted(order_of(streamed)) == list(range(40))


def test_an_epoch_of_a_subset_shows_each_example_once(source):
    chosen = np.array([1, 2, 5, 11, 13, 19])
    part = subset(source, chosen, "some")
    batches = train(part, num_steps=4, batch_size=3, views=1)
    assert batches[0].examples.shape[:2] == (3, 1)
    _, labels = evaluated(part)
    epochs = [np.concatenate([b.labels for b in batches[i : i + 2]]) for i in (0, 2)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.sort(labels))
    again = train(part, num_steps=4, batch_size=3, views=1, start_step=3)
    np.testing.assert_array_equal(again[0].examples, batches[3].examples)


def test_examples_are_found_by_their_index_in_the_part(source):
    part = subset(source, np.array([4, 9]), "some")
    raws = list(part.get(tf.constant([1, 0], tf.int64)))
    assert [int(raw[0]) for raw in raws] == [1, 0]
    _, labels = evaluated(source)
    assert int(part.decode(raws[0])[1]) == labels[order_of(source).index(9)]
    if not isinstance(source, ArraySource):  # whose images are counted anew
        assert part.describe(1) == source.describe(9)


def test_a_part_of_a_part(source):
    rest, held_out = hold_out(source)
    part = some_of_each_class(rest, 0.5)
    images = {image.tobytes(): label for image, label in zip(*evaluated(source), strict=True)}
    found = [image.tobytes() for image in evaluated(part)[0]]
    assert len(set(found)) == part.num_examples
    assert [images[image] for image in found] == evaluated(part)[1].tolist()
    assert not set(found) & {image.tobytes() for image in evaluated(held_out)[0]}


def test_images_of_a_part_that_cannot_be_decoded_are_named(tmp_path):
    for i in range(10):
        put(tmp_path / f"{i % 2}" / f"{i:02}.png", 10 * i)
    (tmp_path / "1" / "09.png").write_bytes(b"broken")
    source = open_source(f"folder:{tmp_path}", "train")  # class 0 first: indices 0 to 4
    part = subset(source, np.array([7, 8, 9]), "some")
    named = []
    batches = eval_batches(
        part, batch_size=2, image_size=6, on_decode_error=lambda i, line: named.append((i, line))
    )
    assert sum(len(labels) for _, labels in batches) == 2
    assert len(named) == 1 and named[0][0] == 2 and "1/09.png" in named[0][1]
    named.clear()
    batches = train(
        part, 2, batch_size=3, views=1, on_decode_error=lambda i, line: named.append(line)
    )
    assert [batch.labels.tolist() for batch in batches] == [[1, 1, 1]] * 2
    assert len(named) == 2 and all("1/09.png" in line for line in named)


def test_labels_of_a_part_can_be_matched(folder):
    part = subset(folder, np.array([0, 12]), "some")
    other = types.SimpleNamespace(class_names=("1", "0", "2"), name="other")
    matched = match_classes(other, part)
    _, labels = evaluated(matched)
    assert labels.tolist() == matched.labels.tolist() == [1, 0]


def test_held_out_examples_are_others_than_the_fitted():
    source = numbered(50)
    fitted, held_out = hold_out(source)
    assert (fitted.num_examples, held_out.num_examples) == (45, 5)
    assert sorted([*fitted.labels, *held_out.labels]) == list(range(50))
    assert (fitted.name, held_out.name) == ("arrays (fitted)", "arrays (held out)")
    again = hold_out(source)[1]
    np.testing.assert_array_equal(again.labels, held_out.labels)
    assert hold_out(source, seed=1)[1].labels.tolist() != held_out.labels.tolist()
    assert hold_out(source, most=2)[1].num_examples == 2
    assert hold_out(numbered(3))[1].num_examples == 1


def test_a_share_of_each_class(source):
    part = some_of_each_class(source, 0.25, seed=3)
    labels, all_labels = evaluated(part)[1], evaluated(source)[1]
    counts = np.bincount(all_labels, minlength=source.num_classes)
    wanted = [max(1, round(n / 4)) if n else 0 for n in counts]
    np.testing.assert_array_equal(np.bincount(labels, minlength=source.num_classes), wanted)
    assert part.name.endswith("(25% of the labels)")
    np.testing.assert_array_equal(
        evaluated(some_of_each_class(source, 0.25, 3))[0], evaluated(part)[0]
    )
    assert some_of_each_class(source, 1) is source
    with pytest.raises(ConfigError, match="a share of the labels"):
        some_of_each_class(source, 0)


def test_listed_images_are_found_by_path_or_name(folder):
    part, others = listed(folder, ["0/04.png", "07.png", "unknown.png"])
    assert part.names() == ["0/04.png", "1/07.png"]
    assert others.num_examples == 18 and not set(part.names()) & set(others.names())
    assert part.fingerprint() != others.fingerprint()
    assert listed(folder, folder.names())[1] is None
    with pytest.raises(DataError, match="the list names no image of folder"):
        listed(folder, ["unknown.png"])
    with pytest.raises(DataError, match="arrays is no folder"):
        listed(numbered(3), ["1"])


def test_one_image_cannot_be_divided():
    with pytest.raises(DataError, match="arrays has one image"):
        hold_out(numbered(1))


def test_a_part_of_a_stream_is_for_one_process(streamed):
    part = subset(streamed, np.arange(0, 40, 2), "half")
    assert part.order_depends_on_processes and part.shard(0, 1) is part
    with pytest.raises(DataError, match="half is a part of a stream"):
        part.shard(0, 2)
