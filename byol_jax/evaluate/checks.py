"""What every evaluator asks of its features and labels, before any time is spent on them."""

import numpy as np

from byol_jax.errors import UserError


def check_split(
    split: str, features: np.ndarray, labels: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns one split as (n, d) float32 features and (n,) int32 labels.

    Args:
        split: the name used in error messages, 'train' or 'test'.
        features: (n, d) real numbers, all finite, n >= 1 and d >= 1.
        labels: (n,) integers in [0, num_classes).
        num_classes: at least 1.

    Raises:
        UserError: if any of that does not hold.
    """
    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim != 2 or features.size == 0:
        raise UserError(
            f"{split} features have shape {features.shape}: pass a non-empty (n, d) array with one "
            "row per image."
        )
    if labels.shape != features.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{split} labels have shape {labels.shape} and dtype {labels.dtype}: pass "
            f"{len(features)} integers, one for each row of the features."
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"{split} labels go from {labels.min()} to {labels.max()} but num_classes is "
            f"{num_classes}: pass the number of classes of this dataset and drop unlabelled images."
        )
    features = np.ascontiguousarray(features, dtype=np.float32)
    if not np.isfinite(features).all():
        raise UserError(
            f"{split} features contain NaN or infinity: evaluate a checkpoint from before training "
            "diverged."
        )
    return features, labels.astype(np.int32)


def check_same_width(train_features: np.ndarray, test_features: np.ndarray) -> None:
    """Raises UserError unless (n, d) train and (m, d) test features share d."""
    if train_features.shape[1] != test_features.shape[1]:
        raise UserError(
            f"train features have {train_features.shape[1]} columns and test features "
            f"{test_features.shape[1]}: compute both with the same encoder."
        )
