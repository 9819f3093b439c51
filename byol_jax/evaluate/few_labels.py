"""A classifier from a few labels, and the images that are worth labelling next.

Features are centred by all images, labelled or not, and scaled to a length of sqrt(d). Then one
strength of the L2 penalty serves any number of labels: on Imagenette it is better than ridge
regression for 50 labels or fewer, and equal for 100 (docs/next_steps.md).
"""

import numpy as np

from byol_jax.errors import ConfigError, DataError
from byol_jax.evaluate import kmeans
from byol_jax.evaluate.features import check_features, unit_rows

INVERSE_STRENGTH = 0.1  # scikit-learn's C
FOLDS = 10
TEMPERATURES = 2.0 ** np.arange(-1, 5, 0.25)
PRIOR = 0.5  # standard deviation of a temperature's logarithm
CANDIDATES = 10  # for each suggestion, the least certain images among which it is chosen


def probabilities(features: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probabilities of classes, by multinomial logistic regression on the labelled images.

    The logits of so few images are too sure. They are divided by a temperature with the smallest
    log loss on images that were held out, a tenth at a time. A held-out image of a class that is
    not among the others counts with the mean of the logarithms. The temperature's logarithm has a
    normal prior with mean 0 and standard deviation 0.5.

    Args:
      features: (n, d) float32, finite: of all images.
      rows: integers (m,): indices of the labelled images, distinct.
      labels: integers (m,) from 0 to the largest, each of them at least once.

    Returns:
      float32 (n, classes).

    Raises:
      DataError: the labels are of fewer than two classes, or features do not have this shape or
        values.
    """
    labels, rows = np.asarray(labels), np.asarray(rows)
    if len(np.unique(labels)) < 2:
        raise DataError("all labels are of one class: label images of another one too.")
    scaled = _scaled(features)
    known = scaled[rows]
    logits = _logits(_fit(known, labels), scaled)
    return np.float32(_softmax(logits / _temperature(known, labels)))


def suggest(
    features: np.ndarray,
    count: int,
    rows: np.ndarray = (),
    labels: np.ndarray = (),
    seed: int = 0,
) -> np.ndarray:
    """Images that are worth labelling next: uncertain ones that differ from each other.

    Those nearest to the centres of `count` clusters, which k-means finds: of all images that have
    no label as long as there is no classifier, later of the 10 `count` whose two most probable
    classes are the closest.

    Args:
      features: (n, d) float32, finite: of all images.
      count: how many, >= 1; fewer are returned if there are no more without a label.
      rows: integers: indices of the images that have a label.
      labels: integers: their labels; () for no classifier. Its probabilities have no temperature
        here: on Imagenette the images that it then suggests are the better ones.
      seed: of k-means.

    Returns:
      int64 (count,): indices of images without a label, the most uncertain first, or the largest
      cluster first.

    Raises:
      ConfigError: count is below 1.
      DataError: all images have a label, or features do not have this shape or values.
    """
    if count < 1:
        raise ConfigError(f"{count} images to label: ask for one or more.")
    scaled = _scaled(features)
    candidates = np.setdiff1d(np.arange(len(scaled)), rows)
    if not len(candidates):
        raise DataError("all images have a label: there is none to suggest.")
    margins = None
    if len(np.unique(labels)) > 1:
        found = _fit(scaled[rows], labels).predict_proba(scaled[candidates])
        largest = np.partition(found, -2, axis=1)
        margins = largest[:, -1] - largest[:, -2]
        least = np.argsort(margins, kind="stable")[: CANDIDATES * count]
        candidates, margins = candidates[least], margins[least]
    if count >= len(candidates):
        return candidates
    model = kmeans.fit(scaled[candidates], count, starts=1, seed=seed)
    centres, sizes = model.cluster_centers_, np.bincount(model.labels_, minlength=count)
    chosen: list[int] = []
    for centre in centres[np.argsort(-sizes, kind="stable")]:
        distances = np.sum((scaled[candidates] - centre) ** 2, axis=1)
        distances[chosen] = np.inf  # two centres may have the same nearest image
        chosen.append(int(distances.argmin()))
    if margins is not None:
        chosen.sort(key=lambda index: margins[index])
    return candidates[chosen]


def _scaled(features: np.ndarray) -> np.ndarray:
    features = check_features("image", features)
    return unit_rows(features - features.mean(axis=0)) * np.sqrt(np.float32(features.shape[1]))


def _fit(features: np.ndarray, labels: np.ndarray):
    from sklearn.linear_model import LogisticRegression  # late: its import takes a second

    return LogisticRegression(C=INVERSE_STRENGTH, max_iter=1000).fit(features, labels)


def _temperature(features: np.ndarray, labels: np.ndarray) -> float:
    """What to divide logits by, as `probabilities` describes."""
    order = np.random.default_rng(0).permutation(len(labels))
    held_out = []  # of each part: logits, and which of them counts how much
    for part in np.array_split(order, min(FOLDS, len(labels))):
        others = np.setdiff1d(order, part)
        if len(np.unique(labels[others])) < 2:
            continue
        model = _fit(features[others], labels[others])
        weights = np.float64(labels[part][:, None] == model.classes_)
        weights[~weights.any(axis=1)] = 1 / len(model.classes_)
        held_out.append((_logits(model, features[part]), weights))

    def loss(temperature: float) -> float:
        of_data = sum(
            -np.sum(weights * np.log(_softmax(logits / temperature)))
            for logits, weights in held_out
        )
        return of_data + np.log(temperature) ** 2 / (2 * PRIOR**2)

    return min(TEMPERATURES, key=loss)


def _logits(model, features: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(model.predict_proba(features), 1e-12, dtype=np.float64))


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
