"""Sources: arrays, folders of files and TFDS records; their classes, names and mistakes."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from batches import joined, photos, put, same, shards, train
from PIL import Image

from byol_jax.data import (
    CentralView,
    eval_batches,
    eval_views,
    from_arrays,
    match_classes,
    open_source,
)
from byol_jax.data._tensorflow import tf
from byol_jax.data.tfds import RecordSource, open_records
from byol_jax.errors import ConfigError, DataError

SHARED = Path(__file__).resolve().parents[3] / "shared"


# Arrays, names and classes.


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4, 3)), None, "images must be uint8 from 0 to 255, not float64"),
        (np.zeros((2, 4, 4), np.uint8), None, r"shape \(N, H, W, C\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), None, "channels first, and they must be last"),
        (np.zeros((0, 4, 4, 3), np.uint8), None, "nothing empty"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0], r"labels must have shape \(2,\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0.0, 1.0], "labels must be integers from 0 up"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, -1], "labels must be integers from 0 up"),
    ],
)
def test_invalid_arrays(images, labels, message):
    with pytest.raises(DataError, match=message):
        from_arrays(images, labels)


def test_class_names_of_arrays():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    source = from_arrays(images, [0, 2])
    assert source.num_classes == 3 and source.class_names == ("0", "1", "2")
    assert from_arrays(images, [0, 1], class_names=("cat", "dog")).class_names == ("cat", "dog")
    with pytest.raises(DataError, match="label 2 has no name"):
        from_arrays(images, [0, 2], class_names=("cat", "dog"))
    with pytest.raises(DataError, match="class names mean nothing without labels"):
        from_arrays(images, class_names=("cat", "dog"))


@pytest.mark.parametrize("spec", ["cifar10", "tfds:", "folder:", "embedded:x", ""])
def test_unknown_source(spec):
    with pytest.raises(
        ConfigError, match="use tfds:NAME, folder:PATH, glob:PATTERN, list:FILE, pairs:"
    ):
        open_source(spec, "train")


def test_embedded_source():
    source = open_source("embedded", "test", channels=1)
    assert (source.name, source.num_examples, source.channels) == ("embedded/test", 2000, 1)
    assert source.num_classes == 10 and "bricks" in source.class_names
    with pytest.raises(DataError, match=r"set --config\.data\.channels=1"):
        open_source("embedded", "test", channels=3)
    with pytest.raises(ConfigError, match="cannot have 0 channels"):
        open_source("embedded", "test", channels=0)


def test_a_test_split_may_lack_classes():
    images = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2)
    train_source = from_arrays(images, [0, 1, 2], "train", ("ant", "bee", "cat"))
    test_source = from_arrays(images, [1, 0, 1], "test", ("bee", "cat"))
    matched = match_classes(train_source, test_source)
    assert matched.class_names == ("ant", "bee", "cat") and matched.num_classes == 3
    np.testing.assert_array_equal(matched.labels, [2, 1, 2])
    assert [int(matched.decode((i,))[1]) for i in range(3)] == [2, 1, 2]
    np.testing.assert_array_equal(test_source.labels, [1, 0, 1])  # unchanged
    assert match_classes(train_source, train_source) is train_source
    numbers = match_classes(from_arrays(images, [0, 1, 2]), from_arrays(images, [1, 0, 1]))
    assert numbers.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(numbers.labels, [1, 0, 1])


def test_unknown_classes_of_a_test_split_are_refused():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    train_source = from_arrays(images, [0, 1], "train", ("ant", "bee"))
    with pytest.raises(DataError, match="train and test have different classes"):
        match_classes(train_source, from_arrays(images, [0, 1], "test", ("ant", "wasp")))
    with pytest.raises(
        DataError, match=r"test has no labels to test on.*\(a single folder is no class"
    ):
        match_classes(train_source, from_arrays(images, name="test"))


# Folders.


def test_a_test_folder_may_lack_classes(tmp_path):
    for name in ("train/ant/1.png", "train/bee/1.png", "train/cat/1.png", "test/bee/1.png"):
        put(tmp_path / name)
    put(tmp_path / "test/cat/1.png", 100)
    train_source, test_source = (open_source(f"folder:{tmp_path}", s) for s in ("train", "test"))
    ((_, labels),) = eval_batches(test_source, batch_size=2, image_size=4)
    np.testing.assert_array_equal(labels, [0, 1])  # as a tensor by now
    matched = match_classes(train_source, test_source)
    ((images, labels),) = eval_batches(matched, batch_size=2, image_size=4)
    np.testing.assert_array_equal(labels, [1, 2])
    np.testing.assert_array_equal(images[:, 0, 0, 0], [0, 100])
    (tmp_path / "test/bee").rename(tmp_path / "test/wasp")
    with pytest.raises(DataError, match="have different classes"):
        match_classes(train_source, open_source(f"folder:{tmp_path}", "test"))


def test_folder_of_classes(tmp_path):
    put(tmp_path / "train/dog/1.JPG", 100)
    put(tmp_path / "train/dog/deep/er/2.png", 110)
    put(tmp_path / "train/cat/3.jpeg", 50, mode="L")
    put(tmp_path / "train/cat/.hidden.png")
    put(tmp_path / "test/cat/4.png", mode="RGBA")
    (tmp_path / "train/empty").mkdir()
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    source = open_source(f"folder:{tmp_path}", "train")
    assert source.name == f"folder:{tmp_path}/train"
    assert (source.num_examples, source.class_names) == (3, ("cat", "dog"))
    ((images, labels),) = eval_batches(source, batch_size=9, image_size=4)
    np.testing.assert_array_equal(labels, [0, 1, 1])
    np.testing.assert_allclose(images.mean((1, 2, 3)), [50, 100, 110], atol=2)
    assert open_source(f"folder:{tmp_path}", "test").num_classes is None  # a single class


def test_folders_named_like_splits_are_no_classes(tmp_path):
    for split in ("Training", "validation"):
        put(tmp_path / split / "a.png")
    with pytest.raises(DataError, match=r"holds the splits Training, validation, not classes"):
        open_source(f"folder:{tmp_path}", "train")


def test_a_split_next_to_classes_is_refused(tmp_path):
    for folder in ("bus", "train"):
        put(tmp_path / folder / "a.png")
    with pytest.raises(DataError, match=r"train looks like a split and 'bus' next to it"):
        open_source(f"folder:{tmp_path}", "train")


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_images_are_converted_to_the_channels_asked_for(tmp_path, channels):
    for name, mode in [("a.png", "L"), ("b.jpg", "L"), ("c.jpg", "RGB"), ("d.png", "RGBA")]:
        put(tmp_path / name, 60, mode=mode)
    source = open_source(f"folder:{tmp_path}", "train", channels=channels)
    (batch,) = train(source, 1, batch_size=4)
    assert batch.labels is None and batch.examples.shape == (4, 2, 6, 6, channels)
    np.testing.assert_allclose(batch.examples.astype(float), 60, atol=2)


def test_images_directly_in_the_root_mean_no_labels(tmp_path):
    put(tmp_path / "1.png")
    put(tmp_path / "cat/2.png")
    put(tmp_path / "dog/3.png")
    source = open_source(f"folder:{tmp_path}", "train")
    assert (source.num_examples, source.num_classes) == (3, None)


def test_circular_links_are_followed_once(tmp_path):
    put(tmp_path / "cat/1.png")
    put(tmp_path / "dog/2.png")
    (tmp_path / "cat/up").symlink_to(tmp_path)
    (tmp_path / "dog/self").symlink_to(tmp_path / "dog")
    (tmp_path / "dog/lost.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(f"folder:{tmp_path}", "train")
    assert source.class_names == ("cat", "dog")
    assert source.names() == ["cat/1.png", "dog/2.png"]


def test_the_fingerprint_of_a_folder_depends_on_names_and_labels(tmp_path):
    for name in ("a/1.png", "a/2.gif", "b/3.webp", "b/4.bmp"):
        put(tmp_path / "one" / name)

    def fingerprint(root="one"):
        return open_source(f"folder:{tmp_path / root}", "train").fingerprint()

    first = fingerprint()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert fingerprint("two") == first and re.fullmatch("[0-9a-f]{64}", first)
    (tmp_path / "one/b/3.webp").rename(tmp_path / "one/b/5.webp")
    renamed = fingerprint()
    shutil.rmtree(tmp_path / "one/b")
    (tmp_path / "two/a").rename(tmp_path / "two/c")
    assert len({first, renamed, fingerprint(), fingerprint("two")}) == 4
    assert from_arrays(np.zeros((1, 4, 4, 3), np.uint8)).fingerprint() is None


def test_unusable_folders(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="holds no images"):
        open_source(f"folder:{tmp_path}", "train")
    with pytest.raises(DataError, match="has no split 'val': put its images into"):
        open_source(f"folder:{tmp_path}", "val")
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        open_source(f"folder:{tmp_path}/nowhere", "train")
    with pytest.raises(DataError, match="is in a bucket, where folders are not read"):
        open_source("folder:gs://bucket/photos", "train")
    with pytest.raises(DataError, match="file is not a folder"):
        open_source(f"folder:{tmp_path}/file", "train")


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    for i in range(12):
        put(tmp_path / f"{i:02}.jpg")
    (tmp_path / "07.jpg").write_bytes((tmp_path / "07.jpg").read_bytes()[:100])
    source = open_source(f"folder:{tmp_path}", "train")
    with pytest.raises(DataError, match=r"07\.jpg cannot be decoded"):
        train(source, 6, batch_size=4)
    batches = eval_batches(source, batch_size=4, image_size=4)
    next(batches)
    with pytest.raises(DataError, match=r"07\.jpg cannot be decoded"):
        next(batches)


def test_a_file_that_disappears_is_named(tmp_path):
    put(tmp_path / "1.png")
    put(tmp_path / "2.png")
    source = open_source(f"folder:{tmp_path}", "train")
    (tmp_path / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png cannot be decoded"):
        train(source, 1, batch_size=2)


@pytest.mark.skipif(not (SHARED / "photos").is_dir(), reason="no photos next to the checkout")
def test_photographs():
    source = open_source(f"folder:{SHARED / 'photos'}", "train")
    assert source.num_classes is None
    ((images, _),) = eval_batches(source, batch_size=8, image_size=32, limit=8)
    assert images.shape == (8, 32, 32, 3) and images.std() > 30


# TFDS.

needs_cifar10 = pytest.mark.skipif(
    not (SHARED / "tfds/cifar10").is_dir(), reason="no prepared CIFAR-10 next to the checkout"
)


def cifar10(split, memory_limit=2**30, channels=3):
    return open_records("cifar10", split, str(SHARED / "tfds"), channels, memory_limit)


@needs_cifar10
def test_tfds_in_memory_and_streamed_are_the_same_examples():
    held, streamed = cifar10("test[:1%]"), cifar10("test[:1%]", memory_limit=1000)
    assert isinstance(streamed, RecordSource) and not isinstance(held, RecordSource)
    for source in held, streamed:
        assert (source.name, source.num_examples) == ("tfds:cifar10/test[:1%]", 100)
        assert (source.num_classes, len(source.class_names), source.channels) == (10, 10, 3)
    batches = (eval_batches(source, batch_size=32, image_size=32) for source in (held, streamed))
    assert same(*map(list, batches))
    assert (
        sum(
            len(images)
            for images, _ in eval_batches(streamed, batch_size=32, image_size=32, limit=40)
        )
        == 40
    )


@needs_cifar10
def test_streamed_training_is_reproducible_and_resumes(monkeypatch):
    # Smaller than an epoch, so that the buffer's own randomness is at work.
    monkeypatch.setattr("byol_jax.data.tfds.SHUFFLE_BUFFER", 40)
    source = cifar10("test[:100]", memory_limit=0)
    complete = train(source, 14, batch_size=16)
    epochs = [np.concatenate([b.examples[:, 0] for b in complete[i : i + 6]]) for i in (0, 6)]
    assert not np.array_equal(*epochs)
    assert not same(complete[:6], train(source, 6, batch_size=16, seed=2))
    tf.random.set_seed(321)  # must not matter
    assert same(complete, train(source, 14, batch_size=16))
    for start in 5, 6, 9:
        assert same(complete[start:], train(source, 14, batch_size=16, start_step=start))


@needs_cifar10
@pytest.mark.parametrize("count", [2, 3])
def test_streamed_shards_are_disjoint(monkeypatch, count):
    monkeypatch.setattr("byol_jax.data.tfds.SHUFFLE_BUFFER", 10)
    # 46 records of one file and 51 of another: the parts begin and end within files.
    source = cifar10("train[:46]+test[:51]", memory_limit=0)
    assert source.order_depends_on_processes and not photos(2).order_depends_on_processes
    processes = shards(12, count)
    parts = [train(source, 16, batch_size=12, shard=shard) for shard in processes]
    for first in 0, 8:
        seen = [records(source, first // 8, shard) for shard in processes]
        assert sum(map(len, seen)) == len(set.union(*seen)) == 97
    for step in range(16):
        batch = joined([part[step] for part in parts])
        np.testing.assert_array_equal(batch.positions, np.arange(12))
    resumed = train(source, 16, batch_size=12, shard=processes[1], start_step=11)
    assert same(parts[1][11:], resumed)


def records(source, epoch, shard):
    """The records that a process reads in an epoch."""
    order = tf.constant([1, -1 - epoch], tf.int64)
    part = source.shard(shard.index, shard.count)
    return {bytes(record.numpy()) for _, record in part.records(order)}


@needs_cifar10
def test_streamed_epochs_have_every_example_once(monkeypatch):
    monkeypatch.setattr("byol_jax.data.tfds.SHUFFLE_BUFFER", 40)
    source = cifar10("train[:50]+test[:46]", memory_limit=0)
    everything = {bytes(record.numpy()) for _, record in source.records()}
    assert len(everything) == 96
    for epoch in range(2):
        raw = source.raw(tf.range(96, dtype=tf.int64), tf.constant([5, epoch], tf.int64))
        assert {bytes(record.numpy()) for _, record in raw} == everything


@needs_cifar10
def test_a_streamed_record_is_found_by_its_index():
    source = cifar10("train[3:50]+test[7:46]", memory_limit=0)
    by_index = {int(index): bytes(record.numpy()) for index, record in source.records()}
    assert set(by_index) == set(range(86))
    indices = [60, 0, 46, 47, 85, 0]
    found = [
        (int(index), bytes(record.numpy()))
        for index, record in source.get(tf.constant(indices, tf.int64))
    ]
    assert found == [(index, by_index[index]) for index in indices]
    assert re.fullmatch(r"record 3 of .*cifar10-train.*", source.describe(0))
    assert re.fullmatch(r"record 8 of .*cifar10-test.*", source.describe(48))


@needs_cifar10
def test_invalid_tfds_names(tmp_path):
    data_dir = str(SHARED / "tfds")
    with pytest.raises(DataError, match="no split 'val'; choose one of train, test"):
        open_source("tfds:cifar10", "val", data_dir=data_dir)
    with pytest.raises(DataError, match="no split 'train"):
        open_source("tfds:cifar10", "train[:1", data_dir=data_dir)
    with pytest.raises(DataError, match="holds no examples"):
        open_source("tfds:cifar10", "train[:0]", data_dir=data_dir)
    with pytest.raises(DataError, match=r"set --config\.data\.channels=3"):
        open_source("tfds:cifar10", "test", data_dir=data_dir, channels=1)
    with pytest.raises(DataError, match=r"run `tfds build cifar10:9\.9\.9`"):
        open_source("tfds:cifar10:9.9.9", "train", data_dir=data_dir)


@pytest.mark.parametrize("name", ["mnist", "no_such_dataset", "imagenette/160px-v2"])
def test_tfds_data_sets_that_are_not_prepared(tmp_path, name):
    (tmp_path / "mnist").mkdir()
    with pytest.raises(DataError, match=f"not prepared in {tmp_path}; run `tfds build {name}`"):
        open_source(f"tfds:{name}", "train", data_dir=str(tmp_path))


def test_several_views_of_an_image_are_those_of_separate_passes(tmp_path):
    """From files and from arrays; a view of another size, and one of another part."""
    views = [CentralView(12), CentralView(8, 1.0)]
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (5, 20, 24, 3), dtype=np.uint8)
    for index, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{index}.png")
    for source in (open_source(f"folder:{tmp_path}", "train"), from_arrays(arrays)):
        together = list(eval_views(source, views, batch_size=2))
        assert [len(images) for (images, _), _ in together] == [2, 2, 1]
        for index, (size, fraction) in enumerate(views):
            alone = eval_batches(source, batch_size=2, image_size=size, crop_fraction=fraction)
            for (images, _), (both, _) in zip(alone, together, strict=True):
                np.testing.assert_array_equal(both[index], images)
