"""Images that deserve a look: near-duplicates, test images that were trained on, and outliers."""

from typing import NamedTuple

import numpy as np

from byol_jax.evaluate.features import unit_rows

ALIKE = 0.95  # the least cosine of features of two images that are listed,
SAME = 0.65  # and the least correlation of their edges if they are near-duplicates
SIDE = 24  # of pictures whose edges are compared: small, as a copy may be cropped a little
MOST = 200  # pairs in a list
OUTLIERS, OF_NEAREST = 48, 10


class Pair(NamedTuple):
    """Two images that are nearly the same to the encoder."""

    first: int
    second: int
    similarity: float  # cosine of their features
    correlation: float  # of the edges of their pictures, one of which may be mirrored

    @property
    def is_same(self) -> bool:
        """Whether these are near-duplicates to the eye, too."""
        return self.correlation >= SAME


def duplicates(
    neighbours: np.ndarray, similarities: np.ndarray, pictures: np.ndarray
) -> list[Pair]:
    """Pairs of images of one set that are alike to the encoder: near-duplicates first.

    Args:
      neighbours: integers (n, k): the nearest other images of each, as of `nearest` with
        exclude_same_row.
      similarities: float (n, k), of cosine.
      pictures: uint8 (n, height, width, channels).

    Returns:
      At most MOST pairs, each once, the lower index first; the most similar first among those that
      are near-duplicates, and among the others.
    """
    rows, columns = np.nonzero(similarities >= ALIKE)
    others = neighbours[rows, columns]
    first, second = np.minimum(rows, others), np.maximum(rows, others)
    _, once = np.unique(np.stack([first, second]), axis=1, return_index=True)
    found = first[once], second[once], similarities[rows[once], columns[once]]
    return _sorted(*found, pictures, pictures)


def leaks(
    neighbours: np.ndarray, similarities: np.ndarray, test: np.ndarray, train: np.ndarray
) -> list[Pair]:
    """Test images that are alike to one of the training images, in the order of `duplicates`.

    Args:
      neighbours: integers (m, k): the training images nearest to each test image.
      similarities: float (m, k), of cosine, the largest first.
      test: uint8 (m, height, width, channels), the pictures.
      train: uint8 (n, height, width, channels).

    Returns:
      At most MOST pairs of a test image and a training image, one for each test image: the nearest,
      or the nearest near-duplicate if there is one.
    """
    rows, columns = np.nonzero(similarities >= ALIKE)
    found = _sorted(rows, neighbours[rows, columns], similarities[rows, columns], test, train, None)
    of_each = {}
    for pair in found:
        of_each.setdefault(pair.first, pair)
    return list(of_each.values())[:MOST]


def outliers(similarities: np.ndarray) -> list[tuple[int, float]]:
    """The images that are least similar to their nearest 10, with the mean of these similarities.

    Args:
      similarities: float (n, k), to the nearest other images, the largest first.
    """
    means = similarities[:, :OF_NEAREST].mean(axis=1)
    order = np.argsort(means, kind="stable")[: min(OUTLIERS, len(means) // 10)]
    return [(int(index), float(means[index])) for index in order]


def _sorted(
    first: np.ndarray,
    second: np.ndarray,
    similarities: np.ndarray,
    of_first: np.ndarray,
    of_second: np.ndarray,
    most: int | None = MOST,
) -> list[Pair]:
    one, other, mirrored = edges(of_first), edges(of_second), edges(of_second[:, :, ::-1])
    correlations = np.zeros(len(first))
    for start in range(0, len(first), 4096):  # all at once may not fit into memory
        part = slice(start, start + 4096)
        rows, columns = one[first[part]], second[part]
        correlations[part] = np.maximum(
            (rows * other[columns]).sum(axis=1), (rows * mirrored[columns]).sum(axis=1)
        )
    order = np.lexsort((second, first, -similarities, correlations < SAME))[:most]
    return [
        Pair(int(first[i]), int(second[i]), float(similarities[i]), float(correlations[i]))
        for i in order
    ]


def edges(pictures: np.ndarray) -> np.ndarray:
    """Differences of neighbouring pixels, of gray and shrunk pictures; their products correlate.

    The pixels themselves correlate wherever two pictures are bright at the top, such as skies.

    Args:
      pictures: uint8 (n, side, side, channels).

    Returns:
      float32 (n, differences): of mean 0 in both directions, as a slope is no edge, and of length
      1; 0 where a picture has no edges.
    """
    times = max(1, pictures.shape[1] // SIDE)
    side = pictures.shape[1] // times
    gray = pictures[:, : side * times, : side * times].mean(axis=-1, dtype=np.float32)
    gray = gray.reshape(len(gray), side, times, side, times).mean(axis=(2, 4))
    both = [np.diff(gray, axis=axis).reshape(len(gray), -1) for axis in (1, 2)]
    return unit_rows(np.concatenate([x - x.mean(axis=1, keepdims=True) for x in both], axis=1))
