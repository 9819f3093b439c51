"""Noise, erased blocks and masked patches: each against NumPy, and how often each happens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax.augment import corrupt
from byol_jax.augment.corrupt import Corruption

MEAN = (0.7, 0.6, 0.5)
COUNT = 2000


@pytest.fixture(scope="module", params=[1, 3])
def image(request):
    """(channels, 16, 20) in 0.1..0.4: unlike every fill."""
    return np.random.default_rng(0).uniform(0.1, 0.4, (request.param, 16, 20)).astype(np.float32)


@functools.cache
def drawer(config, channels):
    def draw(key, image):
        return corrupt.corrupt(config, key, image, MEAN[:channels])

    return jax.jit(jax.vmap(draw, (0, None)))


def draws(config, image, count=COUNT):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(drawer(config, len(image))(keys, image))


def changed(outs, image):
    """Bool (n, height, width): pixels that changed, in all channels or in none."""
    differs = outs != image
    assert np.all(differs.all(1) == differs.any(1))
    return differs[:, 0]


def check_share(count, share, total=COUNT):
    assert abs(count / total - share) < 4 * np.sqrt(share * (1 - share) / total)


def test_noise_is_gaussian_and_independent():
    image = np.full((3, 16, 16), 0.5, np.float32)
    outs = draws(Corruption(noise_prob=0.3, noise_std=0.1), image)
    noisy = (outs != image).any((1, 2, 3))
    check_share(noisy.sum(), 0.3)
    noise = (outs[noisy] - 0.5) / 0.1  # 460,000 numbers
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=0.01)
    quantiles = np.quantile(noise, [0.0228, 0.1587, 0.8413, 0.9772])
    np.testing.assert_allclose(quantiles, [-2, -1, 1, 2], atol=0.02)
    for axis in range(4):  # examples, channels, rows, columns
        first, second = np.delete(noise, 0, axis), np.delete(noise, -1, axis)
        assert abs((first * second).mean()) < 0.01


def test_noise_is_clipped_and_exact_otherwise(image):
    config = Corruption(noise_prob=1.0, noise_std=0.5)
    keys = jax.random.split(jax.random.key(0), 20)
    key = jax.random.fold_in(keys[7], corrupt.NOISE)
    want = np.clip(image + 0.5 * np.asarray(jax.random.normal(key, image.shape)), 0, 1)
    np.testing.assert_allclose(draws(config, image, 20)[7], want, atol=1e-6)
    assert want.min() == 0 and want.max() == 1


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (3, 5, 4, 9), (10, 0, 6, 20)])
def test_a_block_is_the_pixels_of_its_box(box):
    top, left, height, width = box
    want = np.zeros((16, 20), bool)
    want[top : top + height, left : left + width] = True
    np.testing.assert_array_equal(corrupt.block(jnp.float32(box), 16, 20), want)


def test_one_block_is_erased_with_its_probability_area_and_ratio(image):
    config = Corruption(
        erase_prob=0.4,
        erase_area_min=0.1,
        erase_area_max=0.2,
        erase_ratio_min=0.5,
        erase_ratio_max=2.0,
    )
    outs = draws(config, image)
    erased = changed(outs, image)
    happened = erased.any((1, 2))
    check_share(happened.sum(), 0.4)
    np.testing.assert_array_equal(
        outs.swapaxes(0, 1)[:, erased],
        np.broadcast_to(np.float32(MEAN[: len(image)])[:, None], (len(image), erased.sum())),
    )
    erased = erased[happened]
    heights, widths = erased.any(2).sum(1), erased.any(1).sum(1)
    tops, lefts = erased.any(2).argmax(1), erased.any(1).argmax(1)
    for mask, *box in zip(erased, tops, lefts, heights, widths, strict=True):
        np.testing.assert_array_equal(mask, corrupt.block(np.float32(box), 16, 20))  # a rectangle
    # Sides are rounded: by half a pixel of at least 4.
    areas, ratios = heights * widths / (16 * 20), widths / heights
    assert 0.08 < areas.min() < 0.105 and 0.19 < areas.max() < 0.23
    assert 0.4 < ratios.min() < 0.6 and 1.8 < ratios.max() < 2.4
    np.testing.assert_allclose([areas.mean(), np.log(ratios).mean()], [0.15, 0], atol=0.03)
    bottoms, rights = tops + heights, lefts + widths
    assert (tops.min(), lefts.min(), bottoms.max(), rights.max()) == (0, 0, 16, 20)


def test_a_block_larger_than_the_image_is_cut_off(image):
    config = Corruption(erase_prob=1.0, erase_area_min=1.0, erase_area_max=1.0)
    erased = changed(draws(config, image, 200), image)
    assert np.all(erased.any(1).all(1) | erased.any(2).all(1))  # all rows or all columns
    assert not erased.all((1, 2)).all()


@pytest.mark.parametrize(
    ("patch", "share", "grid", "masked"),
    [(4, 0.5, (4, 5), 10), (4, 0.6, (4, 5), 12), (5, 0.3, (4, 4), 5), (20, 1.0, (1, 1), 1)],
)
def test_the_share_of_masked_patches_is_exact(image, patch, share, grid, masked):
    assert corrupt.patch_grid(16, 20, patch) == grid
    assert corrupt.masked_patches(16, 20, patch, share) == masked
    config = Corruption(mask_share=share, mask_patch_size=patch)
    masks = changed(draws(config, image, 500), image)
    patches = masks[:, ::patch, ::patch]  # the upper left pixel of each
    assert patches.shape[1:] == grid
    np.testing.assert_array_equal(patches.sum((1, 2)), masked)
    whole = patches.repeat(patch, 1).repeat(patch, 2)[:, :16, :20]
    np.testing.assert_array_equal(masks, whole)
    spread = np.sqrt(share * (1 - share) / 500)
    np.testing.assert_allclose(patches.mean(0), masked / np.prod(grid), atol=4.5 * spread)


def test_ties_leave_the_share_exact():
    mask = corrupt.patch_mask(jnp.zeros(20), 16, 20, 4, 0.25)
    assert mask[::4, ::4].sum() == 5


@pytest.mark.parametrize("fill", ["mean", "zero", "noise"])
def test_fills(image, fill):
    config = Corruption(mask_share=0.5, erase_prob=1.0, fill=fill)
    outs = draws(config, image, 300)
    filled = outs.swapaxes(0, 1)[:, changed(outs, image)]
    if fill == "noise":
        quantiles = np.quantile(filled, [0.01, 0.25, 0.5, 0.75, 0.99])
        np.testing.assert_allclose(quantiles, [0.01, 0.25, 0.5, 0.75, 0.99], atol=0.02)
        assert filled.min() >= 0 and filled.max() <= 1
    else:
        want = np.float32(MEAN[: len(image)] if fill == "mean" else [0] * len(image))
        np.testing.assert_array_equal(filled, np.broadcast_to(want[:, None], filled.shape))


def test_noise_comes_before_fills(image):
    config = Corruption(noise_prob=1.0, mask_share=0.5, fill="zero")
    outs = draws(config, image, 20)
    assert np.all((outs == 0).mean((1, 2, 3)) >= 0.5)
    assert not np.any(outs == image)


def test_draws_of_one_operation_do_not_depend_on_another(image):
    masks = changed(draws(Corruption(mask_share=0.5), image, 50), image)
    both = changed(draws(Corruption(mask_share=0.5, erase_prob=1.0), image, 50), image)
    erased = changed(draws(Corruption(erase_prob=1.0), image, 50), image)
    np.testing.assert_array_equal(both, masks | erased)


def test_draws_depend_on_the_key_alone(image):
    config = Corruption(noise_prob=0.5, erase_prob=0.5, mask_share=0.3, fill="noise")
    outs = draws(config, image, 20)
    order = np.random.default_rng(0).permutation(20)
    keys = jax.random.split(jax.random.key(0), 20)[order]
    np.testing.assert_array_equal(drawer(config, len(image))(keys, image), outs[order])
