"""Trees of arrays, leaf by leaf under their names: dtypes, shapes and SHA-256 digests.

Kept next to the arrays, the digests show later whether they are still the same. SHA-256, as
processors have instructions for it: there it is twice as fast as BLAKE2, and any other program can
check it.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def name_of(path: tuple) -> str:
    """The name of the leaf at a path of `jax.tree_util`, such as 'params/conv1/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves(tree: Any) -> dict[str, Any]:
    """The leaves by name."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def difference(got: Any, wanted: Any, ignore: Callable[[str], bool] = lambda _: False) -> str:
    """The first leaf, by name, in one tree only or of another dtype or shape; '' where none is.

    Args:
      got: a tree of arrays.
      wanted: another, or of `jax.ShapeDtypeStruct`.
      ignore: of a name, whether it may differ.
    """
    got, wanted = leaves(got), leaves(wanted)

    def of(found: dict[str, Any], name: str) -> str:
        return f"{found[name].dtype} {found[name].shape}" if name in found else "absent"

    for name in sorted(got | wanted):
        if not ignore(name) and of(got, name) != of(wanted, name):
            return f"{name} is {of(got, name)} and should be {of(wanted, name)}"
    return ""


Description = dict[str, dict[str, Any]]


def describe(tree: Any) -> Description:
    """Describes each leaf in what JSON can hold.

    Args:
      tree: a tree of arrays on the host.

    Returns:
      By the name of the leaf (manifest.py), its 'dtype' (a name), 'shape' (a list) and 'sha256'.
    """
    return {name: _describe(np.asarray(leaf)) for name, leaf in leaves(tree).items()}


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
