"""Trees of arrays as leaves by name, each with its dtype, shape and SHA-256 digest.

Stored next to the arrays, the digests show later whether the arrays are still the same. Processors
have instructions for SHA-256, which make it twice as fast as BLAKE2.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Description = dict[str, dict[str, Any]]


def leaf_name(path: tuple) -> str:
    """The name of the leaf at a path of `jax.tree_util`, such as 'params/conv1/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves(tree: Any) -> dict[str, Any]:
    """The leaves by name."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def difference(got: Any, wanted: Any, ignore: Callable[[str], bool] = lambda name: False) -> str:
    """The first leaf that is missing, unexpected, or of another dtype or shape; '' if none is.

    Args:
      got: a tree of arrays or of `jax.ShapeDtypeStruct`.
      wanted: likewise.
      ignore: returns whether the leaf of this name may differ.
    """
    got, wanted = leaves(got), leaves(wanted)

    def spec(tree: dict[str, Any], name: str) -> str:
        return f"{tree[name].dtype} {tree[name].shape}" if name in tree else "absent"

    for name in sorted(got | wanted):
        if not ignore(name) and spec(got, name) != spec(wanted, name):
            return f"{name} is {spec(got, name)} and should be {spec(wanted, name)}"
    return ""


def describe(tree: Any) -> Description:
    """The 'dtype' (a name), 'shape' (a list) and 'sha256' of each leaf by name, for JSON.

    Args:
      tree: a tree of arrays on the host.
    """
    found = {}
    for name, leaf in leaves(tree).items():
        array = np.asarray(leaf)
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)  # hashlib takes no bfloat16
        digest = hashlib.sha256(data).hexdigest()
        found[name] = {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": digest}
    return found


def digest(tree: Any) -> str:
    """SHA-256, in hex, of names, dtypes, shapes and values of a tree of arrays on the host."""
    return json_digest(describe(tree))


def json_digest(value: Any) -> str:
    """SHA-256, in hex, of a value that JSON can hold; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def first_difference(found: Description, saved: Description) -> str:
    """The first leaf by name that is not as it was saved, and how it differs; '' if none is."""
    for name in sorted(found | saved):
        if name not in found:
            return f"{name} is missing"
        if name not in saved:
            return f"{name} was not saved"
        for key, value in found[name].items():
            if saved[name].get(key) != value:
                return f"{name} has another {key} than was saved"
    return ""
