"""Principal components of rows."""

import numpy as np


def components(rows: np.ndarray, count: int) -> np.ndarray:
    """The first coordinates of rows, float64 (n, d), by their principal components.

    Returns:
      float64 (n, count); 0 where rows have fewer dimensions.
    """
    centred = rows - rows.mean(axis=0)
    _, _, directions = np.linalg.svd(centred.T @ centred)
    found = np.zeros((len(rows), count))
    found[:, : len(directions[:count])] = centred @ directions[:count].T
    return found
