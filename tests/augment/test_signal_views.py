"""Views of signals against plain NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax.augment import signals
from byol_jax.augment.signals import Policy, View

KEY = jax.random.key(3)
X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)


def draws(operation, shape, sample=jax.random.uniform):
    return np.asarray(sample(jax.random.fold_in(KEY, operation), shape))


def test_with_nothing_on_a_view_is_its_input():
    np.testing.assert_array_equal(signals.augment(View(), KEY, X), X)


@pytest.mark.parametrize("low, high", [(0.3, 1.0), (0.5, 0.5), (1.0, 0.5)])
def test_a_window_is_interpolated_to_the_full_length(low, high):
    length_u, start_u = draws(signals.WINDOW, (2,))
    length = (low + (high - low) * length_u) * 19
    at = start_u * (19 - length) + np.arange(20) * length / 19
    want = np.stack([np.interp(at, np.arange(20), X[:, c]) for c in range(3)], axis=1)
    got = signals.augment(View(window_min=low, window_max=high), KEY, X)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_window_of_everything_changes_nothing():
    np.testing.assert_allclose(signals.window(X, 0.0, 19.0), X, atol=1e-5)


def test_one_factor_scales_each_channel():
    factor = 1 + 0.5 * draws(signals.SCALE, (1, 3), jax.random.normal)
    np.testing.assert_allclose(signals.augment(View(scale_std=0.5), KEY, X), X * factor, rtol=1e-6)


def test_a_table_has_one_factor():
    factor = 1 + 0.5 * draws(signals.SCALE, (), jax.random.normal)
    row = X[:, 0]
    got = signals.augment(View(scale_std=0.5), KEY, row)
    np.testing.assert_allclose(got, row * factor, rtol=1e-6)


def test_jitter_is_normal_noise():
    noise = draws(signals.JITTER, X.shape, jax.random.normal)
    got = signals.augment(View(jitter_std=0.1), KEY, X)
    np.testing.assert_allclose(got, X + 0.1 * noise, atol=1e-6)


def test_a_mask_covers_one_block_of_time():
    share_u, start_u = draws(signals.MASK, (2,))
    length = round(0.8 * share_u * 20)
    start = int(np.floor(start_u * (20 - length + 1)))
    want = X.copy()
    want[start : start + length] = 0
    assert length
    np.testing.assert_array_equal(signals.augment(View(mask_share=0.8), KEY, X), want)


def test_single_numbers_are_dropped():
    want = np.where(draws(signals.DROP, X.shape) < 0.4, 0, X)
    np.testing.assert_array_equal(signals.augment(View(drop_share=0.4), KEY, X), want)


def test_operations_do_not_change_the_draws_of_others():
    names = [field.name for field in dataclasses.fields(View) if field.name.endswith("share")]
    both = signals.augment(View(**dict.fromkeys(names, 0.4)), KEY, X)
    each = [np.asarray(signals.augment(View(**{name: 0.4}), KEY, X)) for name in names]
    np.testing.assert_array_equal(both == 0, np.any([view == 0 for view in each], axis=0))


def test_two_views_of_one_array_and_one_view_of_each_of_two():
    mean, std = {"a": (1.0, 2.0, 3.0)}, {"a": (2.0, 2.0, 4.0)}
    normalized = (X - np.array(mean["a"])) / np.array(std["a"])
    one = Policy(View(), View(jitter_std=1.0), mean, std)
    first, second = one(KEY, {"a": jnp.asarray(X)})
    np.testing.assert_allclose(first, normalized, atol=1e-6)
    assert np.abs(second - first).min() > 0
    np.testing.assert_allclose(one.preprocess({"a": X}), normalized, atol=1e-6)

    two = Policy(View(), View(), mean | {"b": (0.0,)}, std | {"b": (1.0,)})
    example = {"a": jnp.asarray(X), "b": jnp.ones((4, 1))}
    first, second = two(KEY, example)
    np.testing.assert_allclose(first["a"], normalized, atol=1e-6)
    np.testing.assert_array_equal(second["b"], 1)
    assert [*first] == ["a"] and [*second] == ["b"]
    assert {*two.preprocess(example)} == {"a", "b"}
