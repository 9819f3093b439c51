"""Features of a complete split in memory, and the checks that every protocol makes of them."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from byol_jax.errors import DataError

PIXELS = 32  # the largest height and width of the baseline of raw pixels


def collect(
    embed: Callable[[Any], Any],
    batches: Iterable[tuple[Any, np.ndarray | None]],
    num_examples: int,
    allocate: Callable[[tuple[int, ...], Any], np.ndarray] = np.empty,
) -> tuple[Any, np.ndarray]:
    """Embeds every batch, into arrays that are allocated once.

    Args:
      embed: images of a batch -> float32 (b, d), such as `pixels`; or a pytree of such arrays, for
        several encoders in one pass over the images.
      batches: images, whatever `embed` takes, and labels, int32 (b,), or None.
      num_examples: at least the number n of images in all batches.
      allocate: (shape, dtype) -> an array for features, such as one that is mapped to a file.

    Returns:
      Features, float32 (n, d) or a pytree as `embed` returns it; and labels, int32 (n,), -1 where
      there are none.

    Raises:
      DataError: there is no image at all.
    """
    features, labels, count = None, np.empty(num_examples, np.int32), 0
    for images, batch_labels in batches:
        rows = embed(images)
        if features is None:
            features = jax.tree.map(lambda x: allocate((num_examples, *x.shape[1:]), x.dtype), rows)
        end = count + len(jax.tree.leaves(rows)[0])
        for array, values in zip(jax.tree.leaves(features), jax.tree.leaves(rows), strict=True):
            array[count:end] = values
        labels[count:end] = -1 if batch_labels is None else batch_labels
        count = end
    if not count:
        raise DataError("there is no image to evaluate: none of them could be decoded.")
    return jax.tree.map(lambda x: x[:count], (features, labels))


def pixels(images: np.ndarray) -> np.ndarray:
    """The images themselves, as a baseline without encoder; larger ones shrunk to 32 pixels.

    Args:
      images: uint8 (b, height, width, channels).

    Returns:
      float32 (b, d), 0 to 1 where nothing is shrunk; bicubic resizing may go a little beyond.
    """
    shape = (*(min(side, PIXELS) for side in images.shape[1:3]), images.shape[3])
    if shape != images.shape[1:]:  # one by one: a batch of large images in float32 is large
        images = np.stack([jax.image.resize(np.float32(x), shape, "bicubic") for x in images])
    return images.reshape(len(images), -1).astype(np.float32) / 255


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Features (..., d), each divided by its length; those that are all 0 stay so."""
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.where(norms > 0, norms, 1)


def check_splits(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    num_classes: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the four arrays as float32 features and int32 labels, copied only where necessary.

    Raises:
      DataError: features are not non-empty, finite (n, d) arrays with the same d; or labels are not
        n integers in [0, num_classes).
    """
    train = _check_split("train", train_features, train_labels, num_classes)
    test = _check_split("test", test_features, test_labels, num_classes)
    if train[0].shape[1] != test[0].shape[1]:
        raise DataError(
            f"train features have {train[0].shape[1]} columns and test features "
            f"{test[0].shape[1]}: compute both with the same encoder."
        )
    return *train, *test


def _check_split(split, features, labels, num_classes):
    labels = np.asarray(labels)
    features = check_features(split, features)
    if labels.shape != features.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{split} labels have shape {labels.shape} and dtype {labels.dtype}: pass "
            f"{len(features)} integers, one for each row of the features."
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(
            f"{split} labels range from {labels.min()} to {labels.max()} but num_classes is "
            f"{num_classes}: pass the number of classes of this dataset and drop unlabelled images."
        )
    return features, labels.astype(np.int32)


def check_features(split: str, features: np.ndarray) -> np.ndarray:
    """Features (n, d) as contiguous float32; copied only where necessary.

    Raises:
      DataError: they are empty, of another shape, or not finite.
    """
    features = np.asarray(features)
    if features.ndim != 2 or features.size == 0:
        raise DataError(
            f"{split} features have shape {features.shape}: pass a non-empty (n, d) array with one "
            "row per image."
        )
    features = np.ascontiguousarray(features, dtype=np.float32)
    if not np.isfinite(features).all():
        raise DataError(
            f"{split} features contain NaN or infinity: evaluate a checkpoint from before training "
            "diverged."
        )
    return features
