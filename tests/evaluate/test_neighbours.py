"""Nearest rows against a plain sort in NumPy."""

import numpy as np
import pytest

from byol_jax.errors import ConfigError, DataError
from byol_jax.evaluate import neighbours


def reference(queries, keys, k, exclude):
    unit = [
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (queries, keys)
    ]
    similarities = np.float64(unit[0]) @ np.float64(unit[1]).T
    if exclude:
        np.fill_diagonal(similarities, -np.inf)
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(similarities, order, axis=1)


@pytest.fixture(autouse=True, params=[0, 100], ids=["device", "host"])
def small_chunks(request, monkeypatch):
    monkeypatch.setattr(neighbours, "FEW", request.param)
    monkeypatch.setattr(neighbours, "QUERIES", 8)
    monkeypatch.setattr(neighbours, "KEYS", 16)


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_nearest_equals_a_sort_of_all_similarities(k, exclude):
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(45, 6)).astype(np.float32)
    queries = keys if exclude else rng.normal(size=(21, 6)).astype(np.float32)
    indices, similarities = neighbours.nearest(queries, keys, k, exclude_same_row=exclude)
    expected = reference(queries, keys, k, exclude)
    np.testing.assert_array_equal(indices, expected[0])
    np.testing.assert_allclose(similarities, expected[1], atol=1e-6)
    assert (indices.dtype, similarities.dtype) == (np.int32, np.float32)


def test_of_equal_similarities_the_lower_index_is_first():
    keys = np.tile(np.array([[1.0, 0], [0, 1]], np.float32), (20, 1))
    indices, similarities = neighbours.nearest(keys[:1], keys, 20)
    np.testing.assert_array_equal(indices, [np.arange(0, 40, 2)])
    np.testing.assert_array_equal(similarities, np.ones((1, 20)))


def test_a_row_is_never_its_own_neighbour_among_many_copies():
    keys = np.ones((40, 3), np.float32)
    indices, _ = neighbours.nearest(keys, keys, 3, exclude_same_row=True)
    assert indices.shape == (40, 3)
    assert not (indices == np.arange(40)[:, None]).any()


def test_there_are_at_most_as_many_neighbours_as_keys():
    keys = np.eye(3, dtype=np.float32)
    assert neighbours.nearest(keys, keys, 10)[0].shape == (3, 3)
    assert neighbours.nearest(keys, keys, 10, exclude_same_row=True)[0].shape == (3, 2)


def test_a_row_of_zeros_is_similar_to_nothing():
    _, similarities = neighbours.nearest(np.zeros((1, 2)), np.eye(2), 2)
    np.testing.assert_array_equal(similarities, [[0, 0]])


def test_what_cannot_be_compared_is_refused():
    keys = np.eye(3, dtype=np.float32)
    with pytest.raises(DataError, match="3 columns and keys 2"):
        neighbours.nearest(keys, keys[:, :2], 1)
    with pytest.raises(DataError, match="one row only"):
        neighbours.nearest(keys[:1], keys[:1], 1, exclude_same_row=True)
    with pytest.raises(ConfigError, match="k=0"):
        neighbours.nearest(keys, keys, 0)
