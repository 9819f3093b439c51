"""How good an encoder may be, measured without labels.

Each function takes features of unlabelled images and returns a number. RankMe, LiDAR and alpha-ReQ
look at the spectrum of the features; alignment and uniformity at the distances between them.
`measures` computes all of them.
"""

import contextlib

import numpy as np

from byol_jax.errors import DataError
from byol_jax.evaluate.features import unit_rows

ROWS = 10_000  # of `measures`, at most; RankMe's paper wants at least as many
IMAGES, VIEWS = 1000, 10  # of LiDAR: n and q of its paper (q is 50 for some methods)
EPSILON = 1e-7  # added to each share of a spectrum, as in the papers


def measures(
    features: np.ndarray, views: np.ndarray | None = None, seed: int = 0
) -> dict[str, float | int | None]:
    """All measures; those that need one view of each image, on at most 10,000 of them.

    Compare values of equal numbers of images.

    Args:
      features: float (n, d).
      views: float (images, q, d): of q views of some images, for LiDAR and alignment.
      seed: of the choice of images.

    Returns:
      'rankme', 'alpha_req' (None if features vary in fewer than three directions), 'uniformity',
      'images'; with views 'lidar', and 'alignment' of the first two.

    Raises:
      DataError: features are not a finite (n, d) array of two rows or more, or views not a finite
        (images, q, d) array of two images and views or more.
    """
    rows = np.random.default_rng(seed).permutation(len(features))[:ROWS]
    features = np.asarray(features)[np.sort(rows)]
    measured = {"alpha_req": None} | spectrum(features) | {"uniformity": uniformity(features)}
    if views is not None:
        measured |= {"lidar": lidar(views), "alignment": alignment(views[:, :2])}
    return measured | {"images": len(features)}


def spectrum(features: np.ndarray) -> dict[str, float]:
    """'rankme' and, if features (n, d) vary in three directions or more, 'alpha_req'."""
    measured = {"rankme": rankme(features)}
    with contextlib.suppress(DataError):
        measured["alpha_req"] = alpha_req(features)
    return measured


def rankme(features: np.ndarray) -> float:
    """RankMe (arXiv 2210.02885, equations 1 and 2): how many dimensions the features fill.

    The exponential of the entropy of the singular values, which are not centred. It is 1 if all
    features are multiples of one vector, and min(n, d) if all singular values are equal. It grows
    with n; compare values of equal n.

    Args:
      features: float (n, d), best with n of 10,000 or more.

    Raises:
      DataError: features are not a non-empty, finite (n, d) array.
    """
    x = _checked(features, 2)
    return _effective_rank(np.sqrt(_eigenvalues(x.T @ x)))


def lidar(features: np.ndarray, delta: float = 1e-4) -> float:
    """LiDAR (arXiv 2312.04000, section 4): how many directions tell images from their views.

    The effective rank of the linear discriminant analysis in which each image is a class and its
    views are the members: of S_w^-1/2 S_b S_w^-1/2, where S_b is the covariance of the means of
    images, and S_w that of views around these means, plus delta times the identity. The paper has
    n = 1000 images and q = 50 views (10 for some methods), and takes the projections.

    Args:
      features: float (n, q, d): q views, drawn independently, of each of n images; n and q >= 2.
      delta: makes S_w invertible.

    Raises:
      DataError: features are not a finite (n, q, d) array of two images and views or more.
    """
    x = _checked(features, 3)
    if min(x.shape[:2]) < 2:
        raise DataError(
            f"LiDAR was given {x.shape[0]} images with {x.shape[1]} views: it needs two or more."
        )
    means = x.mean(axis=1)
    around = (x - means[:, None]).reshape(-1, x.shape[2])
    within = around.T @ around / len(around) + delta * np.eye(x.shape[2])
    centred = means - means.mean(axis=0)
    values, basis = np.linalg.eigh(within)
    whitened = centred @ (basis / np.sqrt(values))
    return _effective_rank(_eigenvalues(whitened.T @ whitened))


def alpha_req(features: np.ndarray) -> float:
    """alpha-ReQ (Agrawal et al., NeurIPS 2022; arXiv 2202.05808): how fast the spectrum decays.

    The exponent a of the power law i^-a that fits the eigenvalues of the covariance best, by least
    squares of logarithms. The ranks i are our choice: 11 to 50, or to the last where there are
    fewer dimensions, and from the first with fewer than 20. Near 1 is best, according to the
    papers; above, the spectrum is dominated by few directions.

    Args:
      features: float (n, d), n > 2 and d > 2.

    Raises:
      DataError: features are not a non-empty, finite (n, d) array, or have fewer than three
        directions.
    """
    x = _checked(features, 2)
    x = x - x.mean(axis=0)
    values = _eigenvalues(x.T @ x / len(x))[::-1]
    values = values[values > 1e-12 * values[0]] if values[0] > 0 else values[:0]
    if len(values) < 3:
        raise DataError("alpha-ReQ needs features that vary in three directions or more.")
    first = 10 if len(values) >= 20 else 0
    ranks = np.arange(first, min(50, len(values))) + 1
    slope, _ = np.polyfit(np.log(ranks), np.log(values[ranks - 1]), 1)
    return float(-slope)


def alignment(features: np.ndarray, power: float = 2.0) -> float:
    """How far apart two views of an image are (arXiv 2005.10242, equation 1), on the unit sphere.

    The mean over images of the distance between them to a power; 0 is perfect, 2 what independent
    directions have for power 2.

    Args:
      features: float (n, 2, d), two views of each image.
      power: of the distance.

    Raises:
      DataError: features are not a non-empty, finite (n, 2, d) array.
    """
    x = unit_rows(_checked(features, 3))
    if x.shape[1] != 2:
        raise DataError(f"alignment was given {x.shape[1]} views of each image: it needs two.")
    return float(np.mean(np.linalg.norm(x[:, 0] - x[:, 1], axis=1) ** power))


def uniformity(features: np.ndarray, t: float = 2.0) -> float:
    """How evenly features cover the unit sphere (arXiv 2005.10242, equation 2).

    The logarithm of the mean over pairs of different images of exp(-t distance^2): 0 if all are
    equal, and about -2 t for directions that are spread evenly in many dimensions.

    Args:
      features: float (n, d), n >= 2.
      t: the width of the kernel.

    Raises:
      DataError: features are not a finite (n, d) array of two rows or more.
    """
    x = unit_rows(_checked(features, 2))
    if len(x) < 2:
        raise DataError("uniformity needs two images or more.")
    squares = (x**2).sum(axis=1)  # 1, or 0 for features that are all 0
    total = 0.0
    for start in range(0, len(x), 1024):  # all pairs at once may not fit into memory
        rows = slice(start, start + 1024)
        distances = squares[rows, None] + squares - 2 * x[rows] @ x.T
        total += np.exp(-t * distances).sum()
    # A row's pair with itself counts 1.
    return float(np.log((total - len(x)) / (len(x) * (len(x) - 1))))


def _effective_rank(spectrum: np.ndarray) -> float:
    """exp of the entropy of non-negative values, relative to their sum; 1 if all are 0."""
    if not spectrum.sum() > 0:
        return 1.0
    shares = spectrum / spectrum.sum() + EPSILON
    return float(np.exp(-np.sum(shares * np.log(shares))))


def _eigenvalues(matrix: np.ndarray) -> np.ndarray:
    """Of a matrix without negative ones, ascending."""
    return np.maximum(np.linalg.eigvalsh(matrix), 0)


def _checked(features: np.ndarray, ndim: int) -> np.ndarray:
    """As float64, or DataError."""
    x = np.asarray(features, np.float64)
    if x.ndim != ndim or not x.size:
        shape = "(n, d)" if ndim == 2 else "(n, views, d)"
        raise DataError(f"features have shape {x.shape}: pass a non-empty {shape} array.")
    if not np.isfinite(x).all():
        raise DataError("features contain NaN or infinity.")
    return x
