"""Everything that a page shows about features: computed here, in the order of the sections."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from byol_jax.errors import DataError
from byol_jax.evaluate.duplicates import whitening
from byol_jax.evaluate.label_free import spectrum
from byol_jax.evaluate.neighbours import nearest
from byol_jax.report import groups, layout, suspects, votes
from byol_jax.report.features import PIXELS, TRAINED, UNTRAINED, Images

SHOWN = 8  # neighbours of an image

Log = Callable[[str], None]


class Findings(NamedTuple):
    """What is found in features of some images."""

    scores: dict[str, dict[str, Any]]  # numbers of each row: see `_scores`
    tested_on: str | None  # what the vote was tested on; None without labels
    confusion: np.ndarray | None  # of the trained encoder: see `votes.confusion_matrix`
    neighbours: dict[str, tuple[np.ndarray, np.ndarray]]  # of TRAINED and UNTRAINED, (n, <= SHOWN)
    duplicates: list[suspects.Pair] | None  # None if the encoder has collapsed
    leaks: list[suspects.Pair] | None  # likewise, and without test images
    outliers: list[tuple[int, float]]
    clusters: np.ndarray  # int32 (n,)
    groups: list[groups.Group]
    points: np.ndarray  # float32 (n, 2)


def compute(shown: Images, test: Images | None, log: Log) -> Findings:
    """Compares the rows of features; finds groups, duplicates and outliers of the trained encoder.

    Args:
      shown: the images on the page.
      test: others, or None.
      log: takes a line about each part, with its seconds.

    Raises:
      DataError: there is one image only.
    """
    if len(shown.names) < 2:
        raise DataError(f"{shown.source.name} has one image only: a report compares two or more.")
    of_trained = shown.features[TRAINED]
    classes = shown.source.num_classes if shown.labels is not None else None
    is_tested = test is not None and test.labels is not None and classes is not None
    neighbours, scores, confusion, tested_on = {}, {}, None, None
    with timed(log, "neighbours"):
        for name, rows in shown.features.items():
            among = across = None
            if name != PIXELS or (classes and not is_tested):
                # One search serves the map too.
                wanted = layout.neighbours(len(rows)) if name == TRAINED else 0
                wide = nearest(rows, rows, max(wanted, votes.NEIGHBOURS), exclude_same_row=True)
                among = tuple(x[:, : votes.NEIGHBOURS] for x in wide)
            if is_tested:
                across = nearest(test.features[name], rows, votes.NEIGHBOURS)
            predicted = labels = None
            if classes:
                found = across if is_tested else among
                labels = test.labels if is_tested else shown.labels
                predicted = votes.predict(*found, shown.labels, classes)
                tested_on = test.source.name if is_tested else shown.source.name
            scores[name] = _scores(name, rows, among, shown.labels, predicted, labels)
            if name == TRAINED:
                for_map, similarities = wide, among[1]
                if predicted is not None:
                    confusion = votes.confusion_matrix(predicted, labels, classes)
            if name in (TRAINED, UNTRAINED):
                neighbours[name] = tuple(x[:, :SHOWN] for x in among)
    with timed(log, "near-duplicates"):
        duplicates, leaks = _near_duplicates(shown, test)
    with timed(log, "clusters"):
        clusters, distances = groups.assign(of_trained, groups.number(len(of_trained), classes))
    with timed(log, "map"):
        points = layout.plane(of_trained, for_map)
    return Findings(
        scores,
        tested_on,
        confusion,
        neighbours,
        duplicates,
        leaks,
        suspects.outliers(similarities),
        clusters,
        groups.describe(clusters, distances, shown.labels),
        points,
    )


def _near_duplicates(
    shown: Images, test: Images | None
) -> tuple[list[suspects.Pair], list[suspects.Pair] | None]:
    """Pairs on the page, and across splits; see `Findings`."""
    features = shown.features[TRAINED]
    try:
        whiten = whitening(features)
        rows = whiten(features)
        leaks = None if test is None else suspects.leaks(whiten(test.features[TRAINED]), rows)
        return suspects.near_duplicates(rows), leaks
    except DataError:  # all images are the same to it
        return None, None


def _scores(
    name: str,
    rows: np.ndarray,
    among: tuple[np.ndarray, np.ndarray] | None,
    shown_labels: np.ndarray | None,
    predicted: np.ndarray | None,
    labels: np.ndarray | None,
) -> dict[str, Any]:
    """Numbers of a row, as far as they can be computed.

    'top1' and 'interval' of the vote, 'same_class', the share of an image's SHOWN neighbours that
    are of its class, 'rankme' and 'alpha_req' (not of pixels, whose spectrum takes long).
    """
    found = {} if predicted is None else votes.accuracy(predicted, labels)
    if among is not None and shown_labels is not None:
        same = shown_labels[among[0][:, :SHOWN]] == shown_labels[:, None]
        found["same_class"] = float(same.mean())
    return found if name == PIXELS else found | spectrum(rows)


@contextlib.contextmanager
def timed(log: Log, part: str) -> Iterator[None]:
    """Logs how long a block took."""
    start = time.perf_counter()
    yield
    log(f"{part}: {time.perf_counter() - start:.1f} s")
