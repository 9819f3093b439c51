"""Measures of recommendations against the formulas, and the baselines."""

import numpy as np
import pytest

from byol_jax.evaluate import recommendation as rec

SEEN = np.array([[0, 1], [1, 0], [1, 2], [5, 5]])
HELD_OUT = np.array([[0, 0], [0, 3], [1, 4]])
SCORES = np.array([[0.1, 9, 0.5, 0.4, 0.3, 0.2], [9, 0.1, 9, 0.2, 0.3, 0.4]])


def test_recall_ndcg_and_hit_rate():
    found = rec.recommendation(lambda users: SCORES[users], HELD_OUT, SEEN, cutoffs=(2, 3))
    # User 0 gets 2, 3, 4, ... and wants 0 and 3; user 1 gets 5, 4, 3, 1 and wants 4.
    second = 1 / np.log2(3)
    assert found["users"] == 2
    assert found["recall"] == {2: pytest.approx(0.75), 3: pytest.approx(0.75)}
    wanted = (second / (1 + second) + second) / 2
    assert found["ndcg"] == {2: pytest.approx(wanted), 3: pytest.approx(wanted)}
    assert found["hit_rate"] == {2: 1.0, 3: 1.0}


def test_ndcg_is_that_of_scikit_learn():
    from sklearn.metrics import ndcg_score

    rng = np.random.default_rng(0)
    scores, relevant = rng.random((20, 30)), rng.random((20, 30)) < 0.1
    relevant[:, 0] = True
    pairs = np.argwhere(relevant)
    found = rec.recommendation(lambda users: scores[users], pairs, np.zeros((0, 2), int))
    for k in rec.CUTOFFS:
        assert found["ndcg"][k] == pytest.approx(ndcg_score(relevant, scores, k=k), abs=1e-9)


def test_what_was_seen_comes_last():
    items, scores = rec.top(lambda users: SCORES[users], np.array([1, 0]), SEEN, 6)
    np.testing.assert_array_equal(items[:, :4], [[5, 4, 3, 1], [2, 3, 4, 5]])
    assert (scores[0, 4:] == -np.inf).all() and scores[1, 5] == -np.inf


def test_of_equal_scores_the_lower_number_comes_first():
    scores = np.array([[1.0, 2, 2, 0, 2, 1, 1]])
    for count in range(1, 8):
        items, _ = rec.top(lambda users: scores[users], np.array([0]), np.zeros((0, 2), int), count)
        np.testing.assert_array_equal(items[0], [1, 2, 4, 0, 5, 6, 3][:count])


def two_groups():
    """Users and items in two groups, each of which keeps to its own."""
    rng = np.random.default_rng(0)
    pairs = [(u, i) for u in range(20) for i in range(16) if u % 2 == i % 2 and rng.random() < 0.7]
    return np.array(pairs)


def test_baselines():
    train = two_groups()
    counts = np.bincount(train[:, 1], minlength=16)
    popular = rec.popularity(train, 16)(np.arange(3))
    np.testing.assert_array_equal(popular, np.tile(counts, (3, 1)))
    pytest.importorskip("implicit")
    matrix = np.zeros((20, 16))
    matrix[tuple(train.T)] = 1
    unit = matrix / np.maximum(np.linalg.norm(matrix, axis=0), 1e-12)
    found = rec.item_knn(train, 20, 16)(np.arange(20))
    np.testing.assert_allclose(found, matrix @ (unit.T @ unit), atol=1e-5)
    held_out = np.arange(len(train)) % 5 == 0
    fit = rec.bpr(train[~held_out], train[held_out], 20, 16, features=8, epochs=200)
    scores = fit(np.arange(20))
    own = (np.arange(20)[:, None] % 2) == (np.arange(16) % 2)
    assert scores[own].mean() > scores[~own].mean() + 1
