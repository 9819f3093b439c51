"""Image files that several folders, a glob or a list name: names, labels, splits, mistakes."""

import shutil

import numpy as np
import pytest
from batches import put, train

from byol_jax.data import eval_batches, listed, match_classes, open_source
from byol_jax.errors import DataError


def pixels(source):
    """The gray value of each image, and the labels, in the source's order."""
    ((images, labels),) = eval_batches(source, batch_size=99, image_size=4)
    return images[:, 0, 0, 0].tolist(), None if labels is None else labels.tolist()


def fails(spec, message, split="train"):
    with pytest.raises(DataError, match=message) as error:
        open_source(spec, split)
    assert "\n" not in str(error.value)


@pytest.fixture
def places(tmp_path):
    """Two folders with classes; the second lacks one and has another."""
    values = iter(range(1, 99))
    for name in ("one/train/ant/a", "one/train/bee/b", "one/test/bee/c", "one/test/ant/d"):
        put(tmp_path / f"{name}.png", next(values))
    for name in ("two/train/bee/a", "two/train/cat/e", "two/test/cat/f", "two/test/bee/g"):
        put(tmp_path / f"{name}.png", next(values))
    return tmp_path


# Several folders.


def test_several_folders_join_their_classes(places):
    source = open_source(f"folder:{places}/one,{places}/two", "train")
    assert source.class_names == ("ant", "bee", "cat")
    assert pixels(source) == ([1, 2, 5, 6], [0, 1, 1, 2])
    assert source.names()[::3] == ["one/train/ant/a.png", "two/train/cat/e.png"]
    test = match_classes(source, open_source(f"folder:{places}/one,{places}/two", "test"))
    assert pixels(test) == ([4, 3, 8, 7], [0, 1, 1, 2])
    moved = places.rename(places.parent / "moved")
    again = open_source(f"folder:{moved}/one,{moved}/two", "train")
    assert again.fingerprint() == source.fingerprint()
    other = open_source(f"folder:{moved}/two,{moved}/one", "train")
    assert other.fingerprint() != source.fingerprint()


def test_a_folder_without_classes_leaves_no_labels(places):
    put(places / "flat" / "x.png", 50)
    source = open_source(f"folder:{places}/one,{places}/flat", "train")
    assert pixels(source) == ([1, 2, 50], None)
    assert source.warnings == [f"No labels, as {places}/flat has no classes, and others have."]
    twice = open_source(f"folder:{places}/flat,{places}/flat", "train")
    assert (
        twice.num_examples == 2
        and "Named more than once, and used as often: 1 files" in (twice.warnings[0])
    )


def test_commas_within_names(places):
    put(places / "a,b" / "x.png", 50)
    assert pixels(open_source(f"folder:{places}/a,b", "train"))[0] == [50]
    both = open_source(f"folder:{places}/a\\,b,{places}/one/train/ant", "train")
    assert pixels(both)[0] == [50, 1]


# Globs.


def test_a_glob_has_the_labels_of_a_folder(places):
    source = open_source(f"glob:{places}/one/{{split}}/**/*.png", "train")
    folder = open_source(f"folder:{places}/one", "train")
    assert pixels(source) == pixels(folder) and source.class_names == folder.class_names
    assert source.names() == folder.names() and source.fingerprint() == folder.fingerprint()
    assert pixels(open_source(f"glob:{places}/one/{{split}}/*/*", "test")) == ([4, 3], [0, 1])
    flat = open_source(f"glob:{places}/two/train/bee/?.p[mn]g", "train")
    assert pixels(flat) == ([5], None)


def test_a_glob_takes_images_that_are_not_hidden(places):
    (places / "one/train/ant/notes.txt").write_text("none")
    put(places / "one/train/.trash/z.png")
    (places / "one/train/bee/up").symlink_to(places / "one")
    source = open_source(f"glob:{places}/one/train/**", "train")
    assert pixels(source)[0] == [1, 2]
    assert source.warnings[0].startswith("Left out by glob: files with other names than .jpg")


def test_mistakes_about_globs(places):
    fails(f"glob:{places}/*.gif", "matches no images .*quote it for the shell")
    fails(f"glob:{places}/one", r"has no \*, \? or \[: name a folder")
    fails(f"glob:{places}/**x/*.png", "has \\*\\*x: \\*\\* stands alone")
    fails(f"glob:{places}/*/*/*/*.png", "has no split 'test': write {split} in the pattern", "test")
    fails("glob:gs://bucket/*.png", "is in a bucket")
    fails(f"glob:{places}/one/*/*/*.png", "holds the splits test, train, not classes")
    (places / "a.txt").touch()
    fails(f"glob:{places}/*.txt", "matches no images .*It does match files with other names .*: 1")


# Lists.


def test_a_list_keeps_its_order(places):
    (places / "lists").mkdir()
    file = places / "lists" / "mine.txt"
    absolute = places / "two/train/cat/e.png"
    file.write_text(f"../one/train/bee/b.png\n\n{absolute}\r\n ../one/train/ant/a.png\n")
    source = open_source(f"list:{file}", "train")
    assert pixels(source) == ([2, 6, 1], None) and not source.warnings
    assert source.names() == ["../one/train/bee/b.png", str(absolute), "../one/train/ant/a.png"]
    file.write_text(
        "../one/train/bee/b.png\n" * 2 + "../one/./train/bee/b.png\n../two/train/bee/a.png"
    )
    source = open_source(f"list:{file}", "train")
    assert source.num_examples == 4
    assert source.warnings[0].startswith("Named more than once, and used as often: 1 files: ")
    file.rename(places / "lists" / "test.txt")
    assert open_source(f"list:{places}/lists", "test").fingerprint() == source.fingerprint()
    fails(f"list:{places}/lists", "has no split 'train' .it has test.: name one", "train")
    (places / "lists" / "train.csv").write_text("path,split\n../two/train/cat/e.png,any\n")
    assert pixels(open_source(f"list:{places}/lists", "train")) == ([6], None)


def table(places, text):
    (places / "all.csv").write_text(text)
    return f"list:{places}/all.csv"


def test_a_table_has_labels_and_splits(places):
    spec = table(
        places,
        "label,path,note,split\n10,one/train/ant/a.png,x,train\n9,one/train/bee/b.png,y,train\n"
        "9,one/test/bee/c.png,,test\n",
    )
    source = open_source(spec, "train")
    assert source.class_names == ("9", "10") and pixels(source) == ([1, 2], [1, 0])
    assert pixels(match_classes(source, open_source(spec, "test"))) == ([3], [0])
    (batch,) = train(source, 1, batch_size=2)
    np.testing.assert_array_equal(batch.labels, batch.examples[:, 0, 0, 0, 0] % 2)
    part, _ = listed(source, ["a.png"])
    assert pixels(part) == ([1], [1])
    moved = shutil.copytree(places, places.parent / "copy")
    assert open_source(f"list:{moved}/all.csv", "train").fingerprint() == source.fingerprint()
    changed = table(places, "path,label\none/train/ant/a.png,9\none/train/bee/b.png,10\n")
    assert open_source(changed, "train").fingerprint() != source.fingerprint()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\none/train/ant/a.png\nb.png\nc.png\n", "line 3 of .* names .*b.png, .*and 1 more"),
        ("path\n", "lists no images: give one path a line"),
        ("", "has no column 'path': its first line must name the columns, such as path,label,"),
        ("path,label\n,x\n", "line 2 of .* has no path"),
        ("path,label\none/train/ant/a.png,x\none/train/bee/b.png,\n", "line 3 of .* has no label"),
        ("path,label\none/train/ant/a.png,x\none/train/bee/b.png\n", "line 3 of .* has no label"),
        ("path,split\none/train/ant/a.png,val\n", "has no split 'train'; it has 'val'"),
        ("path\none/train\n", "which is no file"),
    ],
)
def test_a_mistake_in_a_table_is_one_line(places, text, message):
    fails(table(places, text), message)


def test_mistakes_about_lists(places):
    fails(table(places, "path\none/train/ant/a.png\n"), "has no split 'test', as it has no", "test")
    fails(f"list:{places}/none.txt", "does not exist: check the path after 'list:'")
    fails(f"list:{places}/one/train/ant/a.png", r"is no \.txt, \.csv file")
    (places / "empty.txt").write_text("\n\n")
    fails(f"list:{places}/empty.txt", "lists no images: give one path a line")
    (places / "mine.txt").write_text("one/train/ant/a.png\nlost.png\n")
    fails(
        f"list:{places}/mine.txt", "line 2 of .*mine.txt names .*lost.png, which is no file: corr"
    )
    fails(f"list:{places}/mine.txt", "is one file, which stands for the split 'train'", "test")
    fails("list:gs://bucket/a.txt", "is in a bucket")
    fails(f"folder:{places}/one,,{places}/two", "names an empty path")
