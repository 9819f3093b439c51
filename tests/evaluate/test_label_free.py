"""Measures without labels against plain NumPy and the limits that their papers give."""

import numpy as np
import pytest

from byol_jax.errors import DataError
from byol_jax.evaluate import label_free


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def entropy_rank(values, eps=1e-7):
    shares = [value / sum(values) + eps for value in values]
    return np.exp(-sum(p * np.log(p) for p in shares))


def test_rankme_is_the_entropy_of_the_singular_values():
    x = normal(0, 50, 6) * [1, 2, 3, 1, 0.1, 0.01] + 3  # not centred
    want = entropy_rank(np.linalg.svd(x, compute_uv=False))
    np.testing.assert_allclose(label_free.rankme(x), want, rtol=1e-6)


def test_rankme_has_the_limits_of_the_paper():
    one_direction = np.outer(normal(0, 30), normal(1, 5))
    np.testing.assert_allclose(label_free.rankme(one_direction), 1, rtol=1e-4)
    orthogonal, _ = np.linalg.qr(normal(0, 30, 5))
    np.testing.assert_allclose(label_free.rankme(7 * orthogonal), 5, rtol=1e-5)
    assert label_free.rankme(np.zeros((4, 3))) == 1


def slow_lidar(x, delta):
    images, views, size = x.shape
    means = [sum(x[i]) / views for i in range(images)]
    mean = sum(means) / images
    between, within = np.zeros((size, size)), delta * np.eye(size)
    for i in range(images):
        between += np.outer(means[i] - mean, means[i] - mean) / images
        for view in x[i]:
            within += np.outer(view - means[i], view - means[i]) / images / views
    values = np.linalg.eigvals(np.linalg.inv(within) @ between).real
    return entropy_rank(np.maximum(values, 0))


@pytest.mark.parametrize("delta", [1e-4, 0.1])
def test_lidar_is_the_effective_rank_of_the_discriminant_analysis(delta):
    x = normal(0, 20, 1, 4) * [3, 2, 1, 0.1] + normal(1, 20, 6, 4) * [1, 0.1, 2, 0.1]
    np.testing.assert_allclose(label_free.lidar(x, delta), slow_lidar(x, delta), rtol=1e-6)


def test_lidar_ignores_what_views_do_not_share():
    """A direction that is loud but differs between the views of an image counts for little."""
    objects = np.repeat(normal(0, 500, 1, 3), 8, axis=1)
    noise = normal(1, 500, 8, 3)
    clean = label_free.lidar(objects + 0.1 * noise)
    np.testing.assert_allclose(clean, 3, rtol=0.01)
    loud = label_free.lidar(np.concatenate([objects + 0.1 * noise, 5 * noise], axis=2))
    np.testing.assert_allclose(loud, 3, rtol=0.05)
    assert label_free.rankme(np.concatenate([objects + 0.1 * noise, 5 * noise], 2)[:, 0]) > 3.5


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_req_finds_the_exponent(alpha):
    orthogonal, _ = np.linalg.qr(normal(0, 200, 60) - normal(0, 200, 60).mean(axis=0))
    x = orthogonal * np.arange(1, 61) ** (-alpha / 2)
    np.testing.assert_allclose(label_free.alpha_req(x), alpha, rtol=1e-6)
    few = orthogonal[:, :8] * np.arange(1, 9) ** (-alpha / 2)
    np.testing.assert_allclose(label_free.alpha_req(few), alpha, rtol=1e-6)


def test_alignment_is_the_mean_distance_of_views():
    x = normal(0, 9, 2, 4)
    want = 0
    for first, second in x:
        want += sum((first / np.linalg.norm(first) - second / np.linalg.norm(second)) ** 2) / 9
    np.testing.assert_allclose(label_free.alignment(x), want, rtol=1e-10)
    assert label_free.alignment(np.repeat(x[:, :1], 2, axis=1) * [[[1.0], [3.0]]]) < 1e-20
    np.testing.assert_allclose(label_free.alignment(normal(0, 4000, 2, 200)), 2, rtol=0.01)


def test_uniformity_is_the_log_of_the_mean_kernel_of_pairs():
    x = normal(0, 7, 3)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [
        np.exp(-2 * sum((unit[i] - unit[j]) ** 2)) for i in range(7) for j in range(7) if i != j
    ]
    np.testing.assert_allclose(label_free.uniformity(x), np.log(np.mean(pairs)), rtol=1e-10)
    for constant in (0.0, 1.0):
        np.testing.assert_allclose(
            label_free.uniformity(np.full((1500, 3), constant)), 0, atol=1e-12
        )
    np.testing.assert_allclose(label_free.uniformity(normal(0, 2500, 500)), -4, rtol=0.01)


@pytest.mark.parametrize(
    ("function", "features"),
    [
        (label_free.rankme, np.ones((2, 2, 2))),
        (label_free.rankme, np.full((2, 2), np.nan)),
        (label_free.lidar, np.ones((1, 5, 2))),
        (label_free.lidar, np.ones((5, 2))),
        (label_free.alpha_req, np.ones((9, 5))),
        (label_free.alignment, np.ones((3, 4, 2))),
        (label_free.uniformity, np.ones((1, 2))),
        (label_free.uniformity, np.ones((0, 2))),
    ],
)
def test_bad_features_are_one_line(function, features):
    with pytest.raises(DataError) as caught:
        function(features)
    assert "\n" not in str(caught.value)


def test_the_measures_of_one_view_together():
    x = normal(0, 40, 6)
    found = label_free.measures(x)
    assert found["images"] == 40 and found["rankme"] == label_free.rankme(x)
    assert found["alpha_req"] == label_free.alpha_req(x)
    np.testing.assert_allclose(found["uniformity"], label_free.uniformity(x), rtol=1e-12)
    assert "lidar" not in found
    assert label_free.measures(np.ones((9, 5)))["alpha_req"] is None
    assert label_free.measures(normal(0, 10_100, 2))["images"] == 10_000


def test_the_measures_of_several_views():
    views = normal(1, 12, 4, 6)
    found = label_free.measures(normal(0, 40, 6), views)
    assert found["lidar"] == label_free.lidar(views)
    assert found["alignment"] == label_free.alignment(views[:, :2])
