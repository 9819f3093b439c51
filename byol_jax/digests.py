"""What every leaf of a tree of arrays is: dtype, shape and the SHA-256 digest of its bytes.

Kept beside the arrays, it shows later whether they are still the same. SHA-256, as processors have
instructions for it: there it is twice as fast as BLAKE2, and any other program can check it.
"""

import hashlib
from typing import Any

import numpy as np

from byol_jax import trees

Description = dict[str, dict[str, Any]]


def describe(tree: Any) -> Description:
    """Describes each leaf in what JSON can hold.

    Args:
      tree: a tree of arrays on the host.

    Returns:
      By the name of the leaf (trees.py), its 'dtype' (a name), 'shape' (a list) and 'sha256'.
    """
    return {name: _describe(np.asarray(leaf)) for name, leaf in trees.leaves(tree).items()}


def first_difference(found: Description, saved: Description) -> str:
    """The first leaf, by name, that is not as it was saved, and in what; '' where none is."""
    for name in sorted(found | saved):
        if name not in found:
            return f"{name} is missing"
        if name not in saved:
            return f"{name} was not saved"
        for key, value in found[name].items():
            if saved[name].get(key) != value:
                return f"{name} has another {key} than was saved"
    return ""


def _describe(leaf: np.ndarray) -> dict[str, Any]:
    # As bytes: hashlib takes no bfloat16.
    data = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
    return {
        "dtype": leaf.dtype.name,
        "shape": list(leaf.shape),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
