"""TIFF, PNM and values of more than 8 bits: each pixel; and images of any number of channels."""

import io
import sys

import numpy as np
import pytest
from batches import same, train
from PIL import Image

from byol_jax.data import eval_batches, open_source
from byol_jax.data._tensorflow import tf
from byol_jax.data.decode import error_reason
from byol_jax.data.more_formats import decode, to_uint8
from byol_jax.errors import ConfigError, DataError, UserError

RNG = np.random.default_rng(0)
SHAPE = (9, 7)
GRAY, COLOR = RNG.integers(0, 256, SHAPE, np.uint8), RNG.integers(0, 256, (*SHAPE, 3), np.uint8)
GRAY16 = RNG.integers(0, 2**16, SHAPE, np.uint16)
COLOR16 = RNG.integers(0, 2**16, (*SHAPE, 3), np.uint16)
MANY16 = RNG.integers(0, 2**16, (*SHAPE, 5), np.uint16)
RANGE = (100, 4095)


def encoded(image, kind="TIFF", **kwargs):
    """The bytes of a file that Pillow writes."""
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind, **kwargs)
    return file.getvalue()


def tiff(array, **kwargs):
    """The bytes of a TIFF that tifffile writes."""
    file = io.BytesIO()
    tifffile = pytest.importorskip("tifffile", reason="needs requirements.txt")
    tifffile.imwrite(file, array, **kwargs)
    return file.getvalue()


def many(array, **kwargs):
    return tiff(array, photometric="minisblack", planarconfig="contig", **kwargs)


def ranged(values, low=RANGE[0], high=RANGE[1]):
    """The rule for a range, as a formula."""
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def like_pillow(data, channels):
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)


def check(data, channels, want, value_range=None):
    got = decode(tf.constant(data), channels, value_range)
    assert got.dtype == tf.uint8
    np.testing.assert_array_equal(got, want)


def reason(data, channels, value_range=None):
    with pytest.raises(tf.errors.OpError) as error:
        decode(tf.constant(data), channels, value_range)
    text = error_reason(error.value)
    assert "\n" not in text
    return text


def test_files_of_8_bits_are_those_of_pillow():
    picture = Image.fromarray(COLOR)
    for image in (picture, picture.quantize(16), *map(picture.convert, ("1", "L", "CMYK", "LA"))):
        for compression in (None, "tiff_lzw", "tiff_adobe_deflate"):
            data = encoded(image, compression=compression)
            for channels in (1, 3):
                check(data, channels, like_pillow(data, channels))
    for data in (encoded(picture, "PPM"), b"P3 1 2 255 1 2 3 4 5 6", b"P1 2 1 1 0"):
        check(data, 3, like_pillow(data, 3))
    check(encoded(COLOR), 3, COLOR)
    check(encoded(COLOR, "PPM"), 3, COLOR)
    check(encoded(GRAY, "PPM"), 1, GRAY[..., None])
    check(encoded(picture, tiffinfo={274: 6}), 3, np.rot90(COLOR, -1))
    transparent = np.dstack([COLOR, GRAY])
    check(encoded(transparent), 3, COLOR)


def test_16_bits_keep_the_upper_8_in_every_format():
    upper = GRAY16[..., None] >> 8
    pgm = b"P5 7 9 65535\n" + GRAY16.astype(">u2").tobytes()
    for data in (encoded(GRAY16), encoded(GRAY16, "PNG"), pgm):
        check(data, 1, upper)
        check(data, 3, upper.repeat(3, 2))
        check(data, 1, ranged(GRAY16[..., None]), RANGE)
    png = tf.io.encode_png(COLOR16).numpy()
    check(png, 3, COLOR16 >> 8)
    check(png, 3, ranged(COLOR16), RANGE)


def test_a_range_leaves_8_bits_as_they_are():
    check(encoded(COLOR, "PNG"), 3, COLOR, RANGE)
    check(encoded(COLOR), 3, COLOR, RANGE)


def test_numbers_of_other_types():
    for dtype in (np.int16, np.uint16, np.int32, np.uint32):
        info = np.iinfo(dtype)
        values = np.array([info.min, info.max, info.min // 2 + info.max // 2, 7], dtype)
        steps = (info.max - info.min + 1) // 256
        want = [(int(v) - info.min) // steps for v in values]
        np.testing.assert_array_equal(to_uint8(values), want)
        np.testing.assert_array_equal(to_uint8(values, (0, 100)), ranged(values, 0, 100))
    big = np.array([1, 515], ">u2")
    np.testing.assert_array_equal(to_uint8(big), [0, 2])
    floats = np.array([-9, 0, 0.5, 1, np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(to_uint8(floats, (0, 1)), [0, 0, 128, 255, 255, 0])
    check(encoded(floats[None]), 1, to_uint8(floats, (0, 1))[None, :, None], (0, 1))
    assert "float32, which have no range of their own: set" in reason(encoded(floats[None]), 3)
    signed = Image.fromarray(np.array([[-(2**31), 2**31 - 1]], np.int32))
    check(encoded(signed), 1, np.array([[[0], [255]]]))


def test_several_channels_by_tifffile():
    planes = np.moveaxis(MANY16, -1, 0)
    files = [many(MANY16), many(MANY16, compression="zlib"), many(MANY16, byteorder=">")]
    files += [tiff(planes, photometric="minisblack", planarconfig="separate")]
    files += [tiff(planes, imagej=True, metadata={"axes": "CYX"})]
    files += [tiff(planes, ome=True, photometric="minisblack", metadata={"axes": "CYX"})]
    files += [tiff(planes, photometric="minisblack", metadata=None)]  # pages without a meaning
    for data in files:
        check(data, 5, MANY16 >> 8)
    check(many(MANY16), 5, ranged(MANY16), RANGE)
    check(many(COLOR[..., :2]), 2, COLOR[..., :2])
    check(many(MANY16[:1, :1]), 5, MANY16[:1, :1] >> 8)
    assert reason(many(MANY16), 4) == "it has 5 channels, and config.data.channels=4"
    assert reason(many(MANY16), 3) == "it has 5 channels, and config.data.channels=3"
    assert "it is damaged" in reason(many(MANY16)[:300], 5)
    assert "it is damaged" in reason(b"II*\0abc", 5)
    assert reason(encoded(COLOR, "PNG"), 5) == "only TIFF files have config.data.channels=5"


def test_colours_of_16_bits_by_tifffile():
    data = tiff(COLOR16, photometric="rgb")
    check(data, 3, COLOR16 >> 8)
    check(
        data,
        1,
        np.asarray(Image.fromarray((COLOR16 >> 8).astype(np.uint8)).convert("L"))[..., None],
    )
    check(data, 3, ranged(COLOR16), RANGE)
    both = np.dstack([COLOR16, GRAY16])
    for extra in ("unassalpha", "unspecified"):
        check(tiff(both, photometric="rgb", extrasamples=[extra]), 3, COLOR16 >> 8)
        check(tiff(both, photometric="rgb", extrasamples=[extra]), 4, both >> 8)
    planes = np.moveaxis(COLOR16, -1, 0)
    stack = {axes: tiff(planes, imagej=True, metadata={"axes": axes}) for axes in ("CYX", "ZYX")}
    check(stack["CYX"], 3, COLOR16 >> 8)
    check(stack["ZYX"], 3, (COLOR16[..., :1] >> 8).repeat(3, 2))  # slices are no channels


def test_without_tifffile_one_line_says_what_to_install(monkeypatch, tmp_path):
    (tmp_path / "a.tif").write_bytes(encoded(GRAY))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(
        UserError, match=r"need one more package .*: pip install 'byol_jax\[tiff\]'"
    ):
        open_source(f"folder:{tmp_path}", "train", channels=5)


@pytest.fixture
def mixed(tmp_path):
    """A folder of several formats."""
    for i in range(6):
        (tmp_path / f"{i}.tif").write_bytes(encoded(GRAY16 + np.uint16(i)))
        (tmp_path / f"{i}.png").write_bytes(encoded(np.uint8(GRAY + i), "PNG"))
    return tmp_path


def test_batches_are_a_function_of_the_step(mixed):
    source = open_source(f"folder:{mixed}", "train", channels=1)
    whole = train(source, 4, batch_size=4)
    assert same(whole[2:], train(source, 4, batch_size=4, start_step=2))
    ((images, _),) = eval_batches(source, batch_size=12, image_size=7, crop_fraction=1.0)
    np.testing.assert_array_equal(images[1], (GRAY16 >> 8)[1:8, :, None])  # 0.png, then 0.tif


def test_a_damaged_tiff_is_named_or_replaced(mixed):
    (mixed / "3.tif").write_bytes((mixed / "3.tif").read_bytes()[:80])
    (mixed / "4.tif").write_bytes(b"no image")
    source = open_source(f"folder:{mixed}", "train", channels=1)
    with pytest.raises(DataError, match=r"[34]\.tif cannot be decoded: it is") as error:
        train(source, 3, batch_size=4)
    assert "\n" not in str(error.value)
    messages = []
    train(source, 3, batch_size=4, on_decode_error=lambda step, text: messages.append(text))
    assert len(messages) == 2 and any("3.tif: it is damaged" in text for text in messages)


def test_a_service_cannot_decode_them(mixed):
    source = open_source(f"folder:{mixed}", "train")
    with pytest.raises(ConfigError, match=r"which a tf\.data service cannot run: leave"):
        train(source, 1, service="grpc://localhost:1")
