"""Code of the user's own that a config names: an augmentation, and encoders.

Both are written MODULE:NAME. A name in a config.json imports nothing, as files may come from
elsewhere: what trains imports the augmentation, and whoever names an encoder imports its module
(`config.use_encoder`, `--config.encoder.name`, `--import`, or `import` in Python).
"""

import functools
import os
import pkgutil
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from byol_jax import models
from byol_jax.errors import ConfigError, OwnEncoderError, describe
from byol_jax.runs import manifest

AUGMENTATION = "config.augment.function"


def load(given: str, name: str) -> Any:
    """Imports what MODULE:NAME names, with the current folder on the path as for `python -m`.

    Args:
      given: how the user gave it, for the message.
      name: MODULE:NAME, or MODULE: for the module itself.

    Raises:
      ConfigError: it cannot be imported.
    """
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    try:
        return pkgutil.resolve_name(name)
    except (Exception, SystemExit) as error:  # whatever the module raises
        raise ConfigError(
            f"{given} cannot be imported ({describe(error)}): name a module that is installed, or "
            f"a file in the current folder, {os.getcwd()}, and what is in it."
        ) from error


def load_augmentation(
    config: ConfigDict, shapes: list[tuple[int, ...]]
) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """Imports the function that `config.augment.function` names; None if that is empty.

    Args:
      config: of a run.
      shapes: of the views that it has to take.

    Raises:
      ConfigError: it cannot be imported, traced under vmap, or does not return a view like its
        argument.
    """
    name = config.augment.function
    if not name:
        return None
    given = f"{AUGMENTATION}={name}"
    if name.count(":") != 1:
        raise ConfigError(
            f"{given} must be MODULE:FUNCTION, such as {AUGMENTATION}=my_views:augment."
        )
    function = load(given, name)
    if not callable(function) or type(function).__hash__ is None:  # JAX keeps it in its caches
        raise ConfigError(f"{given} is not a function but of type {type(function).__name__}.")
    for shape in shapes:
        _check_augmentation(given, function, shape)
    return function


def _check_augmentation(given: str, function: Callable, shape: tuple[int, ...]) -> None:
    """Raises ConfigError unless a function returns a view like its argument."""
    try:
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
        views = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        out = jax.eval_shape(jax.vmap(function), keys, views)
    except Exception as error:  # whatever the function raises
        raise ConfigError(
            f"{given} cannot be traced by jax.vmap for a key and a view, float32 {shape} "
            f"({describe(error)}): write it with jax.numpy and jax.random."
        ) from error
    if not isinstance(out, jax.ShapeDtypeStruct):
        returned = f"{type(out).__name__}"
    else:
        returned = f"{out.dtype} {out.shape[1:]}"
    if returned != f"float32 {shape}":
        raise ConfigError(f"{given} must return a view, float32 {shape}, not {returned}.")


def check_encoder(
    given: str, encoder: nn.Module, shape: tuple[int, ...], dtype: Any, is_trained: bool
) -> None:
    """Raises OwnEncoderError for an encoder that training or evaluation could not use.

    Args:
      given: how the user gave it, for the message.
      encoder: the module; it is traced as in a run, and computes nothing.
      shape: of a view, such as (height, width, channels).
      dtype: of a view.
      is_trained: whether it needs a gradient, unlike a frozen target.
    """
    train, evaluate = (functools.partial(models.encode, train=train) for train in (True, False))

    def use(key: jax.Array, view: jax.Array) -> dict[str, Any]:
        found = nn.init(train, encoder)(key, view)
        variables = {kind: found.get(kind, {}) for kind in ("params", "batch_stats")}
        nn.apply(evaluate, encoder)(variables, view)

        def loss(params: Any) -> jax.Array:
            apply = nn.apply(train, encoder, mutable=["batch_stats"])
            embedding, _ = apply(variables | {"params": params}, view, rngs=key)
            return jnp.sum(embedding)

        (jax.grad(loss) if is_trained else loss)(variables["params"])
        return variables

    try:
        key = jax.eval_shape(lambda: jax.random.key(0))
        variables = jax.eval_shape(use, key, jax.ShapeDtypeStruct((2, *shape), dtype))
    except Exception as error:  # whatever the module raises
        raise OwnEncoderError(
            f"{given} cannot be traced on {jnp.dtype(dtype)} (batch, "
            f"{', '.join(map(str, shape))}): {describe(error)}."
        ) from error
    if not variables["params"]:
        raise OwnEncoderError(f"{given} has no parameters: there is nothing to train.")
    for name, leaf in manifest.leaves(variables).items():
        if leaf.dtype != jnp.float32:
            raise OwnEncoderError(f"{given} has {leaf.dtype} {name}: keep all of them in float32.")
    frozen = getattr(encoder, "frozen", ())
    if not isinstance(frozen, tuple) or not all(isinstance(name, str) for name in frozen):
        raise OwnEncoderError(
            f"{given} has a 'frozen' that is not a tuple of names of parameters: rename it."
        )
