"""few_shot, cluster, retrieval and scores against plain NumPy and scikit-learn."""

import importlib
import itertools

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import average_precision_score

from byol_jax.errors import ConfigError, DataError
from byol_jax.evaluate import cluster, few_shot, kmeans, knn, retrieval, table
from byol_jax.evaluate.few_shot import STRENGTHS
from byol_jax.evaluate.scores import accuracies, label_ranks, wilson

# By name: as attributes of the package, these names are the functions.
retrieval_module = importlib.import_module("byol_jax.evaluate.retrieval")


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def problem():
    """Four classes that overlap, and scaled far from 1: 80 rows to fit, 60 to test."""
    labels = np.arange(140) % 4
    features = 30 * (1.2 * np.eye(4, 5, dtype=np.float32)[labels] + normal(0, 140, 5)) + 7
    features.flags.writeable = False
    return features[:80], labels[:80], features[80:], labels[80:]


def test_few_shot_is_ridge_regression_of_the_best_leave_one_out_error(problem):
    train, train_labels, test, test_labels = problem
    found = few_shot(*problem, num_classes=4, shots=(3,), draws=2, seed=5)
    rng = np.random.default_rng([5, 3])
    wanted = []
    for _ in range(2):
        rows = np.concatenate(
            [rng.choice(np.flatnonzero(train_labels == c), 3, replace=False) for c in range(4)]
        )
        mean = train[rows].mean(axis=0)
        scale = np.sqrt(((train[rows] - mean) ** 2).mean())
        x, y = (train[rows] - mean) / scale, np.where(np.eye(4)[train_labels[rows]], 1.0, -1.0)
        errors = []
        for strength in STRENGTHS:
            error = 0
            for left_out in range(len(x)):
                rest = np.arange(len(x)) != left_out
                a = x[rest] - x[rest].mean(axis=0)
                w = np.linalg.solve(
                    a.T @ a + strength * np.eye(5), a.T @ (y[rest] - y[rest].mean(axis=0))
                )
                guess = (x[left_out] - x[rest].mean(axis=0)) @ w + y[rest].mean(axis=0)
                error += ((guess - y[left_out]) ** 2).sum()
            errors.append(error)
        ridge = RidgeClassifier(alpha=STRENGTHS[int(np.argmin(errors))])
        ridge.fit(x, train_labels[rows])
        wanted.append(ridge.score((test - mean) / scale, test_labels))
    assert found == {
        "top1": np.mean(wanted),
        "shots": 3,
        "top1_by_shots": {3: {"mean": np.mean(wanted), "std": np.std(wanted), "draws": 2}},
    }


def test_few_shot_leaves_out_what_a_class_does_not_have(problem):
    found = few_shot(*problem, num_classes=4, draws=2)
    assert [*found["top1_by_shots"]] == [1, 2, 5, 10] and found["shots"] == 10
    assert found["top1_by_shots"][10]["mean"] > found["top1_by_shots"][1]["mean"]
    with pytest.raises(DataError, match="class 4 has none"):
        few_shot(*problem, num_classes=5)


def test_cluster_matches_classes_in_the_best_way(problem):
    far = 50 * np.eye(4, 5, dtype=np.float32)
    train, labels = far[problem[1]] + normal(1, 80, 5), problem[1]
    found = cluster(train, labels, train, labels, num_classes=4)
    assert found == {"top1": 1.0, "nmi": pytest.approx(1), "ari": 1.0}
    noisy = cluster(*problem, num_classes=4, seed=3)
    from sklearn.cluster import KMeans

    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (problem[0], problem[2])]
    guess = KMeans(4, n_init=10, random_state=3).fit(unit[0]).predict(unit[1])
    best = max(
        np.mean(np.array(names)[guess] == problem[3]) for names in itertools.permutations(range(4))
    )
    assert noisy["top1"] == best < 1


def test_retrieval_ranks_the_other_test_images(problem):
    features, labels = problem[2:]
    found = retrieval(*problem, num_classes=4, ks=(1, 3))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    hits, precisions = {1: 0, 3: 0}, []
    for i in range(len(features)):
        others = np.delete(np.arange(len(features)), i)
        similarities = unit[others] @ unit[i]
        same = labels[others] == labels[i]
        for k in hits:
            hits[k] += same[np.argsort(-similarities)[:k]].any()
        precisions.append(average_precision_score(same, similarities))
    assert found["recall"] == {k: n / len(features) for k, n in hits.items()}
    assert found["top1"] == found["recall"][1] and found["queries"] == 60
    np.testing.assert_allclose(found["map"], np.mean(precisions), rtol=1e-6)


def test_an_image_alone_in_its_class_is_no_query(problem):
    labels = problem[3].copy()
    labels[labels == 3] = np.arange(15) + 3
    assert retrieval(*problem[:3], labels, num_classes=18)["queries"] == 45
    with pytest.raises(DataError, match="two test images"):
        retrieval(*problem[:2], problem[2][:3], np.arange(3), num_classes=4)


def test_accuracies_count_per_class_and_in_the_first_five():
    rng = np.random.default_rng(0)
    logits, labels = rng.integers(0, 4, (200, 8)).astype(np.float32), rng.integers(0, 7, 200)
    found = accuracies(label_ranks(logits, labels), labels, 8)
    order = np.argsort(-logits, axis=1, kind="stable")
    assert found["top1"] == np.mean(order[:, 0] == labels)
    assert found["top5"] == np.mean((order[:, :5] == labels[:, None]).any(axis=1))
    assert found["interval"] == wilson(round(200 * found["top1"]), 200)
    want = [np.mean(order[labels == c, 0] == c) for c in range(7)]
    assert found["per_class"] == [*want, None]
    np.testing.assert_allclose(found["mean_per_class"], np.mean(want), rtol=1e-12)
    assert "top5" not in accuracies(label_ranks(logits[:, :5], labels % 5), labels % 5, 5)


def test_wilsons_interval_holds_the_shares_that_95_percent_of_samples_fit():
    """Its ends are the shares p for which the share that was found lies 1.96 deviations from p."""
    for hits, count in [(5, 10), (1, 3), (990, 1000)]:
        for end in wilson(hits, count):
            deviation = np.sqrt(end * (1 - end) / count)
            np.testing.assert_allclose(abs(hits / count - end), 1.959964 * deviation, rtol=1e-6)
    assert wilson(0, 10)[0] == 0 and 0.2 < wilson(0, 10)[1] < 0.3
    assert wilson(10, 10)[1] > 1 - 1e-12


def test_nan_is_behind_all_other_classes():
    logits = np.array([[np.nan] * 3, [1, np.nan, 0], [0, np.nan, 1]], np.float32)
    assert list(label_ranks(logits, np.array([0, 1, 2]))) == [2, 2, 1]


def test_classes_without_a_neighbour_are_behind_all_others():
    train, labels = 9 * np.eye(10, 12, dtype=np.float32).repeat(3, axis=0), np.arange(30) // 3
    found = knn(train, labels, train[:9], np.full(9, 5), num_classes=10, ks=(3,))
    assert (found["top1"], found["top5"]) == (0.0, 0.0)
    assert knn(train, labels, train, labels, num_classes=10, ks=(3,))["top5"] == 1.0


def test_retrieval_does_not_depend_on_the_chunks(problem, monkeypatch):
    at_once = retrieval(*problem, num_classes=4)
    monkeypatch.setattr(retrieval_module, "SIMILARITIES", 60 * 7)
    assert retrieval(*problem, num_classes=4) == at_once
    monkeypatch.setattr(retrieval_module, "QUERIES", 25)
    drawn = retrieval(*problem, num_classes=4)
    assert drawn["queries"] == 25 and abs(drawn["map"] - at_once["map"]) < 0.1


def test_many_images_are_clustered_in_mini_batches(problem, monkeypatch):
    far = (50 * np.eye(4, 5, dtype=np.float32))[problem[1]] + normal(1, 80, 5)
    monkeypatch.setattr(kmeans, "MANY", 80)
    found = cluster(far, problem[1], far, problem[1], num_classes=4)
    assert found["top1"] == 1.0


def test_collapsed_features_have_one_cluster_and_no_warning():
    same, labels = np.ones((12, 3), np.float32), np.arange(12) % 3
    assert cluster(same, labels, same, labels, num_classes=3)["top1"] == 1 / 3


def test_wrong_numbers_are_one_line(problem):
    for function, settings in [
        (few_shot, {"shots": ()}),
        (few_shot, {"draws": 0}),
        (retrieval, {"ks": ()}),
        (retrieval, {"ks": (0, 1)}),
    ]:
        with pytest.raises(ConfigError) as caught:
            function(*problem, num_classes=4, **settings)
        assert "\n" not in str(caught.value)


def test_the_table_has_the_interval_beside_its_own_number():
    result = {"top1": 0.5, "interval": (0.4, 0.6), "k": 20, "top1_by_k": {20: 0.5, 200: 0.25}}
    title, row = table({"byol": result | {"top5": 0.9, "mean_per_class": 0.4}})
    assert " ".join(title.split()) == "k = 20 95% top-5 mean per class k = 200"
    assert row.split() == ["byol", "50.0%", "40.0", "to", "60.0", "90.0%", "40.0%", "25.0%"]
