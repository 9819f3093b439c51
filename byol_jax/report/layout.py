"""A map of features: points of the plane such that similar images are close to each other."""

import numpy as np

from byol_jax.evaluate.features import unit_rows
from byol_jax.evaluate.neighbours import nearest
from byol_jax.report import threads

PERPLEXITY = 30  # about how many neighbours a point has
FEWEST = 10  # points of t-SNE
STEPS = 500  # of t-SNE: the 250 that follow its early exaggeration place the groups


def plane(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Coordinates by t-SNE (van der Maaten and Hinton, JMLR 2008), which starts from PCA.

    Neighbours are exact, by cosine. Distances between groups, and the sizes of groups, mean little
    in such a map. With fewer than 10 images, or where all features are equal, the coordinates are
    those of PCA.

    Args:
      features: float (n, d), n >= 2; their direction counts.
      seed: of t-SNE.

    Returns:
      float32 (n, 2), within [-1, 1].
    """
    rows = unit_rows(np.asarray(features, np.float64))
    centred = rows - rows.mean(axis=0)
    _, _, directions = np.linalg.svd(centred.T @ centred)
    points = np.zeros((len(rows), 2))
    points[:, : len(directions[:2])] = centred @ directions[:2].T
    spread = float(points[:, 0].std())
    if len(rows) >= FEWEST and spread > 1e-6:
        points = _tsne(features, points / spread * 1e-4, seed)
    points = points - (points.max(axis=0) + points.min(axis=0)) / 2
    return (points / max(float(np.abs(points).max()), 1e-12)).astype(np.float32)


def _tsne(features: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    # Late: their import takes a second.
    from scipy.sparse import csr_matrix
    from sklearn.manifold import TSNE

    count = len(features)
    perplexity = min(PERPLEXITY, (count - 1) / 3)
    wanted = min(count - 1, int(3 * perplexity + 1))  # as many as scikit-learn asks for
    # Our own search: that of scikit-learn takes as long as t-SNE itself.
    neighbours, similarities = nearest(features, features, wanted, exclude_same_row=True)
    distances = np.sqrt(np.maximum(2 - 2 * similarities.astype(np.float64), 0))
    own = np.arange(count)[:, None]  # scikit-learn expects each row's own distance first
    values = np.hstack([np.zeros((count, 1)), distances]).ravel()
    columns = np.hstack([own, neighbours]).ravel()
    ends = np.arange(count + 1) * (wanted + 1)
    model = TSNE(
        perplexity=perplexity,
        metric="precomputed",
        init=start.astype(np.float32),
        max_iter=STEPS,
        random_state=seed,
        n_jobs=-1,
    )
    graph = csr_matrix((values, columns, ends), shape=(count, count))
    with threads.limited(count):
        return model.fit_transform(graph)
