"""The protocols against plain NumPy formulas and data with a known answer."""

import importlib

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from byol_jax.errors import ConfigError, DataError
from byol_jax.evaluate import PROTOCOLS, knn, logistic
from byol_jax.evaluate.logistic import fit, standardise

# By name: as attributes of the package, these names are the functions.
knn_module = importlib.import_module("byol_jax.evaluate.knn")
logistic_module = importlib.import_module("byol_jax.evaluate.logistic")


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def correlated_problem(rows=600, columns=12, num_classes=4, seed=0):
    """Features whose covariance has a condition number of about a million, and noisy labels."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((columns, columns)) * np.logspace(0, -3, columns)[:, None]
    features = (rng.standard_normal((rows, columns)) @ mixing + 3).astype(np.float32)
    logits = (features - features.mean(axis=0)) @ rng.standard_normal((columns, num_classes))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return features, labels


def clusters(rows, num_classes, seed):
    """Points around one distant centre for each class; every class occurs."""
    labels = np.arange(rows) % num_classes
    centres = 20 * np.eye(num_classes, 6, dtype=np.float32)
    return centres[labels] + normal(seed, rows, 6), labels


@pytest.fixture(scope="module")
def problem():
    features, labels = correlated_problem()
    features.flags.writeable = False  # no protocol may change what it receives
    return features[:400], labels[:400], features[400:], labels[400:]


def standardised(train, other):
    return standardise(train.copy(), other.copy())


def slow_knn(train, train_labels, test, test_labels, num_classes, k, temperature):
    hits = 0
    for row, label in zip(test, test_labels, strict=True):
        similarities = train @ row / np.linalg.norm(train, axis=1) / np.linalg.norm(row)
        votes = np.zeros(num_classes)
        for i in np.argsort(similarities)[::-1][:k]:
            votes[train_labels[i]] += np.exp(similarities[i] / temperature)
        hits += votes.argmax() == label
    return hits / len(test)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_knn_equals_a_plain_loop(problem, temperature):
    found = knn(*problem, num_classes=4, ks=(5, 1, 50), temperature=temperature)
    assert found["k"] == 5 and found["top1"] == found["top1_by_k"][5]
    found = found["top1_by_k"]
    assert found == {k: slow_knn(*problem, 4, k, temperature) for k in (1, 5, 50)}
    assert all(type(accuracy) is float for accuracy in found.values())


def test_knn_does_not_depend_on_the_chunks(problem, monkeypatch):
    at_once = knn(*problem, num_classes=4, ks=(7,))
    monkeypatch.setattr(knn_module, "_SIMILARITIES_PER_CHUNK", 400 * 37)
    assert len(problem[2]) % 37, "the last chunk should be a partial one"
    assert knn(*problem, num_classes=4, ks=(7,)) == at_once


def test_knn_compiles_once_for_all_chunks(problem, monkeypatch):
    monkeypatch.setattr(knn_module, "_SIMILARITIES_PER_CHUNK", 400 * 23)
    before = knn_module._ranks._cache_size()
    knn(*problem, num_classes=4, ks=(9,))
    assert knn_module._ranks._cache_size() == before + 1


def test_knn_reports_the_k_it_used():
    features, labels = clusters(12, 3, seed=0)
    result = knn(features, labels, features, labels, num_classes=3, ks=(2, 20, 200))
    assert result["top1_by_k"] == {2: 1.0, 12: 1.0}


def test_knn_ignores_the_length_of_features(problem):
    train, train_labels, test, test_labels = problem
    longer = train * np.linspace(1, 9, len(train), dtype=np.float32)[:, None]
    expected = knn(*problem, num_classes=4, ks=(5,))
    assert knn(longer, train_labels, 100 * test, test_labels, num_classes=4, ks=(5,)) == expected


def test_knn_handles_tiny_temperatures_and_zero_rows():
    features, labels = clusters(30, 3, seed=0)
    train = np.vstack([features, np.zeros((1, 6), np.float32)])
    train_labels = np.append(labels, 0)
    result = knn(train, train_labels, features, labels, num_classes=3, ks=(31,), temperature=1e-4)
    assert (result["top1"], result["k"], result["top1_by_k"]) == (1.0, 31, {31: 1.0})


def objective_gradient(features, labels, l2, weights, biases):
    """Gradient of mean cross-entropy + l2 / 2 |W|^2 in float64."""
    features, weights = features.astype(np.float64), weights.astype(np.float64)
    logits = features @ weights + biases
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    errors = (probabilities - np.eye(len(biases))[labels]) / len(labels)
    return features.T @ errors + l2 * weights, errors.sum(axis=0)


@pytest.mark.parametrize("logits_per_chunk", [2**25, 4 * 3 * 70])
def test_fit_ends_where_the_gradient_vanishes(problem, monkeypatch, logits_per_chunk):
    # The second on four devices, of which the last has 99 rows of 399, in chunks of 70.
    monkeypatch.setattr(logistic_module, "_LOGITS_PER_CHUNK", logits_per_chunk)
    rows = 400
    if logits_per_chunk < 2**25:
        rows = 399
        monkeypatch.setattr(logistic_module, "_devices", jax.local_devices)
    features, labels = standardised(problem[0][:rows], problem[0])[0], problem[1][:rows]
    strengths = (1e-4, 1e-2, 1.0)
    solution = fit(features, labels.astype(np.int32), strengths, 4, tolerance=1e-6)
    assert solution.iterations < 1000
    assert np.all(solution.gradient <= 1e-6)
    for strength, weights, biases in zip(
        strengths, np.asarray(solution.weights), np.asarray(solution.biases), strict=True
    ):
        gradients = objective_gradient(features, labels, strength, weights, biases)
        assert max(np.abs(gradient).max() for gradient in gradients) < 2e-6


@pytest.mark.parametrize("rows", [400, 9])
def test_fit_equals_scikit_learn(problem, rows):
    features, labels = standardised(problem[0][:rows], problem[0])[0], problem[1][:rows]
    solution = fit(features, labels.astype(np.int32), [1e-1], 4, tolerance=1e-6)
    found = features @ np.asarray(solution.weights[0]) + np.asarray(solution.biases[0])
    expected = LogisticRegression(C=1 / (rows * 1e-1), tol=1e-9, max_iter=10_000)
    features = features.astype(np.float64)
    expected = expected.fit(features, labels).decision_function(features)
    # A constant added to the logits of all classes changes no probability.
    found = found[:, np.unique(labels)]
    np.testing.assert_allclose(
        found - found.mean(axis=1, keepdims=True),
        expected - expected.mean(axis=1, keepdims=True),
        atol=2e-4,
    )


def test_rows_are_divided_among_devices(monkeypatch):
    rows = np.arange(21, dtype=np.float32).reshape(7, 3)
    assert logistic_module._over_devices(rows).shape == (1, 7, 3)  # a CPU has one
    monkeypatch.setattr(logistic_module, "_devices", jax.local_devices)
    found = logistic_module._over_devices(rows)
    assert [shard.data.shape for shard in found.addressable_shards] == [(1, 2, 3)] * 4
    np.testing.assert_array_equal(np.reshape(found, (8, 3))[:7], rows)
    assert not np.any(np.asarray(found)[-1, -1])


def test_fit_does_not_depend_on_the_groups(problem, monkeypatch):
    features, labels = standardised(problem[0], problem[0])[0], problem[1].astype(np.int32)
    strengths = np.logspace(-4, 0, 5)
    together = fit(features, labels, strengths, 4, tolerance=1e-6)
    monkeypatch.setattr(logistic_module, "_GROUP", 2)
    apart = fit(features, labels, strengths, 4, tolerance=1e-6)
    np.testing.assert_allclose(apart.weights, together.weights, atol=1e-4)
    assert apart.weights.shape == together.weights.shape == (5, 12, 4)


def test_the_strengths_are_those_of_the_paper():
    np.testing.assert_allclose(logistic_module.L2_STRENGTHS, np.logspace(-6, 5, 45), rtol=1e-12)


def test_fit_stops_at_max_iterations(problem):
    features = standardised(problem[0], problem[0])[0]
    assert fit(features, problem[1].astype(np.int32), [1e-5], 4, max_iterations=3).iterations == 3


def test_fit_accepts_more_features_than_rows():
    features, labels = standardised(normal(0, 20, 50), normal(0, 1, 50))[0], np.arange(20) % 3
    solution = fit(features, labels.astype(np.int32), [1e-2], 3, tolerance=1e-6)
    gradient = objective_gradient(
        features, labels, 1e-2, np.asarray(solution.weights[0]), np.asarray(solution.biases[0])
    )
    assert max(np.abs(g).max() for g in gradient) < 2e-6


def test_logistic_chooses_on_the_validation_part_and_refits(problem):
    train, train_labels, test, test_labels = problem
    strengths = (1e-4, 1e-1, 10.0)
    result = logistic(*problem, num_classes=4, l2=strengths, validation_fraction=0.25, seed=3)

    def accuracies(fitted, fitted_labels, other, other_labels, l2):
        fitted, other = standardised(fitted, other)
        solution = fit(fitted, fitted_labels.astype(np.int32), l2, 4)
        return [
            float(np.mean((other @ weights + biases).argmax(axis=1) == other_labels))
            for weights, biases in zip(
                np.asarray(solution.weights), np.asarray(solution.biases), strict=True
            )
        ]

    order = np.random.default_rng(3).permutation(400)
    held, kept = order[:100], order[100:]
    expected = accuracies(
        train[kept], train_labels[kept], train[held], train_labels[held], strengths
    )
    assert result["validation_top1"] == dict(zip(strengths, expected, strict=True))
    best = max(expected)
    assert result["l2"] == max(
        s for s, accuracy in zip(strengths, expected, strict=True) if accuracy == best
    )
    assert [result["top1"]] == accuracies(train, train_labels, test, test_labels, [result["l2"]])


def test_logistic_never_chooses_by_the_test_set(problem):
    train, train_labels, test, test_labels = problem
    strengths = (1e-4, 1e-1, 10.0)
    first = logistic(*problem, num_classes=4, l2=strengths)
    permuted = np.random.default_rng(0).permutation(test_labels)
    second = logistic(train, train_labels, 5 * test + 1, permuted, num_classes=4, l2=strengths)
    assert first["l2"] == second["l2"]
    assert first["validation_top1"] == second["validation_top1"]
    assert first["top1"] != second["top1"]


def test_logistic_prefers_the_stronger_of_equals():
    train, test = clusters(120, 3, seed=0), clusters(60, 3, seed=1)
    result = logistic(*train, *test, num_classes=3, l2=(1e-2, 1e-1, 1e-3))
    assert (result["top1"], result["l2"]) == (1.0, 0.1)
    assert result["validation_top1"] == {1e-2: 1.0, 1e-1: 1.0, 1e-3: 1.0}


def test_logistic_does_not_depend_on_units(problem):
    train, train_labels, test, test_labels = problem
    expected = logistic(*problem, num_classes=4, l2=(1e-2, 1.0))
    # Powers of two, so that the standardised features are equal to the last bit.
    units = (2.0 ** (np.arange(12) - 6)).astype(np.float32)
    changed = logistic(
        train * units, train_labels, test * units, test_labels, num_classes=4, l2=(1e-2, 1.0)
    )
    assert changed == expected


def test_standardise_uses_train_statistics_and_zeroes_its_constants():
    train, other = 3 * normal(0, 200, 4) + 7, normal(1, 50, 4)
    train[:, 2] = 0.1
    fitted, applied = standardised(train, other)
    varying = [0, 1, 3]
    np.testing.assert_allclose(fitted[:, varying].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(fitted[:, varying].std(axis=0), 1, rtol=1e-5)
    expected = (other - train.mean(axis=0)) / train.std(axis=0)
    np.testing.assert_allclose(applied[:, varying], expected[:, varying], rtol=1e-4, atol=1e-5)
    assert not fitted[:, 2].any() and not applied[:, 2].any()
    assert fitted.dtype == applied.dtype == np.float32


@pytest.mark.parametrize("columns", [1, 3, 64, 130, 300])
def test_standardise_by_blocks_of_columns_changes_no_bit(columns):
    train, other = 3 * normal(0, 1000, columns) + 7, normal(1, 50, columns)
    mean, std = (f(axis=0, dtype=np.float64) for f in (train.mean, train.std))
    scale = (1 / std).astype(np.float32)
    for found, features in zip(standardised(train, other), (train, other), strict=True):
        np.testing.assert_array_equal(found, (features - mean.astype(np.float32)) * scale)


@pytest.mark.parametrize("protocol", PROTOCOLS.values())
def test_separable_clusters_are_classified_perfectly(protocol):
    top1 = protocol(*clusters(120, 3, seed=0), *clusters(60, 3, seed=1), num_classes=3)["top1"]
    assert top1 == 1.0


@pytest.mark.parametrize("protocol", PROTOCOLS.values())
def test_random_labels_stay_at_chance(protocol):
    labels = np.random.default_rng(0).integers(0, 4, 2000)
    result = protocol(
        normal(1, 1000, 8), labels[:1000], normal(2, 1000, 8), labels[1000:], num_classes=4
    )
    top1 = result["top1"]
    # Five standard deviations of the accuracy of 1,000 guesses.
    assert top1 == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 1000) ** 0.5)


@pytest.mark.parametrize("protocol", PROTOCOLS.values())
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_features": normal(0, 30, 6, 1)}, "train features have shape"),
        ({"test_features": normal(0, 0, 6)}, "test features have shape"),
        ({"test_features": normal(0, 12, 5)}, "same encoder"),
        ({"train_labels": np.arange(29) % 3}, "train labels have shape"),
        ({"train_labels": np.zeros(30)}, "integers"),
        ({"test_labels": np.full(12, 3)}, "num_classes is 3"),
        ({"test_labels": np.full(12, -1)}, "unlabelled"),
        ({"train_features": np.full((30, 6), np.nan, np.float32)}, "NaN"),
    ],
)
def test_unusable_input_raises_a_data_error(protocol, change, message):
    train, test = clusters(30, 3, seed=0), clusters(12, 3, seed=1)
    names = ("train_features", "train_labels", "test_features", "test_labels")
    arguments = dict(zip(names, (*train, *test), strict=True)) | change
    with pytest.raises(DataError, match=message):
        protocol(**arguments, num_classes=3)


@pytest.mark.parametrize(
    ("protocol", "options", "message"),
    [
        (knn, {"ks": ()}, "ks"),
        (knn, {"ks": (0, 5)}, "ks"),
        (knn, {"temperature": 0.0}, "temperature"),
        (logistic, {"l2": ()}, "l2"),
        (logistic, {"l2": (0.0, 1.0)}, "l2"),
        (logistic, {"validation_fraction": 0.0}, "validation_fraction"),
        (logistic, {"validation_fraction": 0.99}, "validation_fraction"),
    ],
)
def test_options_out_of_range_raise_a_config_error(protocol, options, message):
    data = clusters(30, 3, seed=0)
    with pytest.raises(ConfigError, match=message):
        protocol(*data, *data, num_classes=3, **options)
