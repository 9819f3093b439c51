"""Crops on the device: from the same numbers the boxes of the host, and TensorFlow's pixels."""

import jax
import numpy as np
import pytest

from byol_jax.augment import crops
from byol_jax.augment.crops import ATTEMPTS, DRAWS
from byol_jax.data import Crop
from byol_jax.data import crop as host_crop
from byol_jax.data._tensorflow import tf


def tensorflows(image, box, size):
    """A box of an image, resized by TensorFlow itself."""
    top, left, height, width = box.astype(int)
    part = image[None, top : top + height, left : left + width]
    resized = tf.raw_ops.ResizeBicubic(images=part, size=[size, size], half_pixel_centers=True)[0]
    return tf.saturate_cast(tf.round(resized), tf.uint8).numpy()


@pytest.mark.parametrize(
    ("shape", "crop"),
    [
        ((32, 32), Crop()),
        ((40, 61), Crop(area=(0.3, 0.9), ratio=(0.4, 2.5))),
        ((9, 70), Crop(area=(0.9, 1.0))),  # hardly any draw fits: the fallback
    ],
)
def test_boxes_are_the_hosts(shape, crop):
    uniform = np.random.default_rng(0).random((500, DRAWS - 1), np.float32)
    got = jax.jit(crops.random_boxes, static_argnums=(1, 2))(uniform, shape, crop)
    want = host_crop.random_boxes(tf.constant(uniform), tf.constant([*shape, 3]), crop)
    np.testing.assert_array_equal(got, want)


def test_the_first_draw_that_fits_counts():
    """Plainly: area a, ratio r; height sqrt(a / r), width sqrt(a r); the first that fits."""
    uniform = np.random.default_rng(1).random((300, DRAWS - 1), np.float32)
    crop, height, width = Crop(area=(0.5, 1.0), ratio=(0.5, 2.0)), 20, 30
    got = np.asarray(crops.random_boxes(uniform, (height, width), crop))
    for row, box in zip(uniform.astype(float), got, strict=True):
        for attempt in range(ATTEMPTS):
            area = height * width * (0.5 + 0.5 * row[attempt])
            ratio = np.exp(np.log(0.5) + np.log(4) * row[ATTEMPTS + attempt])
            h, w = np.round(np.sqrt(area / ratio)), np.round(np.sqrt(area * ratio))
            if h <= height and w <= width:
                top = np.floor(row[-2] * (height - h + 1))
                left = np.floor(row[-1] * (width - w + 1))
                np.testing.assert_array_equal(box, [top, left, h, w])
                break


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (40, 56, 24), (17, 23, 40)])
def test_resizing_is_tensorflows(height, width, size):
    rng = np.random.default_rng(2)
    resize = jax.jit(crops.resized_crop, static_argnums=3)
    uniform = rng.random((60, DRAWS - 1), np.float32)
    differing = 0
    for box in np.asarray(crops.random_boxes(uniform, (height, width), Crop())):
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        want = tensorflows(image, box, size)
        got = np.asarray(resize(image, box, False, size))
        # Halves may round the other way, which hardly any pixel is near.
        assert np.abs(got.astype(int) - want).max() <= 1
        differing += np.sum(got != want)
        np.testing.assert_array_equal(resize(image, box, True, size), got[:, ::-1])
    assert differing < 1e-4 * 60 * size * size * 3


def test_a_whole_image_of_the_right_size_stays_as_it_is():
    image = np.random.default_rng(3).integers(0, 256, (16, 16, 1), np.uint8)
    box = np.asarray(crops.central_box((16, 16), 1.0))
    np.testing.assert_array_equal(crops.resized_crop(image, box, False, 16), image)


@pytest.mark.parametrize(("shape", "fraction"), [((32, 32), 1.0), ((31, 50), 0.875), ((8, 5), 0.1)])
def test_the_central_box_is_the_hosts(shape, fraction):
    image = np.random.default_rng(4).integers(0, 256, (*shape, 3), np.uint8)
    want = host_crop.center_crop(tf.constant(image), 12, fraction).numpy()
    got = crops.resized_crop(image, crops.central_box(shape, fraction), False, 12)
    assert np.abs(np.asarray(got).astype(int) - want).max() <= 1


def test_both_views_are_drawn_apart_and_mirrored_as_often_as_asked():
    image = np.arange(12 * 12, dtype=np.uint8).reshape(12, 12, 1)
    whole = Crop(area=(1, 1), ratio=(1, 1), flip=0.25)
    draw = jax.jit(jax.vmap(lambda key: crops.random_views(image, 12, whole, key)))
    pairs = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))
    flipped = (pairs == image[:, ::-1]).all((2, 3, 4))
    assert np.all(flipped | (pairs == image).all((2, 3, 4)))
    sampling_error = np.sqrt(0.25 * 0.75 / 2000)
    np.testing.assert_allclose(flipped.mean(0), 0.25, atol=4 * sampling_error)
    # Apart: both are mirrored as often as chance has it.
    np.testing.assert_allclose(flipped.all(1).mean(), 0.25**2, atol=4 * sampling_error)
