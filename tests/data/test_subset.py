"""Parts of a source: held-out examples, of arrays, files and streams."""

from pathlib import Path

import numpy as np
import pytest
from batches import numbered, put, train

from byol_jax.data import (
    ArraySource,
    eval_batches,
    hold_out,
    listed,
    open_source,
    some_of_each_class,
    subset,
)
from byol_jax.data._tensorflow import tf
from byol_jax.data.tfds import RecordSource, open_records
from byol_jax.errors import ConfigError, DataError

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A source of 20 files, each with its own gray value, in two classes."""
    folder = tmp_path_factory.mktemp("files")
    for i in range(20):
        put(folder / f"{i % 2}" / f"{i:02}.png", 10 * i)
    return open_source(f"folder:{folder}", "train")


@pytest.fixture(scope="module")
def streamed():
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/tfds")
    return open_records("cifar10", "test[:40]", str(SHARED / "tfds"), 3, memory_limit=0)


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


def test_a_subset_has_its_examples_in_the_order_of_the_source(source):
    images, labels = evaluated(source)
    part = subset(source, np.array([17, 3, 8]), "some")
    assert (part.name, part.num_examples, part.channels) == ("some", 3, source.channels)
    assert part.class_names == source.class_names
    found = evaluated(part)
    np.testing.assert_array_equal(found[0], images[[3, 8, 17]])
    np.testing.assert_array_equal(found[1], labels[[3, 8, 17]])


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


def test_raw_examples_keep_their_index_and_name(source):
    part = subset(source, np.array([4, 9]), "some")
    if isinstance(source, ArraySource):  # whose indices are those of its own array
        return
    indices = [int(raw[0]) for raw in part.get(tf.constant([1, 0], tf.int64))]
    assert indices == [9, 4]
    assert part.describe(9) == source.describe(9)


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
    part = listed(folder, ["0/04.png", "07.png", "unknown.png"])
    assert part.names() == ["0/04.png", "1/07.png"]
    assert part.fingerprint() != listed(folder, ["0/04.png"]).fingerprint()
    with pytest.raises(DataError, match="the list names no image of folder"):
        listed(folder, ["unknown.png"])


def test_one_image_cannot_be_divided():
    with pytest.raises(DataError, match="arrays has one image"):
        hold_out(numbered(1))


def test_a_streamed_part_stays_streamed(streamed):
    part = subset(streamed, np.arange(0, 40, 2), "half")
    assert not isinstance(part, RecordSource)
    assert part.order_depends_on_processes
