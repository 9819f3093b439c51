"""The paper's linear evaluation against plain NumPy and scikit-learn's optimum."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from byol_jax.errors import DataError
from byol_jax.evaluate import linear

RATES = (0.4, 0.1)
CLASSES = 3


def problem(rows, seed=0):
    """Three overlapping clusters: the optimum is finite."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows, dtype=np.int32) % CLASSES
    centres = 2 * np.eye(CLASSES, 4)
    return (centres[labels] + rng.standard_normal((rows, 4))).astype(np.float32), labels


def trained(features, labels, steps, rates=RATES):
    heads = linear.init(4, CLASSES, len(rates))
    for _ in range(steps):
        heads = linear.update(heads, features, labels, total_steps=steps, rates=rates)
    return heads


def numpy_sgd(features, labels, steps, rate):
    """Nesterov's momentum as in Sutskever et al. 2013, rewritten for the point that it looks at."""
    weights, biases = np.zeros((4, CLASSES)), np.zeros(CLASSES)
    velocities = [np.zeros_like(weights), np.zeros_like(biases)]
    for step in range(steps):
        logits = features @ weights + biases
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        errors = (probabilities - np.eye(CLASSES)[labels]) / len(labels)
        lr = rate * len(labels) / 256 * (1 + np.cos(np.pi * step / steps)) / 2
        for i, gradient in enumerate([features.T @ errors, errors.sum(axis=0)]):
            velocities[i] = 0.9 * velocities[i] + gradient
            [weights, biases][i][...] -= lr * (gradient + 0.9 * velocities[i])
    return weights, biases


def test_every_head_equals_sgd_in_numpy():
    features, labels = problem(64)
    heads = trained(features, labels, steps=7)
    for i, rate in enumerate(RATES):
        for found, expected in zip(heads.params, numpy_sgd(features, labels, 7, rate), strict=True):
            np.testing.assert_allclose(found[i], expected, rtol=1e-5, atol=1e-6)
    assert heads.step == 7


def test_heads_reach_the_optimum_of_scikit_learn():
    features, labels = problem(256)
    heads = trained(features, labels, steps=1000)
    best = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(features, labels)
    for weights, biases in zip(*heads.params, strict=True):
        found = features @ np.asarray(weights) + np.asarray(biases)
        expected = best.decision_function(features)
        # A constant added to the logits of all classes changes no probability.
        np.testing.assert_allclose(
            found - found.mean(axis=1, keepdims=True),
            expected - expected.mean(axis=1, keepdims=True),
            atol=2e-3,
        )


def heads_with(*weights):
    heads = linear.init(4, CLASSES, len(weights))
    return heads._replace(params=(np.float32(weights), heads.params[1]))


GOOD, BAD = np.eye(4, CLASSES), -np.eye(4, CLASSES)


@pytest.mark.parametrize(
    ("weights", "chosen"), [((BAD, GOOD), 0.1), ((GOOD, BAD), 0.4), ((GOOD, GOOD), 0.1)]
)
def test_the_rate_is_chosen_on_held_out_images(weights, chosen):
    held_out, (features, labels) = problem(60), problem(90, seed=1)
    result = linear.evaluate(
        heads_with(*weights), *held_out, features, labels, num_classes=CLASSES, rates=RATES
    )
    assert result["learning_rate"] == chosen
    right = features[:, :CLASSES].argmax(axis=1) == labels
    assert result["top1"] == right.mean()
    held_out_right = (held_out[0][:, :CLASSES].argmax(axis=1) == held_out[1]).mean()
    assert result["validation_top1"][chosen] == held_out_right
    assert (result["steps"], len(result["per_class"])) == (0, CLASSES)


def test_test_labels_choose_nothing():
    held_out, (features, labels) = problem(60), problem(90, seed=1)
    results = [
        linear.evaluate(
            heads_with(BAD, GOOD), *held_out, features, given, num_classes=CLASSES, rates=RATES
        )
        for given in (labels, (labels + 1) % CLASSES)
    ]
    assert results[0]["validation_top1"] == results[1]["validation_top1"]
    assert results[0]["learning_rate"] == results[1]["learning_rate"] == 0.1
    assert results[0]["top1"] > 0.6 > 0.4 > results[1]["top1"]


def test_unusable_features_raise_a_data_error():
    features, labels = problem(60)
    with pytest.raises(DataError, match="NaN"):
        linear.evaluate(
            heads_with(GOOD), features, labels, features * np.nan, labels, num_classes=CLASSES
        )
