"""A classifier from a few labels, and suggestions, on separate clusters of points."""

import numpy as np
import pytest

from byol_jax.errors import ConfigError, DataError
from byol_jax.evaluate import few_labels

CLASSES = 4


@pytest.fixture(scope="module")
def clusters():
    """Features of 200 images, float32, and the class of each."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % CLASSES
    centres = 3 * np.eye(CLASSES, 8)
    return np.float32(centres[labels] + rng.normal(size=(200, 8)) + 5), labels


@pytest.fixture(scope="module")
def found(clusters):
    """Probabilities from the first 20 labels."""
    features, labels = clusters
    return few_labels.probabilities(features, np.arange(20), labels[:20])


def test_few_labels_predict_the_others(clusters, found):
    _, labels = clusters
    assert found.shape == (200, CLASSES) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert np.mean(found.argmax(axis=1) == labels) > 0.85


def test_probabilities_are_a_logistic_regression_with_a_temperature(clusters, found):
    from sklearn.linear_model import LogisticRegression

    features, labels = clusters
    rows = np.arange(20)
    scaled = features - features.mean(axis=0)
    scaled *= np.sqrt(8) / np.linalg.norm(scaled, axis=1, keepdims=True)
    model = LogisticRegression(C=0.1, max_iter=1000).fit(scaled[rows], labels[rows])
    logits = np.log(model.predict_proba(scaled))
    ratio = (logits[:, 0] - logits[:, 1]) / np.log(found[:, 0] / found[:, 1])
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-3)
    assert np.isclose(few_labels.TEMPERATURES, np.median(ratio), rtol=1e-3).any()


def test_labels_that_say_nothing_make_it_unsure(clusters, found):
    features, _ = clusters
    random = np.random.default_rng(0).integers(CLASSES, size=20)
    unsure = few_labels.probabilities(features, np.arange(20), random)
    assert unsure.max(axis=1).mean() < 0.45 < 0.5 < found.max(axis=1).mean()


def test_one_label_of_each_class_is_enough(clusters):
    features, labels = clusters
    found = few_labels.probabilities(features, np.arange(2), np.array([0, 1]))
    assert found.shape == (200, 2) and np.isfinite(found).all()
    assert np.mean(found[labels == 0].argmax(axis=1) == 0) > 0.6


def test_the_first_suggestions_are_of_all_clusters(clusters):
    features, labels = clusters
    chosen = few_labels.suggest(features, CLASSES)
    assert sorted(labels[chosen]) == list(range(CLASSES))


def test_later_suggestions_are_uncertain_unlabelled_and_different(clusters):
    features, labels = clusters
    rows = np.arange(20)
    chosen = few_labels.suggest(features, 5, rows, labels[rows])
    scaled = few_labels._scaled(features)
    found = few_labels._fit(scaled[rows], labels[rows]).predict_proba(scaled)
    assert len({*chosen}) == 5 and not {*chosen} & {*rows}
    ordered = np.sort(found, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    assert margins[chosen].max() <= np.sort(margins[20:])[5 * few_labels.CANDIDATES - 1]
    assert (np.diff(margins[chosen]) >= 0).all()


def test_copies_of_one_image_are_suggested_once_each():
    features = np.float32(np.repeat(np.eye(2), [30, 1], axis=0))
    chosen = few_labels.suggest(features, 6)
    assert len({*chosen}) == 6


def test_at_the_end_all_that_are_left_are_suggested(clusters):
    features, _ = clusters
    assert few_labels.suggest(features, 9, np.arange(197)).tolist() == [197, 198, 199]
    with pytest.raises(DataError, match="all images have a label"):
        few_labels.suggest(features, 9, np.arange(200))


def test_what_cannot_be_computed_is_refused(clusters):
    features, _ = clusters
    with pytest.raises(DataError, match="all labels are of one class"):
        few_labels.probabilities(features, np.arange(3), np.zeros(3, int))
    with pytest.raises(ConfigError, match="0 images to label"):
        few_labels.suggest(features, 0)
