"""The user's own augmentation, named by `config.augment.function`.

It is imported for training alone: a run can be evaluated, exported and read without it.
"""

import os
import pkgutil
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from byol_jax.errors import ConfigError

KEY = "config.augment.function"


def load(config: ConfigDict) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """Imports the function, with the current folder on the path as for `python -m`; None if empty.

    Raises:
      ConfigError: it cannot be imported, traced under vmap, or does not return a view like its
        argument.
    """
    name = config.augment.function
    if not name:
        return None
    given = f"{KEY}={name}"
    if name.count(":") != 1:
        raise ConfigError(f"{given} must be MODULE:FUNCTION, such as {KEY}=my_views:augment.")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    try:
        function = pkgutil.resolve_name(name)
    except (Exception, SystemExit) as error:  # whatever the module raises
        raise ConfigError(
            f"{given} cannot be imported ({_describe(error)}): name a module that is installed, or "
            f"a file in the current folder, {os.getcwd()}, and a function in it."
        ) from error
    if not callable(function) or type(function).__hash__ is None:  # JAX keeps it in its caches
        raise ConfigError(f"{given} is not a function but of type {type(function).__name__}.")
    sizes = {config.data.image_size} | (
        {config.crop.local_size} if config.crop.local_views else set()
    )
    for size in sorted(sizes):
        _check(given, function, (size, size, config.data.channels))
    return function


def _check(given: str, function: Callable, shape: tuple[int, int, int]) -> None:
    """Raises ConfigError unless a function returns a view like its argument."""
    try:
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
        views = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        out = jax.eval_shape(jax.vmap(function), keys, views)
    except Exception as error:  # whatever the function raises
        raise ConfigError(
            f"{given} cannot be traced by jax.vmap for a key and a view, float32 {shape} "
            f"({_describe(error)}): write it with jax.numpy and jax.random."
        ) from error
    if not isinstance(out, jax.ShapeDtypeStruct):
        returned = f"{type(out).__name__}"
    else:
        returned = f"{out.dtype} {out.shape[1:]}"
    if returned != f"float32 {shape}":
        raise ConfigError(f"{given} must return a view, float32 {shape}, not {returned}.")


def _describe(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200].rstrip('.')}"
