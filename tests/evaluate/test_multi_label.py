"""Images with several labels against plain loops and scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from byol_jax.errors import ConfigError, DataError
from byol_jax.evaluate import multi_label
from byol_jax.evaluate.logistic import fit, standardise
from byol_jax.evaluate.multi_label import average_precisions

ROWS, COLUMNS, CLASSES = 300, 8, 3


@pytest.fixture(scope="module")
def problem():
    """Features, and which of three classes each row has, independent but for the features."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    logits = 2 * features @ rng.standard_normal((COLUMNS, CLASSES)) - 1
    labels = logits + rng.logistic(size=logits.shape) > 0
    return features[:200], labels[:200], features[200:], labels[200:]


def slow_average_precision(scores, positive):
    """Section 4.2 of Everingham et al., threshold by threshold."""
    points = []
    for threshold in scores:
        retrieved = scores >= threshold
        hits = (retrieved & positive).sum()
        points.append((hits / positive.sum(), hits / retrieved.sum()))
    total = 0
    for tenth in range(11):
        reached = [precision for recall, precision in points if 10 * recall >= tenth - 1e-9]
        total += max(reached) / 11
    return total


def test_average_precision_equals_a_plain_loop(problem):
    scores = np.random.default_rng(1).standard_normal((ROWS, CLASSES))
    labels = np.vstack([problem[1], problem[3]])
    found = average_precisions(scores, labels)
    want = [slow_average_precision(scores[:, c], labels[:, c]) for c in range(CLASSES)]
    np.testing.assert_allclose(found, want, rtol=1e-12)


def test_average_precision_of_known_orders():
    scores = np.arange(10.0)[::-1, None]
    positive = np.zeros((10, 1), bool)
    assert average_precisions(scores, positive) == [None]
    positive[:3] = True
    assert average_precisions(scores, positive) == [1.0]
    constant = average_precisions(np.zeros((10, 1)), positive)
    assert constant[0] == pytest.approx(0.3)  # those without the class come first
    assert average_precisions(-scores, positive)[0] == pytest.approx(0.3)


def test_the_weights_are_those_of_scikit_learn(problem):
    features, labels, *_ = problem
    centred, _ = standardise(features.copy(), features.copy())
    found = fit(centred, labels, [1e-2], CLASSES, tolerance=1e-7, max_iterations=5000)
    for c in range(CLASSES):
        reference = LogisticRegression(C=1 / (len(labels) * 1e-2), tol=1e-9, max_iter=1000)
        reference.fit(centred, labels[:, c])
        np.testing.assert_allclose(found.weights[0, :, c], reference.coef_[0], atol=2e-4)
        np.testing.assert_allclose(found.biases[0, c], reference.intercept_[0], atol=2e-4)


def test_the_strength_is_chosen_on_held_out_rows(problem):
    strengths = (1e-3, 1e3)
    found = multi_label(*problem, l2=strengths)
    assert list(found["validation_map"]) == list(strengths)
    assert found["map"] == pytest.approx(np.mean(found["per_class"])) and found["map"] > 0.7
    assert found["validation_map"][found["l2"]] == max(found["validation_map"].values())
    shuffled = np.random.default_rng(0).permutation(problem[3])
    assert multi_label(*problem[:3], shuffled, l2=strengths)["l2"] == found["l2"]


def test_mistakes_are_one_line(problem):
    train, labels, test, wanted = problem
    for arrays, message in [
        ((train, labels.astype(int), test, wanted), "pass bool"),
        ((train, labels, test, wanted[1:]), "test labels have shape"),
        ((train, labels, test[:, 1:], wanted), "differ in their features"),
        ((train, labels, test, np.zeros_like(wanted)), "a class has no test image"),
        ((train * np.nan, labels, test, wanted), "contain NaN"),
    ]:
        with pytest.raises(DataError, match=message):
            multi_label(*arrays)
    with pytest.raises(ConfigError, match="validation_fraction"):
        multi_label(*problem, validation_fraction=1)
