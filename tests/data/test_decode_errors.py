"""Decoded pixels; images that cannot be decoded: the messages, and what replaces them."""

import io
import json
import os
import re
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from byol_jax.data import ShardOptions, eval_batches, open_source, train_batches
from byol_jax.data._tensorflow import tf
from byol_jax.data.decode import decode, decode_error
from byol_jax.errors import DataError
from byol_jax.train.metrics import DecodeErrorLog


def smooth(seed=0, size=(24, 16)):
    """A picture that JPEG keeps well, different in each quarter."""
    noise = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(image, kind, **kwargs):
    file = io.BytesIO()
    image.save(file, kind, **kwargs)
    return file.getvalue()


def pillow(data, channels):
    """The pixels that Pillow decodes."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"), np.int32)
    return pixels.reshape(*pixels.shape[:2], channels)


def check_like_pillow(data, channels, tolerance):
    pixels = decode(tf.constant(data), channels)
    assert pixels.dtype == tf.uint8
    np.testing.assert_allclose(pixels.numpy(), pillow(data, channels), atol=tolerance, rtol=0)


def with_alpha():
    image = smooth().convert("RGBA")
    image.putalpha(100)
    return image


# With tolerances: the two interpolate the colours of a JPEG differently.
IMAGES = {
    "jpeg": (lambda: encoded(smooth(), "JPEG", quality=95), 12),
    "progressive": (lambda: encoded(smooth(), "JPEG", quality=95, progressive=True), 12),
    "gray jpeg": (lambda: encoded(smooth().convert("L"), "JPEG"), 2),
    "cmyk jpeg": (lambda: encoded(smooth().convert("CMYK"), "JPEG", quality=95), 24),
    "png": (lambda: encoded(smooth(), "PNG"), 1),
    "gray png": (lambda: encoded(smooth().convert("L"), "PNG"), 0),
    "black and white": (lambda: encoded(smooth().convert("1"), "PNG"), 0),
    "palette": (lambda: encoded(smooth().convert("P"), "PNG"), 1),
    "palette with alpha": (lambda: encoded(smooth().convert("P"), "PNG", transparency=3), 1),
    "gray and alpha": (lambda: encoded(smooth().convert("LA"), "PNG"), 0),
    "alpha": (lambda: encoded(with_alpha(), "PNG"), 1),
    "animated png": (
        lambda: encoded(smooth(), "PNG", save_all=True, append_images=[smooth(1)]),
        1,
    ),
    "animated gif": (
        lambda: encoded(smooth(), "GIF", save_all=True, append_images=[smooth(1)]),
        1,
    ),
    "bmp": (lambda: encoded(smooth(), "BMP"), 1),
    "webp": (lambda: encoded(smooth(), "WEBP", lossless=True), 1),
    "1x1 png": (lambda: encoded(smooth(size=(1, 1)), "PNG"), 1),
    "1x1 jpeg": (lambda: encoded(smooth(size=(1, 1)), "JPEG"), 3),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", IMAGES)
def test_pixels_equal_those_of_pillow(name, channels):
    make, tolerance = IMAGES[name]
    check_like_pillow(make(), channels, tolerance)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_lose_the_lower_eight(channels):
    values = (np.arange(384).reshape(16, 24) * 170).astype(np.uint16)
    pixels = decode(tf.constant(encoded(Image.fromarray(values), "PNG")), channels)
    np.testing.assert_array_equal(pixels, np.repeat((values >> 8)[..., None], channels, -1))


def test_ycck_jpeg_has_the_colours_of_pillow():
    """Adobe's marker (transform 2) says that the same four components are YCCK, inverted."""
    data = bytearray(encoded(smooth().convert("CMYK"), "JPEG", quality=95))
    at = data.index(b"Adobe")
    assert data[at + 11] == 0
    data[at + 11] = 2
    check_like_pillow(bytes(data), 3, 24)


def rotated(orientation, endian="<"):
    exif = Image.Exif()
    exif.endian = endian
    exif[0x010F] = "maker"
    exif[0x0112] = orientation
    return encoded(smooth(), "JPEG", exif=exif.tobytes(), quality=95)


@pytest.mark.parametrize("endian", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_images_upright(orientation, endian):
    data = rotated(orientation, endian)
    check_like_pillow(data, 3, 12)
    height, width, _ = decode(tf.constant(data), 1).shape
    assert (height, width) == ((16, 24) if orientation < 5 else (24, 16))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_invalid_orientation_means_upright(value):
    plain = decode(tf.constant(rotated(1)), 3)
    np.testing.assert_array_equal(decode(tf.constant(rotated(value)), 3), plain)


@pytest.mark.parametrize("offset", [0, 9, 2**31, 2**32 - 1])
def test_a_damaged_exif_directory_means_upright(offset):
    data = rotated(6)
    at = data.index(b"Exif\0\0") + 10
    broken = data[:at] + struct.pack("<I", offset) + data[at + 4 :]
    np.testing.assert_array_equal(
        decode(tf.constant(broken), 3), decode(tf.constant(rotated(1)), 3)
    )


UNDECODABLE = {
    "empty": (b"", "it is empty"),
    "zeros": (bytes(1000), "it is not a JPEG, PNG, GIF, BMP or WebP image"),
    "text": (b"<html>not found</html>", "it is not a JPEG, PNG, GIF, BMP or WebP image"),
    "tiff": (encoded(smooth(), "TIFF"), "it is not a JPEG, PNG, GIF, BMP or WebP image"),
    "half a jpeg": (encoded(smooth(), "JPEG")[:-200], "it is damaged or truncated"),
    "a jpeg without end": (encoded(smooth(), "JPEG")[:-2], "it is damaged or truncated"),
    "half a png": (encoded(smooth(), "PNG")[:-300], "it is damaged or truncated"),
    "a png without end": (encoded(smooth(), "PNG")[:-4], "it is damaged or truncated"),
    "start of a jpeg": (b"\xff\xd8\xff", "it is damaged or truncated"),
}


def folder(path, count=12, empty=()):
    """A source of different images, PNG; the files numbered in `empty` are empty."""
    for i in range(count):
        (path / f"{i:02}.png").write_bytes(b"" if i in empty else encoded(smooth(i), "PNG"))
    return open_source(f"folder:{path}", "train")


def train(source, num_steps=6, **kwargs):
    return list(
        train_batches(source, batch_size=4, image_size=8, seed=1, num_steps=num_steps, **kwargs)
    )


@pytest.mark.parametrize("name", UNDECODABLE)
def test_an_undecodable_image_is_named_with_the_reason(tmp_path, name):
    data, reason = UNDECODABLE[name]
    (tmp_path / "a picture é.jpg").write_bytes(data)
    source = open_source(f"folder:{tmp_path}", "train")
    message = rf"a picture é\.jpg cannot be decoded: {reason}; repair it, or leave it out with --on"
    with pytest.raises(DataError, match=message):
        list(eval_batches(source, batch_size=1, image_size=8))


def test_training_names_it_and_offers_to_skip(tmp_path):
    source = folder(tmp_path, empty=[7])
    with pytest.raises(
        DataError, match=r"07\.png .*: it is empty; .*--config\.data\.on_decode_error=skip"
    ):
        train(source)


def test_invalid_utf8_and_control_characters_in_names_are_escaped(tmp_path):
    for name in (b"caf\xe9 1.png", "日本 2.png".encode(), b"two\nlines\x1b.png"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(encoded(smooth(), "PNG"))
    source = open_source(f"folder:{tmp_path}", "train")
    assert source.names() == ["caf\\xe9 1.png", "two\\nlines\\x1b.png", "日本 2.png"]
    ((images, _),) = eval_batches(source, batch_size=3, image_size=8)
    np.testing.assert_array_equal(images[0], images[1])
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9 1.png"), "wb"):
        pass
    with pytest.raises(DataError, match=r"caf\\xe9 1\.png cannot be decoded: it is empty"):
        next(eval_batches(source, batch_size=2, image_size=8))


def test_a_file_is_removed_or_replaced_while_training(tmp_path):
    source = folder(tmp_path, 4)
    batches = train_batches(source, batch_size=4, image_size=8, seed=1, num_steps=1000)
    next(batches)
    (tmp_path / "02.png").unlink()
    with pytest.raises(DataError, match=r"02\.png cannot be decoded: it is not there any more"):
        list(batches)
    (tmp_path / "02.png").write_bytes(encoded(smooth(9), "PNG"))
    assert len(train(source, 1)) == 1  # another image under its name


def test_classes_without_images_and_broken_links_are_warned_of(tmp_path):
    for name in ("cat", "dog", "empty", "full of text"):
        (tmp_path / name).mkdir()
    for name in ("cat", "dog"):
        folder(tmp_path / name, 1)
    (tmp_path / "full of text" / "notes.txt").write_text("none")
    (tmp_path / "cat" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "dog" / "itself.png").symlink_to(tmp_path / "dog" / "itself.png")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    source = open_source(f"folder:{tmp_path}", "train")
    assert source.class_names == ("cat", "dog") and source.num_examples == 2
    classes, links = source.warnings
    assert classes == "No classes, as they hold no images: empty, full of text."
    assert "lost.png" in links and "itself.png" in links


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    folder(tmp_path, 1)

    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", denied)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
        open_source(f"folder:{tmp_path}", "train")


# Skipping.


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a.examples, b.examples)
        np.testing.assert_array_equal(a.positions, b.positions)


def test_skipping_changes_nothing_if_all_images_can_be_decoded(tmp_path):
    source = folder(tmp_path)
    errors = []
    assert_same(train(source, on_decode_error=lambda *e: errors.append(e)), train(source))
    assert not errors


def test_undecodable_images_are_replaced_and_reported_at_every_resume(tmp_path):
    without_errors = train(folder(tmp_path))
    source = folder(tmp_path, empty=[3, 7])
    errors = []
    complete = train(source, on_decode_error=lambda *e: errors.append(e))
    steps, names = zip(*errors, strict=True)
    assert set(names) == {f"{tmp_path}/03.png: it is empty", f"{tmp_path}/07.png: it is empty"}
    assert sorted(set(steps)) == list(dict.fromkeys(steps)) and len(errors) == 4  # in each epoch
    different = [
        (step, row)
        for step, (a, b) in enumerate(zip(without_errors, complete, strict=True), 1)
        for row in range(4)
        if not np.array_equal(a.examples[row], b.examples[row])
    ]
    assert sorted(step for step, _ in different) == sorted(steps)
    # At any step, and in other processes.
    later = []
    resumed = train(source, on_decode_error=lambda *e: later.append(e), start_step=2)
    assert_same(resumed, complete[2:])
    assert later == [(step, name) for step, name in errors if step > 2]
    rows = np.array([1, 3])
    part = train(source, on_decode_error=lambda *e: None, shard=ShardOptions(rows, 1, 2))
    for a, b in zip(part, complete, strict=True):
        np.testing.assert_array_equal(a.examples, b.examples[rows])


def test_evaluation_leaves_undecodable_images_out(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        folder(tmp_path / name, 4, empty=[1] if name == "cat" else [])
    (tmp_path / "dog" / "00.png").write_bytes(b"no image")
    source = open_source(f"folder:{tmp_path}", "train")
    errors = []

    def on_decode_error(index, message):
        errors.append((index, message.rpartition("/")[2][:7]))

    batches = list(
        eval_batches(source, batch_size=4, image_size=8, on_decode_error=on_decode_error)
    )
    assert [len(images) for images, _ in batches] == [3, 3]
    np.testing.assert_array_equal(
        np.concatenate([labels for _, labels in batches]), [0] * 3 + [1] * 3
    )
    assert errors == [(1, "01.png:"), (4, "00.png:")]


def test_the_search_for_a_replacement_is_limited(tmp_path):
    source = folder(tmp_path, empty=range(12))
    with pytest.raises(DataError, match=r"png cannot be decoded: it is empty, nor can 16 others"):
        train(source, on_decode_error=lambda *e: None)


# The log of what was replaced.


def test_the_log_resumes_with_the_run(tmp_path):
    path = tmp_path / "decode_errors.jsonl"
    images = DecodeErrorLog(tmp_path, 0)
    assert images.summary() == "All images could be decoded." and not path.exists()
    for step, image in [(1, "a: b"), (1, "a: b"), (1, "c: d"), (3, "a: b"), (5, "e: f")]:
        images(step, image)
    assert "replaced 4 times, 3 different ones (a: b; c: d; e: f)" in images.summary()
    with path.open("a") as file:
        file.write('{"step": 6, "im')
    resumed = DecodeErrorLog(tmp_path, 3)
    resumed(4, "g: h")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["image"]) for row in rows] == [
        (1, "a: b"),
        (1, "c: d"),
        (3, "a: b"),
        (4, "g: h"),
    ]
    assert "replaced 4 times, 3 different ones" in resumed.summary()
    assert str(path) in resumed.summary()


def test_the_summary_names_a_few(tmp_path):
    images = DecodeErrorLog(tmp_path, 0)
    for i in range(9):
        images(1, f"{i}.png: it is empty")
    assert images.summary().count(".png") == 5 and "; and 4 more)" in images.summary()


# Any bytes.


@pytest.fixture(scope="module")
def one_file(tmp_path_factory):
    """The path of the only file of a folder, and the folder as a source."""
    path = tmp_path_factory.mktemp("fuzz")
    (path / "x.png").write_bytes(encoded(smooth(), "PNG"))
    return path / "x.png", open_source(f"folder:{path}", "train")


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_bytes_give_an_image_or_a_reason(one_file, data):
    path, source = one_file
    seeds = [
        encoded(smooth(), "PNG"),
        rotated(6),
        encoded(smooth(), "GIF"),
        encoded(smooth(), "BMP"),
    ]
    content = bytearray(data.draw(st.sampled_from([b"", *seeds])))
    if not content:
        content += data.draw(st.binary(max_size=200))
    for at, value in data.draw(
        st.lists(st.tuples(st.integers(0, 999), st.integers(0, 255)), max_size=6)
    ):
        if at < len(content):
            content[at] = value
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    raw = tf.constant(0, tf.int64)
    reason = decode_error(source, raw)
    if reason is None:
        image, _ = source.decode(raw)
        assert image.dtype == tf.uint8 and image.shape.rank == 3 and image.shape[-1] == 3
    else:
        assert re.fullmatch("it is (empty|damaged or truncated|not a JPEG.*)", reason)
