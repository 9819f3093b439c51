"""Images with masks: pairs, modes of PNG, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from byol_jax.data.masks import open_masked
from byol_jax.errors import DataError


@pytest.fixture
def folders(tmp_path):
    for i, suffix in enumerate(("png", "jpg")):
        for kind in ("images", "masks"):
            (tmp_path / kind / "train").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), (50 * i, 0, 0)).save(tmp_path / f"images/train/{i}.{suffix}")
        mask = np.zeros((5, 7), np.uint8)
        mask[1, 2], mask[0, 0] = 3 + i, 255
        Image.fromarray(mask).save(tmp_path / f"masks/train/{i}.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "images/train/alone.png")
    return tmp_path


def masked(folders, split="train", **options):
    options = {"size": 8, "channels": 3} | options
    return open_masked(str(folders / "images"), str(folders / "masks"), split, **options)


def test_images_with_their_masks(folders):
    images, masks = masked(folders)
    assert images.shape == (2, 8, 8, 3) and images.dtype == np.uint8
    assert images[0].max() == 0 and images[1, ..., 0].min() > 40
    assert [mask.shape for mask in masks] == [(5, 7), (5, 7)]
    assert (masks[0][1, 2], masks[1][1, 2], masks[0][0, 0], masks[0][2, 2]) == (3, 4, -1, 0)
    assert masked(folders, channels=1).images.shape == (2, 8, 8, 1)


def test_other_numbers_may_stand_for_no_class(folders):
    assert (masked(folders, unlabelled=(0, 255)).masks[0] >= 0).sum() == 1


def test_a_palette_is_read_as_numbers(folders):
    image = Image.open(folders / "masks/train/0.png").convert("P")
    image.putdata([2] * 35)
    image.save(folders / "masks/train/0.png")
    assert (masked(folders).masks[0] == 2).all()


def test_what_cannot_be_used_is_one_line(folders):
    with pytest.raises(DataError, match="put the split 'test' there"):
        masked(folders, split="test")
    Image.new("RGB", (7, 5)).save(folders / "masks/train/0.png")
    with pytest.raises(DataError, match=r"0.png is no mask: it has the channels RGB"):
        masked(folders)
    (folders / "masks/train/0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0.png cannot be read"):
        masked(folders)
    for path in (folders / "masks/train").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"no image of .* has a mask of its name"):
        masked(folders)
