"""Each photometric operation against a plain reference, and the complete policy."""

import colorsys
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax.augment import corrupt, geometry
from byol_jax.augment import image as image_augment


@pytest.fixture(scope="module")
def image():
    """(3, 9, 11) in 0..1 with grays, black, white and ties among its pixels."""
    rng = np.random.default_rng(0)
    image = rng.random((3, 9, 11)).astype(np.float32)
    image[:, 0, 0], image[:, 0, 1], image[:, 0, 2] = 0, 1, 0.5
    image[:, 0, 3] = (0.7, 0.7, 0.2)
    image[:, 0, 4] = (0.2, 0.7, 0.7)
    return image


def in_hsv(image, change):
    out = np.empty_like(image)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            h, s, v = colorsys.rgb_to_hsv(*(float(c) for c in image[:, y, x]))
            out[:, y, x] = colorsys.hsv_to_rgb(*change(h, s, v))
    return out


@pytest.mark.parametrize("delta", [-0.5, -0.3, 0.0, 0.1, 0.45, 1.2])
def test_hue_is_a_turn_in_hsv(image, delta):
    want = in_hsv(image, lambda h, s, v: ((h + delta) % 1, s, v))
    np.testing.assert_allclose(
        image_augment.adjust_hue_and_saturation(image, delta, 1.0), want, atol=2e-6
    )


@pytest.mark.parametrize("factor", [-0.6, 0.0, 0.8, 1.0, 1.7])
def test_saturation_is_scaled_in_hsv(image, factor):
    want = in_hsv(image, lambda h, s, v: (h, min(max(s * factor, 0), 1), v))
    np.testing.assert_allclose(
        image_augment.adjust_hue_and_saturation(image, 0.0, factor), want, atol=1e-6
    )


def test_hue_and_saturation_change_together(image):
    want = in_hsv(image, lambda h, s, v: ((h - 0.2) % 1, min(s * 1.3, 1), v))
    np.testing.assert_allclose(
        image_augment.adjust_hue_and_saturation(image, -0.2, 1.3), want, atol=2e-6
    )


def test_brightness_adds(image):
    np.testing.assert_allclose(image_augment.adjust_brightness(image, -0.3), image - 0.3, atol=1e-7)


def test_contrast_is_about_each_channels_mean(image):
    mean = np.stack([np.full(image.shape[1:], channel.mean()) for channel in image])
    want = mean + 1.4 * (image - mean)
    np.testing.assert_allclose(image_augment.adjust_contrast(image, 1.4), want, atol=1e-6)


def test_gray_is_luma_in_every_channel(image):
    luma = 0.2989 * image[0] + 0.5870 * image[1] + 0.1140 * image[2]
    np.testing.assert_allclose(image_augment.to_gray(image), np.stack([luma] * 3), atol=1e-6)


def test_solarize_inverts_from_the_threshold(image):
    want = np.where(image < 0.5, image, 1 - image)
    np.testing.assert_allclose(image_augment.solarize(image, 0.5), want, atol=1e-7)


@pytest.mark.parametrize(("sigma", "divider"), [(0.1, 2.0), (0.8, 2.0), (2.0, 1.0), (1.0, 10.0)])
def test_blur_is_a_gaussian_with_zeros_outside(image, sigma, divider):
    radius = int(image.shape[1] / divider / 2)
    taps = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    padded = np.pad(image.astype(np.float64), ((0, 0), (radius, radius), (radius, radius)))
    want = np.zeros_like(image)
    for dy, wy in enumerate(taps):
        for dx, wx in enumerate(taps):
            want += wy * wx * padded[:, dy : dy + image.shape[1], dx : dx + image.shape[2]]
    np.testing.assert_allclose(image_augment.blur(image, sigma, divider), want, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "operation", "tolerance"),
    [
        ("brightness", image_augment.adjust_brightness, 1e-6),
        ("contrast", image_augment.adjust_contrast, 2e-6),
        (
            "saturation",
            lambda image, by: image_augment.adjust_hue_and_saturation(image, 0.0, by),
            1e-6,
        ),
        ("hue", lambda image, by: image_augment.adjust_hue_and_saturation(image, by, 1.0), 1e-6),
        ("sigma", lambda image, sigma: image_augment.blur(image, sigma, 10.0), 1e-6),
        ("gray", lambda image, _: image_augment.to_gray(image), 1e-6),
        ("solarize", lambda image, _: image_augment.solarize(image, 0.5), 1e-6),
    ],
)
def test_operations_equal_the_authors(reference_data, name, operation, tolerance):
    values = np.load(reference_data / "augment.npz")
    planes = jnp.moveaxis(jnp.asarray(values["images"], jnp.float32) / 255, -1, 1)
    amounts = values[name] if name in values else np.zeros(len(planes), np.float32)
    got = jnp.moveaxis(jax.vmap(operation)(planes, amounts), 1, -1)
    np.testing.assert_allclose(got, values[f"out_{name}"], atol=tolerance)


@pytest.fixture(scope="module")
def jittered(image):
    """The image after `image_augment.jitter` in every order, its amounts and the ranges."""
    config = image_augment.View(brightness=0.6, contrast=0.5, saturation=0.4, hue=0.2)
    amounts = np.array([0.9, 0.1, 0.8, 0.3], np.float32)
    orders = [np.argsort(names) for names in itertools.permutations(range(4))]
    outs = jax.vmap(lambda order: image_augment.jitter(image, amounts, order, config))(
        np.float32(orders)
    )
    return np.asarray(outs)


@pytest.mark.parametrize("index", range(24))
def test_jitter_applies_the_operations_in_order_and_clips_after_each(image, jittered, index):
    def contrast(x):
        mean = x.mean(axis=(1, 2), keepdims=True)
        return mean + (1 - 0.8 * 0.5) * (x - mean)

    operations = [
        lambda x: x + 0.8 * 0.6,
        contrast,
        lambda x: in_hsv(x, lambda h, s, v: (h, min(s * (1 + 0.6 * 0.4), 1), v)),
        lambda x: in_hsv(x, lambda h, s, v: ((h - 0.4 * 0.2) % 1, s, v)),
    ]
    want = image.astype(np.float64)
    for name in list(itertools.permutations(range(4)))[index]:
        want = np.clip(operations[name](want), 0, 1)
    np.testing.assert_allclose(jittered[index], want, atol=1e-6)


# The test image is small: a tenth of it would be no blur at all.
OFF = image_augment.View(
    jitter_prob=0.0, gray_prob=0.0, blur_prob=0.0, solarize_prob=0.0, blur_divider=2.0
)


def many(config, image, count=2000):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: image_augment.view(config, key, image)))(keys))


@pytest.mark.parametrize("name", ["gray", "blur", "solarize", "jitter"])
def test_operations_have_their_probabilities(image, name):
    outs = many(dataclasses.replace(OFF, **{f"{name}_prob": 0.2}), jnp.asarray(image))
    fraction = np.mean([not np.allclose(out, image, atol=1e-6) for out in outs])
    assert abs(fraction - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 2000)


def test_strengths_are_uniform_in_their_range():
    gray = jnp.full((1, 4, 4), 0.5)
    config = dataclasses.replace(OFF, jitter_prob=1.0, brightness=0.3, contrast=0.0)
    deltas = many(config, gray)[:, 0, 0, 0] - 0.5
    assert -0.3 <= deltas.min() < -0.29 and 0.29 < deltas.max() <= 0.3
    np.testing.assert_allclose(np.quantile(deltas, [0.25, 0.5, 0.75]), [-0.15, 0, 0.15], atol=0.03)


def test_jitter_has_all_orders(image):
    """Extreme amounts, so that orders show: 18 results, since hue and saturation commute."""
    config = image_augment.View(brightness=0.6, contrast=0.9, saturation=0.9, hue=0.4)
    orders = jax.random.uniform(jax.random.key(0), (4800, 4))
    amounts = jnp.array([0.9, 0.1, 0.9, 0.9])
    small = jnp.asarray(image[:, :2, :5])
    outs = jax.vmap(lambda order: image_augment.jitter(small, amounts, order, config))(orders)
    signatures = np.round(np.asarray(outs).reshape(len(outs), -1), 4)
    _, counts = np.unique(signatures, axis=0, return_counts=True)
    # Of 24 orders, 12 have the two next to each other: those come in pairs.
    expected = np.where(counts > 300, 400, 200)
    assert sorted(expected) == [200] * 12 + [400] * 6
    assert np.sum((counts - expected) ** 2 / expected) < 45  # chi-squared, 17 degrees: p = 2e-4


def test_gray_images_skip_colour_operations(image):
    one = jnp.asarray(image[:1])
    out = many(image_augment.IMAGENET.view2, one, 50)
    assert out.shape == (50, 1, 9, 11) and out.min() >= 0 and out.max() <= 1


def batch(rng, count=6):
    return rng.integers(0, 256, (count, 2, 8, 8, 3), np.uint8), np.arange(count, dtype=np.int32)


def augment_batch(policy, key, images, positions):
    keys = jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)
    return jax.vmap(policy)(keys, images)


def test_views_depend_on_key_and_position_alone():
    images, positions = batch(np.random.default_rng(0))
    augment = jax.jit(lambda key, x, p: augment_batch(image_augment.IMAGENET, key, x, p))
    key = jax.random.key(3)
    expected = augment(key, images, positions)
    order = np.array([4, 2, 0, 5, 1, 3])
    shuffled = augment(key, images[order], positions[order])
    for a, b in zip(expected, shuffled, strict=True):
        np.testing.assert_allclose(np.asarray(a)[order], b, atol=1e-6)
    same = augment(key, np.repeat(images[:1], 6, axis=0), positions)
    assert all(np.abs(np.diff(a, axis=0)).max(axis=(1, 2, 3)).min() > 0.01 for a in same)
    other = augment(jax.random.key(4), images, positions)
    assert all(np.abs(np.asarray(a) - b).max() > 0.1 for a, b in zip(expected, other, strict=True))


def test_the_two_views_are_drawn_independently():
    images, positions = batch(np.random.default_rng(0))
    images[:, 1] = images[:, 0]
    always = image_augment.View(jitter_prob=1.0, gray_prob=0.0, blur_prob=0.0)
    policy = dataclasses.replace(image_augment.IMAGENET, view1=always, view2=always)
    first, second = augment_batch(policy, jax.random.key(0), images, positions)
    assert np.all(np.abs(np.asarray(first) - second).max(axis=(1, 2, 3)) > 0.01)


def test_without_augmentation_only_normalisation_is_left():
    images, positions = batch(np.random.default_rng(0))
    policy = image_augment.Policy(OFF, OFF, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    outs = augment_batch(policy, jax.random.key(0), images, positions)
    for view, out in zip(images.swapaxes(0, 1), outs, strict=True):
        want = (view / 255 - np.array(policy.mean)) / np.array(policy.std)
        np.testing.assert_allclose(out, want, atol=1e-6)


def test_local_views_are_augmented_as_view_1_with_draws_of_their_own():
    gray = np.full((6, 5, 8, 8, 3), 51, np.uint8)
    noisy = dataclasses.replace(OFF, noise_prob=1.0, noise_std=0.01)
    policy = image_augment.Policy(noisy, OFF, (0.2,) * 3, (0.01,) * 3)
    augment = jax.jit(functools.partial(augment_batch, policy, jax.random.key(0)))
    positions = np.arange(6, dtype=np.int32)
    plain = augment(gray[:, :2], positions)
    view1, view2, *local = augment({"global": gray[:, :2], "local": gray[:, 2:]}, positions)
    np.testing.assert_array_equal([view1, view2], plain)
    np.testing.assert_allclose(view2, 0, atol=1e-5)
    noise = np.stack([view1, *local])
    assert noise.shape == (4, 6, 8, 8, 3) and noise.dtype == np.float32
    np.testing.assert_allclose(noise.std((2, 3, 4)), 1, rtol=0.2)
    correlation = np.corrcoef(noise.reshape(24, -1)) - np.eye(24)
    assert np.abs(correlation).max() < 0.4


def equations(jaxpr):
    """All equations of a jaxpr, those of its inner ones too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                    yield from equations(getattr(inner, "jaxpr", inner))


def test_a_view_has_no_branches_and_changes_colours_in_three_steps():
    """Under vmap all branches are computed, and a convolution has a kernel for each image."""
    images, positions = batch(np.random.default_rng(0))
    augment = functools.partial(augment_batch, image_augment.IMAGENET, jax.random.key(0))
    found = list(equations(jax.make_jaxpr(augment)(images, positions).jaxpr))
    names = {equation.primitive.name for equation in found}
    assert not names & {"cond", "while", "conv_general_dilated"}
    steps = [equation.params for equation in found if equation.primitive.name == "scan"]
    assert [loop["length"] for loop in steps] == [3, 3]  # one for each view
    for loop in steps:
        inside = [equation.primitive.name for equation in equations(loop["jaxpr"].jaxpr)]
        assert inside.count("reduce_sum") == 1  # the mean of contrast
        assert inside.count("round") == 1  # the turn of the hue


def test_what_is_off_adds_no_operation(monkeypatch):
    def traced():
        images, positions = batch(np.random.default_rng(0))
        augment = functools.partial(augment_batch, image_augment.IMAGENET, jax.random.key(0))
        return str(jax.make_jaxpr(augment)(images, positions))

    with_them = traced()
    monkeypatch.setattr(image_augment, "change_geometry", lambda config, key, image: image)
    monkeypatch.setattr(image_augment, "corrupt", lambda config, key, image, mean: image)
    assert with_them == traced()


@pytest.mark.parametrize("channels", [1, 3])
def test_other_operations_draw_the_same_numbers_with_them(image, channels):
    """Geometry comes first, corruption last; what is drawn in between stays the same."""
    image = jnp.asarray(image[:channels, :, :9])
    paper = dataclasses.replace(image_augment.IMAGENET.view2, blur_prob=0.5, blur_divider=2.0)
    flipped = many(dataclasses.replace(paper, vertical_flip_prob=1.0), image, 100)
    np.testing.assert_array_equal(flipped, many(paper, image[:, ::-1], 100))
    plain = many(paper, image, 100)
    masked = many(dataclasses.replace(paper, mask_share=0.5, mask_patch_size=3), image, 100)
    same = (masked == plain).all(1)
    assert np.all(same[:, ::3, ::3].sum((1, 2)) <= 5) and 0.4 < same.mean() < 0.6
    assert np.all(masked.swapaxes(0, 1)[:, ~same] == np.float32(0.5))


def test_fills_with_the_mean_are_zero_after_normalisation():
    images, positions = batch(np.random.default_rng(0))
    masked = dataclasses.replace(OFF, mask_share=0.5, mask_patch_size=2)
    policy = image_augment.Policy(OFF, masked, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    _, outs = augment_batch(policy, jax.random.key(0), images, positions)
    np.testing.assert_array_equal((np.asarray(outs) == 0).all(-1).sum((1, 2)), 32)


def test_a_function_of_ones_own_comes_before_normalisation():
    images, positions = batch(np.random.default_rng(0))

    def function(key, image):
        assert image.shape == (8, 8, 3) and image.dtype == jnp.float32
        return image * jax.random.uniform(key)

    plain = image_augment.Policy(OFF, OFF, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    policy = dataclasses.replace(plain, function=function)
    outs = augment_batch(policy, jax.random.key(0), images, positions)
    factors = []
    for view, out in zip(images.swapaxes(0, 1), outs, strict=True):
        scaled = np.asarray(out) * np.array(policy.std) + np.array(policy.mean)
        factor = scaled.sum((1, 2, 3)) / (view / 255).sum((1, 2, 3))
        np.testing.assert_allclose(scaled, view / 255 * factor[:, None, None, None], atol=1e-6)
        factors.extend(factor)
    assert len(set(np.round(factors, 4))) == 12  # another key for every image and view


def test_normalize_takes_bytes_and_fractions():
    image = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    want = (image / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(
        image_augment.normalize(jnp.asarray(image), mean, std), want, atol=1e-6
    )
    fractions = jnp.asarray(image / 255, jnp.float32)
    np.testing.assert_allclose(image_augment.normalize(fractions, mean, std), want, atol=1e-6)


def test_the_policy_is_the_papers():
    """Table 6 of the paper; the statistics of draws cannot tell a strength of .1 from .14."""
    shared = {
        "jitter_prob": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
        "gray_prob": 0.2,
        "blur_sigma_min": 0.1,
        "blur_sigma_max": 2.0,
        "blur_divider": 10.0,
        "solarize_threshold": 0.5,
    }
    added = dataclasses.asdict(geometry.Geometry()) | dataclasses.asdict(corrupt.Corruption())
    off = ("vertical_flip_prob", "quarter_turn_prob", "rotation_prob", "pad")
    off += ("noise_prob", "erase_prob", "mask_share")
    assert not any(added[name] for name in off)
    shared |= added
    assert dataclasses.asdict(image_augment.IMAGENET.view1) == shared | {
        "blur_prob": 1.0,
        "solarize_prob": 0.0,
    }
    assert dataclasses.asdict(image_augment.IMAGENET.view2) == shared | {
        "blur_prob": 0.1,
        "solarize_prob": 0.2,
    }
