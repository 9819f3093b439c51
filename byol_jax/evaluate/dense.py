"""A linear segmentation of frozen maps of features: what an encoder knows of where things are.

Each cell of a map gets the class of most of its pixels, and a multinomial logistic regression
predicts it from the cell's features; its L2 strength is chosen on held-out images, as in
logistic.py. Its logits are resized (bilinearly) to the mask, and each pixel gets the class of the
largest. This is the linear probe of DINOv2 (arXiv 2304.07193, section 7.4) without its SGD.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from byol_jax.errors import DataError
from byol_jax.evaluate.logistic import fit, scaling

UNLABELLED = -1
STRENGTHS = tuple(10.0**power for power in range(-5, 2))


def dense(
    train_maps: np.ndarray,
    train_masks: Sequence[np.ndarray],
    test_maps: np.ndarray,
    test_masks: Sequence[np.ndarray],
    *,
    l2: Sequence[float] = STRENGTHS,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> dict[str, Any]:
    """Mean intersection over union of a linear segmentation.

    Args:
      train_maps: (n, h, w, d) float32, finite; n >= 2.
      train_masks: n masks, integers (height, width) of any size; negative where nothing is known.
      test_maps: (m, h, w, d) float32, finite.
      test_masks: m masks, likewise.
      l2: strengths to choose from.
      validation_fraction: share of the training images to choose on; at least one of them.
      seed: of the permutation that picks them.

    Returns:
      'miou': the mean over classes in the test masks of their intersection over union, 0 for those
      that no training cell has; 'pixel_accuracy'; 'iou': by class; 'l2'; 'cells': how many were
      fitted.

    Raises:
      DataError: shapes do not fit, a value is not finite, there are fewer than two classes in the
        training cells, or no labelled test pixel.
    """
    for split, maps, masks in (("train", train_maps, train_masks), ("test", test_maps, test_masks)):
        _check(split, maps, masks)
    labels = np.stack([cell_labels(mask, *train_maps.shape[1:3]) for mask in train_masks])
    classes = np.unique(labels[labels != UNLABELLED])
    if len(train_maps) < 2 or len(classes) < 2:
        raise DataError(
            f"dense has {len(train_maps)} training images with {len(classes)} classes: name two "
            "images or more, of two classes or more."
        )
    is_labelled = (labels != UNLABELLED).any(axis=(1, 2))
    order = np.random.default_rng(seed).permutation(np.flatnonzero(is_labelled))
    if len(order) < 2:
        raise DataError("dense needs two training images with labelled pixels: label more.")
    count = min(max(1, round(len(order) * validation_fraction)), len(order) - 1)
    held_out, fitted = order[:count], order[count:]

    def cells(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        known = labels[images] != UNLABELLED
        return train_maps[images][known], np.searchsorted(classes, labels[images][known])

    rows, given = cells(fitted)
    heads = _Heads(rows, given, l2, len(classes))
    others, wanted = cells(held_out)
    shares = [float(np.mean(heads.logits(others, i).argmax(1) == wanted)) for i in range(len(l2))]
    chosen = max(zip(shares, l2, strict=True))[1]
    rows, given = cells(order)
    heads = _Heads(rows, given, [chosen], len(classes))

    values = np.unique(np.concatenate([mask[mask >= 0] for mask in test_masks]))
    known = np.union1d(classes, values)
    confusion = np.zeros((len(known), len(known)), np.int64)  # true class, predicted class
    for features, mask in zip(test_maps, test_masks, strict=True):
        logits = enlarge(heads.logits(features, 0), *mask.shape)
        predicted = classes[logits.argmax(axis=-1)]
        is_known = mask >= 0
        pairs = np.searchsorted(known, mask[is_known]), np.searchsorted(known, predicted[is_known])
        np.add.at(confusion, pairs, 1)
    hits = np.diagonal(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    iou = {int(v): float(hits[i] / union[i]) for i, v in enumerate(known) if v in values}
    return {
        "miou": float(np.mean(list(iou.values()))),
        "pixel_accuracy": float(hits.sum() / confusion.sum()),
        "iou": iou,
        "l2": chosen,
        "cells": len(rows),
    }


def cell_labels(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """The most frequent class of the labelled pixels of each cell of a grid.

    Args:
      mask: integers (rows, columns), negative where nothing is known.
      height: of the grid.
      width: of the grid.

    Returns:
      Integers (height, width), UNLABELLED where a cell has no labelled pixel. Of classes that are
      as frequent, the lowest.
    """
    rows = np.arange(mask.shape[0]) * height // mask.shape[0]
    columns = np.arange(mask.shape[1]) * width // mask.shape[1]
    cells = (rows[:, None] * width + columns).ravel()
    is_known = mask.ravel() >= 0
    classes, index = np.unique(mask.ravel()[is_known], return_inverse=True)
    if not len(classes):
        return np.full((height, width), UNLABELLED)
    counts = np.zeros((height * width, len(classes)), np.int64)
    np.add.at(counts, (cells[is_known], index), 1)
    found = np.where(counts.any(axis=1), classes[counts.argmax(axis=1)], UNLABELLED)
    return found.reshape(height, width)


def enlarge(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes (h, w, d) to (height, width, d), bilinearly, as `jax.image.resize` does.

    Without JAX, which would compile it for every size of a mask.
    """

    def weights(size: int, before: int) -> np.ndarray:
        position = np.clip((np.arange(size) + 0.5) * before / size - 0.5, 0, before - 1)
        distance = np.abs(position[:, None] - np.arange(before))
        return np.maximum(1 - distance, 0).astype(maps.dtype)

    rows, columns = weights(height, maps.shape[0]), weights(width, maps.shape[1])
    return np.einsum("yh,hwd,xw->yxd", rows, maps, columns, optimize=True)


class _Heads:
    """Logistic regressions of cells for several strengths."""

    def __init__(
        self, features: np.ndarray, labels: np.ndarray, l2: Sequence[float], num_classes: int
    ):
        self._mean, self._scale = scaling(features)
        found = fit(self._standardised(features), labels.astype(np.int32), l2, num_classes)
        self._weights, self._biases = np.asarray(found.weights), np.asarray(found.biases)

    def _standardised(self, features: np.ndarray) -> np.ndarray:
        return (features - self._mean) * self._scale

    def logits(self, features: np.ndarray, index: int) -> np.ndarray:
        """(..., d) features -> (..., classes) with the strength of an index."""
        return self._standardised(features) @ self._weights[index] + self._biases[index]


def _check(split: str, maps: np.ndarray, masks: Sequence[np.ndarray]) -> None:
    if maps.ndim != 4 or not maps.size or len(maps) != len(masks):
        raise DataError(
            f"{split} maps have shape {maps.shape} for {len(masks)} masks: pass (n, h, w, d) with "
            "a mask for each."
        )
    if not np.isfinite(maps).all():
        raise DataError(f"{split} maps contain NaN or infinity.")
    if not any((mask >= 0).any() for mask in masks):
        raise DataError(f"no pixel of the {split} masks has a class.")
