"""Flips, turns, rotation, pad-and-crop: each against NumPy, and how often each happens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax.augment import crops, geometry
from byol_jax.augment.geometry import Geometry


@pytest.fixture(scope="module", params=[1, 3])
def image(request):
    """(channels, 8, 8) without any symmetry."""
    return np.random.default_rng(0).random((request.param, 8, 8)).astype(np.float32)


@functools.cache
def drawer(config):
    draw = jax.vmap(functools.partial(geometry.change_geometry, config), (0, None))
    return jax.jit(draw)


def draws(config, image, count=2000):
    return np.asarray(drawer(config)(jax.random.split(jax.random.key(0), count), image))


def counts(outs, wants):
    """How many of `outs` equal each of `wants`; every one of them equals one."""
    equal = np.array([(outs == want).all((1, 2, 3)) for want in wants])
    assert np.all(equal.sum(0) == 1)
    return equal.sum(1)


def check_share(count, share, total=2000):
    assert abs(count / total - share) < 4 * np.sqrt(share * (1 - share) / total)


def test_a_vertical_flip_reverses_the_rows(image):
    outs = draws(Geometry(vertical_flip_prob=0.3), image)
    flipped, _ = counts(outs, [image[:, ::-1], image])
    check_share(flipped, 0.3)


@pytest.mark.parametrize("turns", range(4))
def test_quarter_turns_are_counter_clockwise(image, turns):
    want = np.rot90(image, turns, axes=(1, 2))
    np.testing.assert_array_equal(geometry.quarter_turns(image, jnp.int32(turns)), want)


def test_all_turns_are_equally_likely(image):
    wants = [np.rot90(image, turns, axes=(1, 2)) for turns in range(4)]
    stays, *turned = counts(draws(Geometry(quarter_turn_prob=0.6), image), wants)
    check_share(stays, 0.4)
    for count in turned:
        check_share(count, 0.2)


def test_only_squares_are_turned():
    with pytest.raises(ValueError, match=r"quarter turns are for square images, not \(4, 5\)"):
        geometry.quarter_turns(jnp.zeros((1, 4, 5)), jnp.int32(0))


def rotated(image, degrees):
    """Pixel by pixel, in float64: bilinear, zeros beyond the edge."""
    _, height, width = image.shape
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    out = np.zeros(image.shape)
    for row, column in np.ndindex(height, width):
        y, x = row - (height - 1) / 2, column - (width - 1) / 2
        from_y = sin * x + cos * y + (height - 1) / 2
        from_x = cos * x - sin * y + (width - 1) / 2
        for i, j in np.ndindex(height, width):
            weight = max(0, 1 - abs(from_y - i)) * max(0, 1 - abs(from_x - j))
            out[:, row, column] += weight * image[:, i, j]
    return out


@pytest.mark.parametrize("degrees", [-170.0, -31.5, 0.0, 7.0, 45.0, 90.0, 123.4])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 7, 10)])
def test_rotation_is_bilinear_with_zeros_outside(degrees, shape):
    image = np.random.default_rng(1).random(shape).astype(np.float32)
    got = geometry.rotate(image, jnp.float32(degrees))
    np.testing.assert_allclose(got, rotated(image, degrees), atol=2e-6)


def test_rotation_by_quarters_is_exact_up_to_rounding(image):
    got = geometry.rotate(image, jnp.float32(90))
    np.testing.assert_allclose(got, np.rot90(image, axes=(1, 2)), atol=2e-6)
    np.testing.assert_array_equal(geometry.rotate(image, jnp.float32(0)), image)


def test_angles_are_uniform_in_their_range():
    # The pixel to the right of the centre moves on a circle: its height gives the sine of small
    # angles, which bilinear interpolation keeps as a centre of mass.
    image = np.zeros((1, 41, 41), np.float32)
    image[0, 20, 40] = 1
    outs = draws(Geometry(rotation_prob=0.5, rotation_degrees=20.0), image)
    still = (outs == image).all((1, 2, 3))
    check_share(still.sum(), 0.5)
    heights = (outs[~still, 0] * (20 - np.arange(41)[:, None])).sum((1, 2))
    angles = np.rad2deg(np.arcsin(heights / outs[~still, 0].sum((1, 2)) / 20))
    assert -20.5 < angles.min() < -19 and 19 < angles.max() < 20.5
    np.testing.assert_allclose(np.quantile(angles, [0.25, 0.5, 0.75]), [-10, 0, 10], atol=2)


@pytest.mark.parametrize(("mode", "in_numpy"), [("zero", "constant"), ("reflect", "reflect")])
def test_pad_and_crop_takes_every_box_of_the_padded_image(image, mode, in_numpy):
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), in_numpy)
    boxes = [padded[:, y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
    found = counts(draws(Geometry(pad=2, pad_mode=mode), image), boxes)
    assert np.sum((found - 80) ** 2 / 80) < 54  # chi-squared, 24 degrees: p = 4e-4


def test_they_come_in_the_order_flip_turn_rotate_crop(image):
    config = Geometry(
        vertical_flip_prob=1.0,
        quarter_turn_prob=1.0,
        rotation_prob=1.0,
        rotation_degrees=0.0,
        pad=1,
    )
    outs = draws(config, image, 300)
    turned = [np.rot90(image[:, ::-1], turns, axes=(1, 2)) for turns in (1, 2, 3)]
    padded = [np.pad(turn, ((0, 0), (1, 1), (1, 1))) for turn in turned]
    wants = [p[:, y : y + 8, x : x + 8] for p in padded for y in range(3) for x in range(3)]
    assert np.all(counts(outs, wants) > 0)


def test_draws_depend_on_the_key_alone(image):
    config = Geometry(quarter_turn_prob=1.0, rotation_prob=1.0, pad=2)
    outs = draws(config, image, 20)
    order = np.random.default_rng(0).permutation(20)
    keys = jax.random.split(jax.random.key(0), 20)[order]
    np.testing.assert_array_equal(drawer(config)(keys, image), outs[order])


def test_without_random_resized_crops_a_square_image_stays_whole():
    """What pad-and-crop on its own needs: config.crop with areas and ratios of 1."""
    whole = crops.Crop(area=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    for size in (28, 32, 96, 224, 225):
        uniform = jax.random.uniform(jax.random.key(size), (200, whole.draws - 1))
        for xp, numbers in ((jnp, uniform), (np, np.asarray(uniform))):
            boxes = crops.random_boxes(numbers, xp.array([size, size], xp.float32), whole, xp)
            np.testing.assert_array_equal(boxes, [[0, 0, size, size]] * 200)
