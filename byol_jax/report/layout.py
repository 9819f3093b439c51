"""A map of features: points of the plane such that similar images are close to each other."""

import numpy as np

from byol_jax.evaluate.features import unit_rows
from byol_jax.evaluate.neighbours import nearest
from byol_jax.report import principal, threads

PERPLEXITY = 30  # about how many neighbours a point has
FEWEST = 10  # points of t-SNE
STEPS = 500  # of t-SNE: the 250 that follow its early exaggeration place the groups


def neighbours(count: int) -> int:
    """How many neighbours of each of so many images `plane` takes: as many as scikit-learn asks."""
    return min(count - 1, int(3 * _perplexity(count) + 1))


def plane(
    features: np.ndarray, found: tuple[np.ndarray, np.ndarray] | None = None, seed: int = 0
) -> np.ndarray:
    """Coordinates by t-SNE (van der Maaten and Hinton, JMLR 2008), which starts from PCA.

    Neighbours are exact, by cosine. Distances between groups, and the sizes of groups, mean little
    in such a map. With fewer than 10 images, or where all features are equal, the coordinates are
    those of PCA.

    Args:
      features: float (n, d), n >= 2; their direction counts.
      found: of `nearest`, at least `neighbours(n)` for each row; None: they are searched for.
      seed: of t-SNE.

    Returns:
      float32 (n, 2), within [-1, 1].
    """
    rows = unit_rows(np.asarray(features, np.float64))
    points = principal.components(rows, 2)
    spread = float(points[:, 0].std())
    if len(rows) >= FEWEST and spread > 1e-6:
        if found is None:
            found = nearest(features, features, neighbours(len(rows)), exclude_same_row=True)
        points = _tsne(found, points / spread * 1e-4, seed)
    points = points - (points.max(axis=0) + points.min(axis=0)) / 2
    return (points / max(float(np.abs(points).max()), 1e-12)).astype(np.float32)


def _perplexity(count: int) -> float:
    return min(PERPLEXITY, (count - 1) / 3)


def _tsne(found: tuple[np.ndarray, np.ndarray], start: np.ndarray, seed: int) -> np.ndarray:
    # Late: their import takes a second.
    from scipy.sparse import csr_matrix
    from sklearn.manifold import TSNE

    count = len(start)
    wanted = neighbours(count)
    # Our own search: that of scikit-learn takes as long as t-SNE itself.
    nearby, similarities = (x[:, :wanted] for x in found)
    distances = np.sqrt(np.maximum(2 - 2 * similarities.astype(np.float64), 0))
    own = np.arange(count)[:, None]  # scikit-learn expects each row's own distance first
    values = np.hstack([np.zeros((count, 1)), distances]).ravel()
    columns = np.hstack([own, nearby]).ravel()
    ends = np.arange(count + 1) * (wanted + 1)
    model = TSNE(
        perplexity=_perplexity(count),
        metric="precomputed",
        init=start.astype(np.float32),
        max_iter=STEPS,
        random_state=seed,
        n_jobs=-1,
    )
    graph = csr_matrix((values, columns, ends), shape=(count, count))
    with threads.limited(count):
        return model.fit_transform(graph)
