"""Files of images and texts: reading, labels, and what cannot be read."""

import json
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from byol_jax.data import indexed
from byol_jax.data.image_text import PairSource, open_image_text
from byol_jax.errors import DataError, UserError

pytest.importorskip("tokenizers")
VOCABULARY = ("[PAD]", "[UNK]", "cat", "dog")
WIDE = np.random.default_rng(0).integers(256, size=(4, 12, 3)).astype(np.uint8)


def write(folder, rows, split="train"):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / f"{split}.jsonl").write_text("\n".join(lines))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(WIDE).save(tmp_path / "images" / "wide.png")
    Image.fromarray(WIDE.swapaxes(0, 1)).save(tmp_path / "tall.png")
    return tmp_path


def test_squares_are_parts_of_images_without_distortion(folder):
    write(
        folder,
        [{"image": "images/wide.png", "text": " a Cat "}, {"image": "tall.png", "text": "b"}],
    )
    source = open_image_text(str(folder), "train", 4)
    central = source.load(np.arange(2))
    assert central.dtype == np.uint8
    np.testing.assert_array_equal(central[0], WIDE[:, 4:8])
    np.testing.assert_array_equal(central[1], WIDE[:, 4:8].swapaxes(0, 1))
    assert source.texts.text(0) == "a Cat" and source.texts.text(1) == "b"
    seeds = [(0, 0, i) for i in range(40)]
    squares = source.load_random(np.zeros(40, int), seeds)
    # Each is at another place: between its neighbours of whole columns.
    places = [np.random.default_rng(seed).random(2)[1] * 8 for seed in seeds]
    nearest = np.array([WIDE[:, round(place) : round(place) + 4] for place in places])
    error = np.abs(squares.astype(float) - nearest).mean((1, 2, 3))
    others = np.abs(squares.astype(float) - central[0]).mean((1, 2, 3))
    near = np.array([abs(place - round(place)) < 0.1 for place in places])
    assert near.sum() > 4 and (error[near] < 20).all() and np.median(others) > 40
    np.testing.assert_array_equal(source.load_random(np.array([0]), seeds[7:8])[0], squares[7])


def test_larger_images_are_resized(folder):
    left_to_right = np.tile(np.linspace(0, 255, 360).astype(np.uint8)[None, :, None], (120, 1, 3))
    Image.fromarray(left_to_right).save(folder / "ramp.jpg", quality=95)
    write(folder, [{"image": "ramp.jpg", "text": "a ramp"}])
    (found,) = open_image_text(str(folder), "train", 6).load(np.array([0]))
    means = left_to_right[:, 120:240].reshape(120, 6, 20, 3).mean((0, 2))
    np.testing.assert_allclose(found, np.tile(means, (6, 1, 1)), atol=3)


def test_images_of_all_modes_are_colour_and_upright(folder):
    ramp = np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4)
    gray = Image.fromarray(ramp)
    gray.save(folder / "gray.png")
    Image.fromarray(ramp.astype(np.uint16) * 256 + 7).save(folder / "16bit.png")
    gray.convert("P").save(folder / "palette.png", transparency=b"\0\1")
    gray.convert("RGBA").save(folder / "alpha.webp", lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    gray.save(folder / "turned.png", exif=exif)
    names = ["gray.png", "16bit.png", "palette.png", "alpha.webp", "turned.png"]
    write(folder, [{"image": name, "text": "x"} for name in names])
    found = open_image_text(str(folder), "train", 4).load(np.arange(5))
    want = np.repeat(ramp[..., None], 3, axis=2)
    for row in found[:4]:
        np.testing.assert_array_equal(row, want)
    np.testing.assert_array_equal(found[4], np.rot90(want, -1))


def test_labels_splits_and_tables(folder):
    row = {"image": "tall.png", "text": "x"}
    write(folder, [row | {"label": "b"}, "", row | {"label": "a"}])
    (folder / "test.csv").write_text('image,text,label\ntall.png,"two\nlines",a\n')
    source, test = (open_image_text(str(folder), split, 4) for split in ("train", "test"))
    assert source.class_names == ("a", "b") and source.labels.tolist() == [1, 0]
    assert source.describe(1) == f"line 3 of {folder / 'train.jsonl'}"
    assert test.class_names == ("a",) and test.texts.text(0) == "two\nlines"
    assert source.fingerprint() != test.fingerprint()
    alone = open_image_text(str(folder / "train.jsonl"), "train", 4)
    assert alone.fingerprint() == source.fingerprint()
    write(folder, [row], "plain")
    assert open_image_text(str(folder), "plain", 4).class_names is None


BAD = [
    ({"image": "no.png", "text": "x"}, r"its image no\.png does not exist"),
    ({"image": "broken.jpg", "text": "x"}, r"its image broken\.jpg cannot be decoded \(.*\)"),
    (
        {"image": "text.png", "text": "x"},
        r"its image text\.png cannot be decoded \(cannot identify",
    ),
    ({"image": "images", "text": "x"}, r"its image images cannot be decoded \(.*directory"),
    ({"image": "a\0b", "text": "x"}, r"cannot be decoded \(embedded null"),
    ({"image": "tall.png", "text": " "}, 'its "text" is empty'),
    ({"image": "", "text": "x"}, 'its "image" is empty'),
    ({"image": "tall.png"}, 'it is no JSON object with a string "text"'),
    ({"image": ["tall.png"], "text": "x"}, 'it is no JSON object with a string "image"'),
    ({"image": "../tall.png", "text": "x"}, r"its image \.\./tall\.png is not below the folder"),
    ({"image": "a/../../b.png", "text": "x"}, "is not below the folder of that file"),
    ({"image": "/etc/motd", "text": "x"}, "its image /etc/motd is not below the folder"),
    ("{", "it is no JSON object"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_bad_pair_is_one_line_or_is_skipped(folder, row, message):
    good = {"image": "tall.png", "text": "cat"}
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "broken.jpg")
    content = (folder / "broken.jpg").read_bytes()
    (folder / "broken.jpg").write_bytes(content[: len(content) // 2])
    (folder / "text.png").write_text("no image")
    write(folder, [good, good, row, good])
    source = PairSource(open_image_text(str(folder), "train", 4), VOCABULARY, 2)
    message = rf"line 3 of .*train\.jsonl cannot be read: .*{message}"
    with pytest.raises(DataError, match=message) as raised:
        source.load(np.arange(4))
    assert "\n" not in str(raised.value)
    errors = []
    batches = indexed.eval_batches(
        source, batch_size=4, on_decode_error=lambda i, error: errors.append((i, error))
    )
    ((examples, _),) = batches
    assert examples["image"].shape == (3, 4, 4, 3) and examples["text"].tolist() == [[2, 0]] * 3
    assert errors == [(2, str(raised.value))]
    plan = {"batch_size": 4, "seed": 0, "num_steps": 1, "rows": np.arange(4)}
    errors.clear()
    (batch,) = indexed.train_batches(
        source, **plan, on_decode_error=lambda step, error: errors.append((step, error))
    )
    assert batch.examples["text"].tolist() == [[2, 0]] * 4 and errors[0][0] == 1


def test_whatever_a_damaged_image_raises_is_one_line(folder, monkeypatch):
    def raising(image):
        raise struct.error("required argument is not an integer")

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", raising)
    write(folder, [{"image": "tall.png", "text": "cat"}])
    source = PairSource(open_image_text(str(folder), "train", 4), VOCABULARY, 2)
    with pytest.raises(DataError, match=r"tall\.png cannot be decoded \(required argument is not"):
        source.load(np.arange(1))


@pytest.mark.parametrize(
    ("files", "path", "split", "message"),
    [
        ({}, "no", "train", "no does not exist: check the path after 'image_text:'"),
        ({"train.txt": "x"}, "", "train", r"no split 'train' \(it has no \.jsonl, \.csv files"),
        ({"train.csv": "text\nx\n"}, "", "train", "has no column 'image': .* image, text and"),
        ({"train.jsonl": "\n"}, "", "train", "has no texts"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, files, path, split, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as raised:
        open_image_text(str(tmp_path / path), split, 4)
    assert "\n" not in str(raised.value)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UserError, match=r"pip install 'byol_jax\[train\]'"):
        open_image_text(str(tmp_path), "train", 4)
