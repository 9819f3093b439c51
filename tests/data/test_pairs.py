"""Pairs of images: how files are joined, and that each view is of its own file."""

import numpy as np
import pytest
from batches import put, same, train

from byol_jax.data import eval_batches, open_source, subset
from byol_jax.errors import DataError

OFFSET = 100  # of the gray values of the second images


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Sixteen pairs of two classes, of other sizes and formats, and images without a partner."""
    root = tmp_path_factory.mktemp("pairs")
    for i in range(16):
        name = f"train/{'ab'[i % 2]}/{i:02}"
        put(root / "first" / f"{name}.png", value=i, size=(10, 8))
        put(root / "second" / f"{name}.bmp", value=i + OFFSET, size=(7, 12))
    put(root / "first/train/a/alone.png")
    put(root / "second/train/b/other.bmp")
    return root


@pytest.fixture(scope="module")
def source(folders):
    return open_source(f"pairs:{folders}/first,{folders}/second", "train")


def first_pixels(batch):
    """The gray value of both views of each example."""
    return np.int32(batch.examples[:, :, 0, 0, 0])


def test_each_view_is_of_its_own_file(source):
    assert (source.num_examples, source.class_names) == (16, ("a", "b"))
    seen = []
    for batch in train(source, 2):
        pixels = first_pixels(batch)
        np.testing.assert_array_equal(pixels[:, 1], pixels[:, 0] + OFFSET)
        np.testing.assert_array_equal(batch.labels, pixels[:, 0] % 2)
        assert np.ptp(batch.examples, axis=(2, 3, 4)).max() == 0
        seen += pixels[:, 0].tolist()
    assert sorted(seen) == list(range(16))


def test_any_step_is_made_alone(source):
    assert same(train(source, 5)[3:], train(source, 5, start_step=3))


def test_a_part_has_the_same_pairs(source):
    part = subset(source, np.arange(8, 16), "part")  # those of the second class
    (batch,) = train(part, 1)
    pixels = first_pixels(batch)
    assert sorted(pixels[:, 0]) == list(range(1, 16, 2))
    np.testing.assert_array_equal(pixels[:, 1], pixels[:, 0] + OFFSET)


def test_in_evaluation_an_example_is_its_first_image(source):
    ((images, labels),) = eval_batches(source, batch_size=16, image_size=6)
    np.testing.assert_array_equal(images[:, 0, 0, 0] % 2, labels)
    assert images.max() < OFFSET and source.names()[0] == "a/00.png"


def test_images_without_a_partner_are_reported(source, folders):
    assert source.warnings == [
        f"Left out, as they have no partner: 1 of folder:{folders}/first/train (a/alone).",
        f"Left out, as they have no partner: 1 of folder:{folders}/second/train (b/other).",
    ]


def test_the_fingerprint_is_of_both_folders_and_not_of_their_place(source, folders, tmp_path):
    moved = tmp_path / "moved"
    moved.symlink_to(folders)
    again = open_source(f"pairs:{moved}/first,{moved}/second", "train")
    assert again.fingerprint() == source.fingerprint()
    exchanged = open_source(f"pairs:{moved}/second,{moved}/first", "train")
    assert exchanged.fingerprint() != source.fingerprint()


@pytest.fixture
def table(tmp_path):
    """Writes a table and images; returns its source."""
    for i in range(8):
        put(tmp_path / "images" / f"{i}_start.png", value=i)
        put(tmp_path / "images" / f"{i}_end.png", value=i + OFFSET)

    def table(text, split="train"):
        (tmp_path / "pairs.csv").write_text(text)
        return open_source(f"pairs:{tmp_path / 'pairs.csv'}", split)

    return table


def rows(columns, values, count=8):
    lines = (f"images/{i}_start.png,images/{i}_end.png{values(i)}" for i in range(count))
    return "\n".join([columns, *lines]) + "\n"


def test_a_table_joins_files(table):
    text = rows("first,second,label,split", lambda i: f",{'xy'[i % 2]},{'train' if i else 'test'}")
    source = table(text)
    assert (source.num_examples, source.class_names) == (7, ("x", "y"))
    (batch,) = train(source, 1, batch_size=7)
    pixels = first_pixels(batch)
    np.testing.assert_array_equal(pixels[:, 1], pixels[:, 0] + OFFSET)
    np.testing.assert_array_equal(batch.labels, pixels[:, 0] % 2)
    assert table(text, "test").num_examples == 1
    plain = table(rows("first,second", lambda i: ""))
    assert (plain.num_examples, plain.class_names) == (8, None)


def test_an_absolute_path_is_taken_as_it_is(table, tmp_path):
    source = table(f"first,second\n{tmp_path}/images/1_start.png,images/1_end.png\n")
    (batch,) = train(source, 1, batch_size=1)
    assert first_pixels(batch).tolist() == [[1, 1 + OFFSET]]


def test_the_broken_one_of_two_files_is_named(table, tmp_path):
    source = table(rows("first,second", lambda i: ""))
    (tmp_path / "images" / "3_end.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"3_end\.png cannot be decoded"):
        train(source, 1)
    messages = []
    (batch,) = train(source, 1, on_decode_error=lambda step, message: messages.append(message))
    assert len(messages) == 1 and "3_end.png" in messages[0]
    pixels = first_pixels(batch)
    np.testing.assert_array_equal(pixels[:, 1], pixels[:, 0] + OFFSET)


@pytest.mark.parametrize(
    ("text", "split", "message"),
    [
        ("one,two\na,b\n", "train", "has no column 'first': its first line must name"),
        ("first,second\na.png,\n", "train", "row 1 of the split 'train' of .* lacks a file"),
        ("first,second\na,b\n", "val", "has no split 'val', as it has no column 'split'"),
        ("first,second,split\na,b,train\n", "val", "has no split 'val'; it has 'train'"),
        ("first,second\n", "train", "holds no examples"),
    ],
)
def test_a_mistake_in_a_table_is_one_line(table, text, split, message):
    with pytest.raises(DataError, match=message) as error:
        table(text, split)
    assert "\n" not in str(error.value)


def test_a_mistake_about_folders_is_one_line(folders, tmp_path):
    put(tmp_path / "other" / "train" / "z.png")
    put(tmp_path / "twice" / "z.png")
    put(tmp_path / "twice" / "z.bmp")
    for spec, message in [
        (f"{folders}/first", "is neither two folders"),
        (f"{folders}/first,{tmp_path}/other", "no image of .* has a partner of the same name"),
        (f"{tmp_path}/other,{tmp_path}/twice", "has two images called z, with different endings"),
        (f"{tmp_path}/none.csv", "cannot be read"),
        (f"{folders}/first,{tmp_path}/nowhere", "does not exist"),
    ]:
        with pytest.raises(DataError, match=message) as error:
            open_source(f"pairs:{spec}", "train")
        assert "\n" not in str(error.value)
