"""Boxes against plain formulas, in JAX, TensorFlow and NumPy; resizing against TensorFlow."""

import itertools

import jax
import numpy as np
import pytest

from byol_jax.augment import crops
from byol_jax.augment.crops import Crop
from byol_jax.data._tensorflow import tf


def uniform_numbers(n, crop, seed=0):
    return np.random.default_rng(seed).random((n, crop.draws - 1), np.float32)


def boxes(n, height, width, crop, seed=0):
    """Top, left, height and width of n boxes, all of them inside the image."""
    uniform, shape = uniform_numbers(n, crop, seed), np.float32([height, width])
    top, left, h, w = crops.random_boxes(uniform, shape, crop, xp=np).T
    assert (top >= 0).all() and (left >= 0).all() and (h >= 1).all() and (w >= 1).all()
    assert (top + h <= height).all() and (left + w <= width).all()
    return top, left, h, w


@pytest.mark.parametrize("fit", ["clip", "retry"])
@pytest.mark.parametrize(
    ("shape", "crop"),
    [
        ((32, 32), Crop()),
        ((375, 500), Crop()),
        ((40, 61), Crop(area=(0.3, 0.9), ratio=(0.4, 2.5))),
        ((9, 70), Crop(area=(0.9, 1.0))),  # hardly any box fits
    ],
)
def test_all_modules_draw_equal_boxes(shape, crop, fit):
    crop, shape = crop._replace(fit=fit), np.float32(shape)
    uniform = uniform_numbers(500, crop)
    want = crops.random_boxes(uniform, shape, crop, xp=np)
    jax_boxes = jax.jit(crops.random_boxes, static_argnums=2)(uniform, shape, crop)
    tf_boxes = tf.function(lambda u: crops.random_boxes(u, tf.constant(shape), crop, xp=tf))
    np.testing.assert_array_equal(jax_boxes, want)
    np.testing.assert_array_equal(tf_boxes(tf.constant(uniform)), want)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (20, 30), (9, 70), (1, 1)])
def test_clip_draws_once_and_cuts_the_box_off_at_the_image(height, width):
    """Plainly, as the authors: area a, ratio r; height sqrt(a / r), width sqrt(a r); clipped."""
    crop = Crop(area=(0.5, 1.0), ratio=(0.5, 2.0), fit="clip")
    uniform = uniform_numbers(300, crop, seed=1)
    assert uniform.shape == (300, 4)
    shape = np.float32([height, width])
    got = crops.random_boxes(uniform, shape, crop, xp=np)
    clipped = 0
    for (u_area, u_ratio, u_top, u_left), box in zip(uniform.astype(float), got, strict=True):
        area = height * width * (0.5 + 0.5 * u_area)
        ratio = np.exp(np.log(0.5) + np.log(4) * u_ratio)
        h, w = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
        clipped += h > height or w > width
        h, w = min(max(h, 1), height), min(max(w, 1), width)
        top, left = int(u_top * (height - h + 1)), int(u_left * (width - w + 1))
        np.testing.assert_array_equal(box, [top, left, h, w])
    assert clipped > 30 or height == 1


def test_retry_takes_the_first_draw_that_fits():
    crop, height, width = Crop(area=(0.5, 1.0), ratio=(0.5, 2.0), fit="retry"), 20, 30
    uniform = uniform_numbers(300, crop, seed=1)
    got = crops.random_boxes(uniform, np.float32([height, width]), crop, xp=np)
    for row, box in zip(uniform.astype(float), got, strict=True):
        for attempt in range(10):
            area = height * width * (0.5 + 0.5 * row[attempt])
            ratio = np.exp(np.log(0.5) + np.log(4) * row[10 + attempt])
            h, w = np.round(np.sqrt(area / ratio)), np.round(np.sqrt(area * ratio))
            if h <= height and w <= width:
                top = np.floor(row[-2] * (height - h + 1))
                left = np.floor(row[-1] * (width - w + 1))
                np.testing.assert_array_equal(box, [top, left, h, w])
                break


def test_retry_falls_back_to_the_largest_central_box():
    wide = Crop(area=(1.0, 1.0), ratio=(0.5, 0.5), fit="retry")
    assert {*zip(*boxes(5, 40, 100, wide), strict=True)} == {(0, 40, 40, 20)}
    assert {*zip(*boxes(5, 100, 10, wide), strict=True)} == {(40, 0, 20, 10)}


@pytest.mark.parametrize(("fit", "mean_area"), [("clip", 0.518), ("retry", 0.433)])
def test_mean_area_on_a_photograph(fit, mean_area):
    """On 500 x 375 pixels; .518 is that of the authors' code, .433 that of torchvision."""
    _, _, h, w = boxes(200_000, 375, 500, Crop(fit=fit))
    assert np.mean(h * w) / (375 * 500) == pytest.approx(mean_area, abs=0.002)


def plain_boxes(n, height, width, crop, seed=0):
    """Heights and widths by the definition, one draw at a time."""
    rng = np.random.default_rng(seed)
    result = []
    while len(result) < n:
        area = rng.uniform(*crop.area) * height * width
        ratio = np.exp(rng.uniform(*np.log(crop.ratio)))
        h, w = np.round(np.sqrt(area / ratio)), np.round(np.sqrt(area * ratio))
        if crop.fit == "clip":
            h, w = min(h, height), min(w, width)
        if h <= height and w <= width:
            result.append((h, w))
    return np.array(result).T


@pytest.mark.parametrize("fit", ["clip", "retry"])
@pytest.mark.parametrize(("height", "width"), [(300, 300), (240, 400)])
def test_boxes_have_the_distribution_of_the_definition(height, width, fit):
    n, crop = 20_000, Crop(fit=fit)
    top, left, h, w = boxes(n, height, width, crop)
    expected_h, expected_w = plain_boxes(n, height, width, crop)
    area, expected_area = h * w / (height * width), expected_h * expected_w / (height * width)
    assert crop.area[0] * 0.98 < area.min() and area.max() <= 1
    for got, expected in [
        (area, expected_area),
        (np.log(w / h), np.log(expected_w / expected_h)),
    ]:
        # Standard errors of the quantiles are about .003, in units of the range.
        quantiles = np.linspace(0.05, 0.95, 10)
        difference = np.quantile(got, quantiles) - np.quantile(expected, quantiles)
        assert np.abs(difference).max() < 0.02 * np.ptp(expected)
    # Where there is room, the position is uniform.
    for start, room in [(top, height - h), (left, width - w)]:
        position = (start[room > 20] + 0.5) / (room[room > 20] + 1)
        quantiles = [0.1, 0.5, 0.9]
        np.testing.assert_allclose(np.quantile(position, quantiles), quantiles, atol=0.02)


@pytest.mark.parametrize("fit", ["clip", "retry"])
def test_boxes_that_always_fit_have_uniform_area_and_log_ratio(fit):
    _, _, h, w = boxes(20_000, 1000, 1000, Crop(area=(0.1, 0.3), ratio=(0.5, 2.0), fit=fit))
    area, log_ratio = h * w / 1e6, np.log2(w / h)
    quantiles = np.linspace(0, 1, 11)
    np.testing.assert_allclose(np.quantile(area, quantiles), 0.1 + 0.2 * quantiles, atol=0.004)
    np.testing.assert_allclose(np.quantile(log_ratio, quantiles), 2 * quantiles - 1, atol=0.04)
    assert abs(np.corrcoef(area, log_ratio)[0, 1]) < 0.03


def test_the_central_box_is_the_authors():
    """`int(fraction * min(H, W))`, and a corner of `(H - side + 1) // 2`, for all small shapes."""
    for (height, width), fraction in itertools.product(
        itertools.product(range(1, 41), repeat=2), (0.875, 0.5, 1.0, 0.1)
    ):
        side = max(int(np.float32(fraction) * min(height, width)), 1)
        want = [(height - side + 1) // 2, (width - side + 1) // 2, side, side]
        got = crops.central_box(np.float32([height, width]), fraction, xp=np)
        assert got.tolist() == want, (height, width, fraction)


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (32, 32), (9, 8), (1, 3)])
def test_all_modules_have_equal_central_boxes(shape):
    shape = np.float32(shape)
    for fraction in (0.875, 0.29, 1.0):
        want = crops.central_box(shape, fraction, xp=np)
        np.testing.assert_array_equal(crops.central_box(shape, fraction), want)
        np.testing.assert_array_equal(crops.central_box(tf.constant(shape), fraction, xp=tf), want)


def tensorflow_crop(image, box, size):
    """A box of an image, resized by TensorFlow."""
    top, left, height, width = box.astype(int)
    part = image[None, top : top + height, left : left + width]
    resized = tf.raw_ops.ResizeBicubic(images=part, size=[size, size], half_pixel_centers=True)[0]
    return tf.saturate_cast(tf.round(resized), tf.uint8).numpy()


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (40, 56, 24), (17, 23, 40)])
def test_resizing_equals_tensorflow(height, width, size):
    rng = np.random.default_rng(2)
    resize = jax.jit(crops.resized_crop, static_argnums=3)
    differing = 0
    for box in np.stack(boxes(60, height, width, Crop(fit="retry"), seed=2), 1):
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        want = tensorflow_crop(image, box, size)
        got = np.asarray(resize(image, box, False, size))
        # Values at a half may round the other way; hardly any pixel is near one.
        assert np.abs(got.astype(int) - want).max() <= 1
        differing += np.sum(got != want)
        np.testing.assert_array_equal(resize(image, box, True, size), got[:, ::-1])
    assert differing < 1e-4 * 60 * size * size * 3


def test_a_complete_image_of_the_right_size_does_not_change():
    image = np.random.default_rng(3).integers(0, 256, (16, 16, 1), np.uint8)
    box = crops.central_box(np.float32([16, 16]), 1.0)
    np.testing.assert_array_equal(crops.resized_crop(image, box, False, 16), image)


def test_both_views_are_drawn_independently_and_flipped_as_often_as_asked():
    image = np.arange(12 * 12, dtype=np.uint8).reshape(12, 12, 1)
    complete = Crop(area=(1, 1), ratio=(1, 1), flip=0.25)
    draw = jax.jit(jax.vmap(lambda key: crops.random_views(image, 12, complete, key)))
    pairs = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))
    flipped = (pairs == image[:, ::-1]).all((2, 3, 4))
    assert np.all(flipped | (pairs == image).all((2, 3, 4)))
    sampling_error = np.sqrt(0.25 * 0.75 / 2000)
    np.testing.assert_allclose(flipped.mean(0), 0.25, atol=4 * sampling_error)
    # Independent: both are flipped with the product of the probabilities.
    np.testing.assert_allclose(flipped.all(1).mean(), 0.25**2, atol=4 * sampling_error)
