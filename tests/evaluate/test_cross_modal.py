"""Retrieval of the other part of an example, against a ranking that is written out."""

import numpy as np
import pytest

from byol_jax import evaluate
from byol_jax.errors import ConfigError, DataError
from byol_jax.evaluate.cross_modal import chance, cross_modal


def plain(queries, gallery, same_query, same_gallery, k):
    """Recall and ranks where no two similarities are equal."""
    ranks = []
    for i, query in enumerate(queries):
        cosine = [query @ x / np.linalg.norm(query) / np.linalg.norm(x) for x in gallery]
        order = sorted(range(len(gallery)), key=lambda j: -cosine[j])
        right = [
            place
            for place, j in enumerate(order, start=1)
            if same_query[i] == same_query[j] or same_gallery[i] == same_gallery[j]
        ]
        ranks.append(min(right))
    return np.mean(np.array(ranks) <= k), np.median(ranks)


@pytest.mark.parametrize("blocks", [1, 5])
def test_ranks_are_those_of_a_plain_ranking(monkeypatch, blocks):
    monkeypatch.setattr("byol_jax.evaluate.cross_modal.SIMILARITIES", 30 * 30 // blocks)
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(2, 30, 4))
    gallery += queries
    same_query, same_gallery = rng.integers(25, size=(2, 30))
    found = cross_modal(queries, gallery, same_query, same_gallery, ks=(1, 3, 10))
    for k in (1, 3, 10):
        recall, median = plain(queries, gallery, same_query, same_gallery, k)
        assert found["recall"][k] == pytest.approx(recall) and 0 < recall < 1
        assert found["median_rank"] == median
    assert found["top1"] == found["recall"][1] and found["queries"] == 30
    alone = cross_modal(queries, gallery, np.arange(30), np.arange(30))
    assert alone["recall"][1] < found["recall"][1]  # identical parts make it easier


def test_features_that_are_all_equal_have_the_recall_of_chance():
    same = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8])
    own = np.arange(10)
    constant = np.ones((10, 3))
    found, expected = cross_modal(constant, constant, own, own), chance(own, own)
    assert found == expected
    assert found["recall"] == pytest.approx({1: 0.1, 5: 0.5, 10: 1}) and found["median_rank"] == 5.5
    # Two of ten queries have two right partners each: 1 - 8/10 7/9 ... for k draws.
    found = cross_modal(np.zeros((10, 3)), constant, same, own)
    assert found == chance(same, own)
    assert found["recall"][1] == pytest.approx(0.8 * 0.1 + 0.2 * 0.2)
    assert found["recall"][5] == pytest.approx(0.8 * 0.5 + 0.2 * (1 - 5 * 4 / (10 * 9)))


@pytest.mark.parametrize(("n", "d"), [(171, 256), (1003, 64)])
def test_ties_do_not_depend_on_the_last_bits(n, d):
    constant = np.tile(np.random.default_rng(0).normal(size=d), (n, 1))
    queries, own = np.random.default_rng(1).normal(size=(n, d)), np.arange(n)
    assert cross_modal(constant, constant, own, own) == chance(own, own)
    assert cross_modal(queries, constant, own, own) == chance(own, own)


def test_chance_is_the_mean_over_random_orders():
    rng = np.random.default_rng(1)
    same_query, same_gallery = rng.integers(9, size=(2, 12))
    recalls, medians = [], []
    for _ in range(300):
        queries, gallery = rng.normal(size=(2, 12, 2))
        recall, median = plain(queries, gallery, same_query, same_gallery, 2)
        recalls.append(recall)
        medians.append(median)
    expected = chance(same_query, same_gallery, ks=(2,))
    error = np.std(recalls) / np.sqrt(len(recalls))
    assert abs(np.mean(recalls) - expected["recall"][2]) < 4 * error
    assert abs(np.mean(medians) - expected["median_rank"]) < 1


def test_some_ties_count_in_part():
    queries = np.array([[1.0, 0], [1, 0], [0, 1]])
    gallery = np.array([[1.0, 0], [1, 0], [0, 1]])
    found = cross_modal(queries, gallery, np.arange(3), np.arange(3), ks=(1, 2))
    assert found["recall"] == pytest.approx({1: 2 / 3, 2: 1}) and found["median_rank"] == 1.5


def test_what_cannot_be_compared_is_one_line():
    ids = np.arange(3)
    with pytest.raises(DataError, match="parts have features"):
        cross_modal(np.ones((3, 2)), np.ones((3, 4)), ids, ids)
    with pytest.raises(DataError, match="NaN or infinity"):
        cross_modal(np.full((3, 2), np.nan), np.ones((3, 2)), ids, ids)
    with pytest.raises(ConfigError, match="each at least 1"):
        cross_modal(np.ones((3, 2)), np.ones((3, 2)), ids, ids, ks=(0,))


def test_the_table_has_recalls_and_the_median_rank():
    found = {"a, x -> y": cross_modal(np.eye(12), np.eye(12), np.arange(12), np.arange(12))}
    titles, row = evaluate.table(found)
    assert titles.split() == ["recall@1", "recall@5", "recall@10", "median", "rank"]
    assert row.split()[4:] == ["100.0%", "100.0%", "100.0%", "1"]
