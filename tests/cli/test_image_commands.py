"""search, dedupe and label: what they find in a folder of images, and a line for each mistake."""

import csv
import functools
import os
import re
import shutil

import numpy as np
import pytest
from absl import flags
from commands import imported
from encoders import random_encoder
from PIL import Image

import byol_jax
from byol_jax.errors import UserError
from byol_jax.runs import encoder as encoder_lib

SIDE = 32


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """The export of an encoder with random weights."""
    directory = tmp_path_factory.mktemp("export")
    encoder_lib.save(random_encoder("convnet", image_size=SIDE, features=16), directory)
    return directory


@pytest.fixture(autouse=True)
def opened_once(export, monkeypatch):
    """Commands share one encoder, which is compiled once."""
    monkeypatch.setattr(byol_jax, "load", lambda *_: encoder_of(export), raising=False)


@functools.cache
def encoder_of(export):
    return encoder_lib.load(export)


def draw(folder, images):
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        image.save(folder / f"{number:02d}.png")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with train/: 30 images, two of them again in other sizes; and test/."""
    folder = tmp_path_factory.mktemp("images")
    colours = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), np.uint8)
    images = [Image.fromarray(grid).resize((SIDE, SIDE)) for grid in colours]
    draw(folder / "train", images[:30])
    draw(folder / "test", [*images[30:], images[7]])
    for number, side in ((3, 64), (5, 24)):
        with Image.open(folder / "train" / f"{number:02d}.png") as image:
            resized = image.resize((side, side), Image.Resampling.BICUBIC)
            resized.save(folder / "train" / f"{number:02d}_{side}.png")
    return folder


@pytest.fixture
def folder(drawn, tmp_path):
    """A copy of it."""
    return shutil.copytree(drawn, tmp_path / "images")


def call(command, *given):
    with imported(command) as module:
        flags.FLAGS.unparse_flags()
        flags.FLAGS([command, *map(str, given)])
        module.main()


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def common(export, folder, tmp_path):
    return f"--run={export}", f"--data=folder:{folder}", f"--index={tmp_path / 'kept.npz'}"


def test_search_finds_the_other_size_first(common, folder, tmp_path, capsys):
    query = folder / "train" / "03.png"
    outside = folder / "test" / "10.png"  # a copy of train/07.png
    output, picture = tmp_path / "hits.csv", tmp_path / "hits.png"
    given = f"--image={query}", f"--image={outside}", "--top=4"
    call("search", *common, *given, f"--output={output}", f"--picture={picture}")
    rows = read(output)
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"] * 2
    assert rows[0]["path"] == str(folder / "train" / "03_64.png")
    assert rows[4]["path"] == str(folder / "train" / "07.png")
    assert float(rows[4]["similarity"]) == pytest.approx(1, abs=1e-4)
    assert str(query) not in {row["path"] for row in rows[:4]}  # itself is no hit
    scores = [float(row["similarity"]) for row in rows[:4]]
    assert scores == sorted(scores, reverse=True)
    with Image.open(picture) as sheet:
        assert sheet.size == (5 * 160, 2 * 176)
    assert f"  1  {scores[0]:.4f}  {folder / 'train' / '03_64.png'}" in capsys.readouterr().out


def test_features_are_kept_and_only_changes_are_computed(common, folder, tmp_path, capsys):
    given = *common, f"--image={folder / 'test' / '00.png'}", f"--output={tmp_path / 'a.csv'}"

    def again():
        call("search", *given)
        return capsys.readouterr().out.splitlines()[0], read(tmp_path / "a.csv")

    first, expected = again()
    assert first == f"folder:{folder}/train: 32 images, features computed"
    line, rows = again()
    assert "32 images, features of 32 from" in line and rows == expected
    copy = folder / "train" / "new.png"
    shutil.copy(folder / "test" / "00.png", copy)
    (folder / "train" / "00.png").unlink()
    changed = folder / "train" / "01.png"
    shutil.copy(folder / "test" / "01.png", changed)
    os.utime(changed, ns=(1, 1))
    line, rows = again()
    assert "32 images, features of 30 from" in line and rows[0]["path"] == str(copy)
    kept = np.load(tmp_path / "kept.npz")
    (tmp_path / "kept.npz").unlink()
    assert "features computed" in again()[0]
    new = np.load(tmp_path / "kept.npz")
    np.testing.assert_array_equal(kept["images"], new["images"])
    np.testing.assert_allclose(kept["features"], new["features"], rtol=1e-4, atol=1e-5)
    # Those with the mirror image, of the same flag, are in another file.
    call("dedupe", *common)
    assert (tmp_path / "kept-mirrored.npz").exists() and capsys.readouterr().out
    assert "32 images, features of 32 from" in again()[0]


def test_another_encoder_computes_all_again(common, folder, tmp_path, capsys):
    call("search", *common, f"--image={folder / 'test' / '00.png'}")
    kept = dict(np.load(tmp_path / "kept.npz"))
    np.savez(tmp_path / "kept.npz", **kept | {"encoder": np.array("of other weights")})
    call("search", *common, f"--image={folder / 'test' / '00.png'}")
    assert capsys.readouterr().out.count("features computed") == 2


def test_features_are_kept_below_the_run_without_a_flag(export, folder, tmp_path, capsys):
    run = shutil.copytree(export, tmp_path / "run")
    given = f"--run={run}", f"--data=folder:{folder}", f"--image={folder / 'test' / '00.png'}"
    call("search", *given)
    (kept,) = (run / "embeddings").iterdir()
    kept.write_bytes(b"damaged")
    call("search", *given)
    call("search", *given)
    assert "features of 32 from" in capsys.readouterr().out


def test_dedupe_groups_the_other_sizes(common, folder, tmp_path, capsys):
    output = tmp_path / "groups.csv"
    call("dedupe", *common, "--threshold=0.87", f"--output={output}")
    found = {}
    for row in read(output):
        found.setdefault(row["group"], []).append((os.path.basename(row["path"]), row["keep"]))
    assert list(found.values()) == [  # the largest is first, and kept
        [("03_64.png", "yes"), ("03.png", "no")],
        [("05.png", "yes"), ("05_24.png", "no")],
    ]
    assert "2 groups, 2 images too many, threshold 0.87" in capsys.readouterr().out


def test_dedupe_chooses_a_threshold_from_the_data(common, capsys):
    call("dedupe", *common)
    out = capsys.readouterr().out
    wanted = r"95% of 32 images have a similarity of 0\.\d+ or more to themselves cropped by 5%"
    assert re.search(wanted, out)


def test_dedupe_finds_what_is_in_two_splits(export, folder, tmp_path):
    run = shutil.copytree(export, tmp_path / "run")
    image = Image.open(folder / "train" / "07.png")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "train" / "07.png")
    output = tmp_path / "leaks.csv"
    given = f"--run={run}", f"--data=folder:{folder}", "--against=test", "--threshold=0.95"
    call("dedupe", *given, f"--output={output}")
    names = [os.path.relpath(row["path"], folder) for row in read(output)]
    assert names == ["test/10.png", "train/07.png"]
    assert [row["keep"] for row in read(output)] == ["yes", "no"]


def test_label_takes_a_filled_in_table_of_suggestions(common, folder, tmp_path, capsys):
    few, output = tmp_path / "few.csv", tmp_path / "labels.csv"
    call("label", *common, "--suggest=6", f"--suggestions={few}")
    rows = read(few)
    assert len({row["path"] for row in rows}) == 6 and {row["label"] for row in rows} == {""}
    names = [os.path.relpath(row["path"], folder) for row in rows]
    absolute, below, beside, *_ = rows[0]["path"], names[1].removeprefix("train/"), names[2]
    table = [[absolute, "a"], [below, "b"], [beside, "a"], [rows[3]["path"], "b"]]
    with open(few, "w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *table, [rows[4]["path"], ""]])
    call("label", *common, f"--few={few}", f"--output={output}", "--suggest=3")
    labelled = read(output)
    assert len(labelled) == 32 - 4
    assert not {row["path"] for row in labelled} & {rows[number]["path"] for number in range(4)}
    assert {row["label"] for row in labelled} <= {"a", "b"}
    assert all(0.5 <= float(row["confidence"]) <= 1 for row in labelled)
    assert "4 labels of 2 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class\n00.png,a\n", "has no column 'path': its first line must name the columns"),
        ("path,label\nnowhere.png,a\n00.png,b\n", "names 'nowhere.png', which is no image of"),
        ("path,label\n00.png,a\n01.png,a\n", "has labels of one class only"),
        ("path,label\n00.png,a\n00.png,b\n", "00.png is 'a' and 'b': give each image one label"),
        ("path,label\n00.png,a\ntrain/00.png,b\n", "names 'train/00.png' twice, with two labels"),
        ("path,label\n00.png,\n", "holds no label: fill in some"),
        ("", "has no column 'path'"),
    ],
)
def test_a_mistake_in_a_table_of_labels_is_one_line(common, tmp_path, text, message):
    (tmp_path / "few.csv").write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        call("label", *common, f"--few={tmp_path / 'few.csv'}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("command", "given", "message"),
    [
        ("search", ["--image=T/nowhere.jpg"], "nowhere.jpg does not exist: name an image file"),
        ("search", ["--image=T"], "is a folder: name an image file"),
        (
            "search",
            ["--image=T/text.jpg"],
            "text.jpg: it is not a JPEG, PNG, .* name an image file",
        ),
        ("search", ["--image=T/a.png", "--output=T/no/a.csv"], "--output=.* cannot be written: No"),
        ("search", ["--image=T/a.png", "--index=T/text.jpg"], "is not a file of features"),
        ("search", ["--image=T/a.png", "--index=T/no/a.npz"], "--index=.* cannot be written"),
        ("search", ["--image=T/a.png", "--data=folder:T/empty"], "empty holds no images"),
        ("dedupe", ["--against=train"], "--against=train is the split itself"),
        ("dedupe", ["--against=test"], "--index keeps one split: leave it out with --against"),
        ("dedupe", ["--threshold=-1", "--split=nowhere"], "has no split 'nowhere'"),
        ("label", [], "give labels with --few=labels.csv, or ask what to label: --suggest=20"),
        ("label", ["--few=T/nowhere.csv"], "nowhere.csv cannot be read"),
        ("label", ["--suggest=2", "--output=T/a.csv"], "--output is for predictions"),
        ("label", ["--few=T/a.csv", "--suggestions=T/b.csv"], "--suggestions is for --suggest"),
    ],
)
def test_a_mistake_is_one_line(common, folder, tmp_path, command, given, message):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()
    shutil.copy(folder / "test" / "00.png", tmp_path / "a.png")
    with pytest.raises(UserError, match=message) as raised:
        call(command, *common, *(text.replace("T", str(tmp_path), 1) for text in given))
    assert "\n" not in str(raised.value)


def test_data_without_files_have_numbers_for_paths(export, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (20, SIDE, SIDE), np.uint8)
    np.savez(tmp_path / "train.npz", images=np.repeat(images[..., None], 3, axis=-1))
    Image.fromarray(images[4]).save(tmp_path / "gray.png")
    given = f"--run={export}", f"--data=npz:{tmp_path}", f"--index={tmp_path / 'kept.npz'}"
    call("search", *given, f"--image={tmp_path / 'gray.png'}", f"--picture={tmp_path / 'a.png'}")
    assert "    1  1.0000  4\n" in capsys.readouterr().out


def test_what_cannot_be_decoded_is_an_error_or_left_out(common, folder, capsys):
    (folder / "train" / "02.png").write_bytes(b"damaged")
    image = f"--image={folder / 'test' / '00.png'}"
    with pytest.raises(UserError, match=r"02\.png cannot be decoded: it is not a JPEG"):
        call("search", *common, image)
    for known in (0, 31):
        call("search", *common, image, "--on_decode_error=skip")
        out = capsys.readouterr().out
        assert "02.png: it is not a JPEG" in out and "31 images" in out
        assert (f"features of {known} from" in out) == (known > 0)
