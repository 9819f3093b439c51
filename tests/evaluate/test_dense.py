"""The linear segmentation against plain loops, and masks that it should learn."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from byol_jax.errors import DataError
from byol_jax.evaluate import dense
from byol_jax.evaluate.dense import UNLABELLED, cell_labels, enlarge


def scenes(count, seed, size=6):
    """Maps whose first two features say the class of a cell, and masks four times as large."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, (count, size, size))
    maps = np.concatenate([3 * np.eye(3)[classes], np.zeros((*classes.shape, 2))], axis=-1)
    maps += 0.3 * rng.standard_normal(maps.shape)
    numbers = np.array([4, 7, 9])[classes]
    return maps.astype(np.float32), list(numbers.repeat(4, axis=1).repeat(4, axis=2))


def test_cells_have_the_most_frequent_class_of_their_pixels():
    rng = np.random.default_rng(0)
    mask = rng.integers(-1, 3, (13, 10))
    found = cell_labels(mask, 4, 3)
    for i in range(4):
        for j in range(3):
            pixels = [
                mask[y, x]
                for y in range(13)
                for x in range(10)
                if (y * 4 // 13, x * 3 // 10) == (i, j) and mask[y, x] >= 0
            ]
            counts = [pixels.count(value) for value in range(3)]
            assert found[i, j] == np.argmax(counts)
    assert (cell_labels(np.full((4, 4), -1), 2, 2) == UNLABELLED).all()
    mask = np.full((4, 4), -1)
    mask[0, 0] = 200
    assert cell_labels(mask, 2, 2).tolist() == [[200, UNLABELLED], [UNLABELLED, UNLABELLED]]


@pytest.mark.parametrize("size", [(13, 20), (5, 4)])
def test_maps_are_enlarged_as_by_jax(size):
    maps = np.random.default_rng(0).standard_normal((5, 4, 3)).astype(np.float32)
    want = jax.image.resize(maps, (*size, 3), "bilinear")
    np.testing.assert_allclose(enlarge(maps, *size), want, rtol=1e-5, atol=1e-6)


def test_classes_that_features_tell_are_found():
    result = dense(*scenes(12, 0), *scenes(6, 1))
    # Between cells the classes are interpolated, which no mask of blocks can be equal to.
    assert result["miou"] > 0.7 and result["pixel_accuracy"] > 0.8
    assert list(result["iou"]) == [4, 7, 9] and result["cells"] == 12 * 36


def test_intersection_over_union_equals_a_plain_loop():
    """Masks of the size of the maps, so that nothing is interpolated."""
    (train, train_masks), (test, test_masks) = scenes(8, 0), scenes(5, 1)
    small = [mask[::4, ::4] for mask in train_masks], [mask[::4, ::4] for mask in test_masks]
    noisy = test + 2 * np.random.default_rng(2).standard_normal(test.shape).astype(np.float32)
    small[1][0][:2] = -1  # unlabelled pixels count nowhere
    small[1][1][0, 0] = 5  # a class that was never trained
    result = dense(train, small[0], noisy, small[1], l2=[1e-3])
    cells, wanted = train.reshape(-1, 5).astype(np.float64), np.ravel(small[0])
    mean, std = cells.mean(axis=0), cells.std(axis=0)
    classifier = LogisticRegression(C=1 / (len(cells) * 1e-3), tol=1e-8, max_iter=1000)
    classifier.fit((cells - mean) / std, wanted)
    predicted = classifier.predict((noisy.reshape(-1, 5) - mean) / std)
    labels = np.concatenate([mask.ravel() for mask in small[1]])
    known = labels >= 0
    labels, predicted = labels[known], predicted[known]
    iou = {
        int(value): np.sum((labels == value) & (predicted == value))
        / np.sum((labels == value) | (predicted == value))
        for value in np.unique(labels)
    }
    assert result["iou"] == pytest.approx(iou) and result["iou"][5] == 0
    assert result["miou"] == pytest.approx(np.mean(list(iou.values())))
    assert result["pixel_accuracy"] == np.mean(labels == predicted)


def test_the_strength_is_chosen_on_training_images():
    train, test = scenes(12, 0), scenes(6, 1)
    moved = [np.where(mask == 4, 7, mask) for mask in test[1]]
    assert dense(*train, *test)["l2"] == dense(*train, test[0], moved)["l2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda maps, masks: (maps[:1], masks[:1]), "1 training images with"),
        (lambda maps, masks: (maps, masks[:-1]), "with a mask for each"),
        (lambda maps, masks: (maps * np.nan, masks), "NaN"),
        (lambda maps, masks: (maps, [np.full_like(m, -1) for m in masks]), "no pixel"),
        (lambda maps, masks: (maps, [np.full_like(m, 3) for m in masks]), "with 1 classes"),
    ],
)
def test_unusable_input_is_one_line(change, message):
    with pytest.raises(DataError, match=message):
        dense(*change(*scenes(4, 0)), *scenes(2, 1))
