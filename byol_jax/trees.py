"""Trees of arrays, leaf by leaf under their names: where two of them differ in kind."""

from collections.abc import Callable
from typing import Any

import jax


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
