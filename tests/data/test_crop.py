"""Crops on the host: views of one image, and the pixels of TensorFlow's resizing."""

import numpy as np
import pytest
from batches import train

from byol_jax.augment.crops import central_box
from byol_jax.data import Crop, from_arrays
from byol_jax.data._tensorflow import tf
from byol_jax.data.crop import center_crop, random_views, to_bytes


def test_no_crop_is_drawn_twice():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 1), np.uint8)
    batches = train(from_arrays(np.stack([image] * 8)), 3)
    views = np.concatenate([batch.examples.reshape(16, -1) for batch in batches])
    assert len(np.unique(views, axis=0)) == 48


@pytest.mark.parametrize("fit", ["clip", "retry"])
def test_an_image_of_one_pixel_has_crops(fit):
    image, seed = tf.fill((1, 1, 3), tf.constant(9, tf.uint8)), tf.constant([0, 1], tf.int64)
    for view in random_views([image] * 2, 4, Crop(fit=fit), seed):
        np.testing.assert_array_equal(view, np.full((4, 4, 3), 9))


def test_half_of_the_views_are_flipped():
    images = np.zeros((256, 2, 8, 1), np.uint8)
    images[:, :, 4:] = 255
    (batch,) = train(from_arrays(images), 1, batch_size=256, crop=Crop((1.0, 1.0), (4.0, 4.0)))
    flipped = batch.examples[:, :, 0, 0, 0].T > 128
    assert 0.4 < flipped.mean() < 0.6
    assert abs(np.corrcoef(flipped[0], flipped[1])[0, 1]) < 0.2  # the two views independently


@pytest.mark.parametrize(("flip", "direction"), [(0.0, 1), (1.0, -1)])
def test_a_crop_of_everything_is_the_image(flip, direction):
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    crop = Crop((1.0, 1.0), (1.0, 1.0), flip)
    for view in random_views([tf.constant(image)] * 2, 9, crop, tf.constant([0, 0], tf.int64)):
        np.testing.assert_array_equal(view, image[:, ::direction])


def bicubic(image, size):
    """Keys' cubic convolution (a = -1/2), pixel centres at halves, edges renormalised."""

    def weights(length):
        at = (np.arange(size) + 0.5) * length / size - 0.5
        x = np.abs(at[:, None] - np.arange(length))
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        kernel = np.where(x <= 1, near, np.where(x < 2, far, 0))
        return kernel / kernel.sum(1, keepdims=True)

    rows, columns = weights(image.shape[0]), weights(image.shape[1])
    return np.einsum("ih,jw,hwc->ijc", rows, columns, image.astype(float))


@pytest.mark.parametrize("size", [7, 11, 24])
def test_resizing_is_bicubic_and_clipped(size):
    # Black and white only: cubic interpolation overshoots at every edge.
    image = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (14, 10, 3))
    expected = bicubic(image[2:12], size)
    assert expected.min() < -5 and expected.max() > 260
    view = center_crop(tf.constant(image), size, 1.0).numpy()
    assert view.dtype == np.uint8
    np.testing.assert_allclose(view, np.clip(expected, 0, 255), atol=1.0)


def test_a_large_image_is_resized_like_a_small_one(monkeypatch):
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8))
    small = center_crop(image, 8, 1.0)
    monkeypatch.setattr("byol_jax.data.crop.MAX_VALUES_AS_FLOATS", 0)
    np.testing.assert_array_equal(center_crop(image, 8, 1.0), small)


@pytest.mark.parametrize("shape", [(20, 12), (12, 21), (13, 20), (9, 9), (1, 3)])
def test_center_crop_takes_the_central_box(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    top, left, side, _ = central_box(np.float32(shape), 0.5, xp=np).astype(int)
    view = center_crop(tf.constant(image), int(side), 0.5)  # of its own size: not resized
    np.testing.assert_array_equal(view, image[top : top + side, left : left + side])


def test_pixels_are_rounded_half_to_even_and_clipped():
    values = np.concatenate([np.arange(-20, 300, 0.25), [0.49999997, 254.50002, -1e9, 1e9]])
    values = values.astype(np.float32)
    np.testing.assert_array_equal(to_bytes(tf.constant(values)), np.clip(np.rint(values), 0, 255))
