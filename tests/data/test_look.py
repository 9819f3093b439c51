"""What a sample of images shows, against NumPy."""

import numpy as np
import pytest
from PIL import Image

from byol_jax import data
from byol_jax.data import look as look_lib
from byol_jax.data import open_source
from byol_jax.errors import DataError


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(20, 30), (40, 24), (50, 50), (22, 60)]):
        gray = rng.integers(0, 256, (height, width), dtype=np.uint8)
        Image.fromarray(gray).save(tmp_path / f"{i}.png")
    return tmp_path


def test_sizes_and_moments(folder):
    Image.fromarray(np.full((10, 10, 3), (255, 0, 51), np.uint8)).save(folder / "colour.png")
    (folder / "damaged.png").write_bytes(b"damaged")
    seen = look_lib.look(open_source(f"folder:{folder}", "train"))
    assert (seen.num_examples, seen.sampled, seen.unreadable) == (6, 5, 1)
    assert (seen.side, seen.smallest, seen.largest) == (22, 10, 60)
    assert not seen.is_gray
    images = [np.asarray(Image.open(path).convert("RGB")) / 255 for path in folder.glob("[0-9c]*")]
    means = np.array([image.mean((0, 1)) for image in images])
    squares = np.array([(image**2).mean((0, 1)) for image in images])
    np.testing.assert_allclose(seen.mean, means.mean(0), atol=6e-4)
    std = np.sqrt(squares.mean(0) - means.mean(0) ** 2)
    np.testing.assert_allclose(seen.std, std, atol=6e-4)


def test_gray_files_are_gray_and_arrays_are_what_they_are(folder):
    assert look_lib.look(open_source(f"folder:{folder}", "train")).is_gray
    assert not look_lib.look(data.from_arrays(np.zeros((5, 8, 8, 3), np.uint8))).is_gray


def test_both_images_of_a_pair_are_seen(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in list(folder.glob("*.png")):
        image = Image.open(path)
        image.save(tmp_path / "other" / path.name)
        Image.new("RGB", image.size, (255, 0, 0)).save(other / path.name)
    first = tmp_path / "first"
    first.mkdir()
    for path in folder.glob("*.png"):
        path.rename(first / path.name)
    seen = look_lib.look(open_source(f"pairs:{first},{other}", "train"))
    assert not seen.is_gray and seen.num_examples == 4
    assert seen.mean[0] - seen.mean[1] == pytest.approx(0.5, abs=1e-3)


def test_any_number_of_channels():
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 5), dtype=np.uint8)
    seen = look_lib.look(data.from_arrays(images))
    pixels = images.reshape(-1, 5) / 255
    np.testing.assert_allclose(seen.mean, pixels.mean(0), atol=6e-4)
    np.testing.assert_allclose(seen.std, pixels.std(0), atol=6e-4)


def test_large_images_are_measured_on_a_part_of_their_pixels(monkeypatch):
    monkeypatch.setattr(look_lib, "PIXELS", 4)
    monkeypatch.setattr(look_lib, "SAMPLE", 3)
    images = np.zeros((9, 8, 10, 1), np.uint8)
    images[:, ::2, ::3] = 255  # every pixel that is taken
    seen = look_lib.look(data.from_arrays(images))
    assert (seen.num_examples, seen.sampled, seen.mean, seen.std) == (9, 3, (1.0,), (0.001,))


def test_without_a_readable_image_it_is_one_line(tmp_path):
    (tmp_path / "a.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match="none of 1 images can be decoded"):
        look_lib.look(open_source(f"folder:{tmp_path}", "train"))
