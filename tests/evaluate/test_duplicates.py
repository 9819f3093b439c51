"""Near-duplicates against all pairs in NumPy."""

import numpy as np
import pytest

from byol_jax.errors import DataError
from byol_jax.evaluate import duplicates


def unit(rows):
    return np.float32(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(duplicates, "ROWS", 8)
    monkeypatch.setattr(duplicates, "COLUMNS", 20)


@pytest.mark.parametrize("count", [5, 20, 47])
def test_pairs_are_all_of_a_plain_matrix(count):
    rows = unit(np.random.default_rng(count).normal(size=(count, 3)))
    indices, similarities = duplicates.pairs(rows, 0.5)
    every = rows @ rows.T
    expected = np.argwhere(np.triu(every >= 0.5, 1))
    assert len(expected)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(similarities, every[tuple(expected.T)], atol=1e-6)


def test_pairs_with_others_are_all_of_a_plain_matrix():
    rng = np.random.default_rng(0)
    rows, others = unit(rng.normal(size=(21, 3))), unit(rng.normal(size=(50, 3)))
    indices, similarities = duplicates.pairs(rows, 0.9, others)
    expected = np.argwhere(rows @ others.T >= 0.9)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(similarities, (rows @ others.T)[tuple(expected.T)], atol=1e-6)


def test_equal_rows_have_a_similarity_of_one_in_spite_of_rounding():
    rows = np.repeat(unit(np.random.default_rng(0).normal(size=(10, 37))), 2, axis=0)
    indices, _ = duplicates.pairs(rows, 1.0)
    np.testing.assert_array_equal(indices, np.arange(20).reshape(10, 2))


def test_too_many_pairs_are_refused(monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 20)
    rows = unit(np.random.default_rng(0).normal(size=(30, 3)))
    with pytest.raises(DataError, match="more than 20 pairs have a similarity of -1: choose"):
        duplicates.pairs(rows, -1.0)


def test_groups_are_connected_components():
    indices = np.array([[0, 5], [5, 3], [2, 6], [7, 8], [0, 3]])
    groups = duplicates.groups(indices, 10)
    assert [group.tolist() for group in groups] == [[0, 3, 5], [2, 6], [7, 8]]
    assert duplicates.groups(np.zeros((0, 2), int), 4) == []


def test_whitening_divides_by_the_deviation_of_each_direction(monkeypatch):
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    features = np.float32(rng.normal(size=(500, 4)) * [100, 10, 1, 0.1] @ turn + 50)
    monkeypatch.setattr(duplicates, "SHRINKAGE", 0.0)
    whitened = duplicates.whitening(features)(features)
    np.testing.assert_allclose(np.linalg.norm(whitened, axis=1), 1, atol=1e-5)
    exact = np.float64(features) - np.float64(features).mean(axis=0)
    covariance = np.cov(exact.T, bias=True)
    inverse = np.linalg.inv(covariance)  # similarities do not depend on the turn of the result
    products = exact @ inverse @ exact.T
    lengths = np.sqrt(np.diag(products))
    np.testing.assert_allclose(
        whitened @ whitened.T, products / lengths / lengths[:, None], atol=2e-3
    )


def test_whitening_separates_copies_from_what_is_only_alike():
    """Features that all have one large direction in common: raw cosines are all near 1."""
    rng = np.random.default_rng(0)
    features = np.float32(rng.normal(size=(300, 16)) + 30)
    copies = features[:20] + np.float32(0.2 * rng.normal(size=(20, 16)))
    raw = unit(features)
    assert np.quantile(raw @ raw.T, 0.01) > 0.99
    whiten = duplicates.whitening(features)
    indices, _ = duplicates.pairs(whiten(features), 0.9, whiten(copies))
    np.testing.assert_array_equal(indices, np.repeat(np.arange(20)[:, None], 2, axis=1))


def test_copies_among_few_images_are_found_too():
    rng = np.random.default_rng(0)
    for count in (4, 12, 40):
        features = np.float32(rng.normal(size=(count, 128)))
        features[1] = features[0] + np.float32(0.1 * rng.normal(size=128))
        indices, _ = duplicates.pairs(duplicates.whitening(features)(features), 0.85)
        np.testing.assert_array_equal(indices, [[0, 1]])


def test_equal_features_are_refused():
    with pytest.raises(DataError, match="all images are the same"):
        duplicates.whitening(np.full((10, 4), 3.3, np.float32))
