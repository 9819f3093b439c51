"""The embedded dataset: reproducible, balanced, and hard for a linear classifier on pixels."""

import subprocess
import sys

import numpy as np
import pytest

from byol_jax.data.textures import CLASS_NAMES, SPLITS, draw, load
from byol_jax.errors import DataError


def test_draws_gray_images_with_balanced_labels():
    images, labels = draw(200, seed=3)
    assert images.shape == (200, 32, 32, 1) and images.dtype == np.uint8
    assert labels.shape == (200,) and labels.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(labels), [20] * len(CLASS_NAMES))


def test_the_seed_decides_the_images():
    images, _ = draw(40, seed=3)
    np.testing.assert_array_equal(images, draw(40, seed=3)[0])
    assert not np.array_equal(images, draw(40, seed=4)[0])


def test_fewer_images_than_classes():
    images, labels = draw(3, seed=0)
    assert images.shape == (3, 32, 32, 1)
    np.testing.assert_array_equal(labels, [0, 1, 2])


def test_splits_are_disjoint():
    train, test = load("train")[0], load("test")[0]
    assert [len(train), len(test)] == [SPLITS["train"][0], SPLITS["test"][0]] == [10_000, 2_000]
    assert len({image.tobytes() for image in np.concatenate([train, test])}) == 12_000


def test_unknown_split():
    with pytest.raises(DataError, match="no split 'val'; choose one of train, test"):
        load("val")


def test_classes_do_not_differ_in_brightness_or_contrast():
    images, labels = draw(4000, seed=0)
    values = images.reshape(4000, -1)
    by_class = np.array(
        [
            [values[labels == label].mean(), values[labels == label].std(1).mean()]
            for label in range(len(CLASS_NAMES))
        ]
    )
    brightness, contrast = np.ptp(by_class, axis=0)
    assert brightness < 8 and contrast < 3
    # The images of one class differ by far more than the classes do.
    assert values.mean(1).std() > 25 and values.std(1).std() > 10


def test_every_pattern_is_visible():
    images, _ = draw(1000, seed=1)
    values = images.reshape(1000, -1).astype(float)
    assert values.std(1).min() > 5
    assert ((values == 0) | (values == 255)).mean() < 0.05


@pytest.mark.parametrize(
    ("name", "along", "across"), [("horizontal stripes", 1, 0), ("vertical stripes", 0, 1)]
)
def test_stripes_run_as_named(name, along, across):
    images, labels = draw(500, seed=2)
    stripes = images[labels == CLASS_NAMES.index(name), :, :, 0].astype(float)
    change = [np.abs(np.diff(stripes, axis=axis + 1)).mean() for axis in range(2)]
    assert change[across] > 2 * change[along]


def test_drawing_needs_no_tensorflow():
    code = "import sys, byol_jax.data.textures; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
