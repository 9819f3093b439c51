"""What a new run starts from: random weights, another encoder, or the state of another run."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import byol_jax
from byol_jax import byol, runs
from byol_jax import config as config_lib
from byol_jax.checkpoint import Checkpoints
from byol_jax.errors import UserError
from byol_jax.interop import torchvision

# In these, two encoders of the same shapes compute different things.
SAME_SHAPES = ("stem", "padding")


def first_step(config: ConfigDict, total_steps: int) -> int:
    """Updates that a new run has behind it already: 0, or those of `config.init.state`.

    Raises:
      UserError: nothing is there, or nothing would be left to do.
    """
    path = config.init.state
    if not path:
        return 0
    runs.read(Path(path))  # says what is wrong with the folder
    if not runs.has_checkpoint(Path(path)):
        raise UserError(f"config.init.state={path} has no checkpoint.")
    with Checkpoints(Path(path) / "checkpoints") as checkpoints:
        step = checkpoints.latest_step()
    if step >= total_steps:
        raise UserError(
            f"config.init.state={path} is at step {step} and this run ends at {total_steps}: make "
            "it longer with config.epochs or config.steps."
        )
    return step


def new_state(learner: byol.Learner, config: ConfigDict) -> byol.State:
    """The state that a new run of a resolved config starts from.

    Raises:
      UserError: what `config.init` names cannot be read, or is not of this run's networks.
    """
    state = runs.initial_state(learner, config)
    if config.init.state:
        return _whole_state(config, state)
    if config.init.encoder:
        state = _with_encoder(state, config, "encoder", ("online", "target"))
    if config.init.target_encoder:
        state = _with_encoder(state, config, "target_encoder", ("target",))
    return state


def _whole_state(config: ConfigDict, fresh: byol.State) -> byol.State:
    """The other run's state; its probe stays behind where this run's classes are others.

    The seed is this run's own.
    """
    key, path = "config.init.state", config.init.state
    other = runs.restore(Path(path))
    theirs = other.run.config
    compared = (*(f"encoder.{name}" for name in SAME_SHAPES), "optimizer.name", "target_network")
    for name in compared:
        if config_lib.get(theirs, name) != config_lib.get(config, name):
            raise UserError(
                f"{key}={path} was trained with config.{name}={config_lib.get(theirs, name)}, and "
                f"this run has {config_lib.get(config, name)}: set it to the same."
            )
    found = {
        jax.tree_util.keystr(where): leaf
        for where, leaf in jax.tree_util.tree_leaves_with_path(other.state)
    }

    def leaf(where: tuple, own: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(where)
        there = found.get(name)
        if there is not None and there.shape == own.shape:
            return there
        if "['probe']" in name:
            return own
        raise UserError(_does_not_fit(key, path, name, there, own))

    return jax.tree_util.tree_map_with_path(leaf, fresh)._replace(seed=fresh.seed)


def _with_encoder(
    state: byol.State, config: ConfigDict, name: str, networks: tuple[str, ...]
) -> byol.State:
    """The state with another encoder's weights and statistics in these of its networks."""
    key, path = f"config.init.{name}", config.init[name]
    variables = _encoder_variables(key, path, config)
    for network in networks:
        for kind, group in (("params", "params"), ("batch_stats", "stats")):
            field = f"{network}_{group}"
            tree = getattr(state, field)
            if "encoder" not in tree:  # no target network, or no statistics
                continue
            own = tree["encoder"]
            _check_fit(key, path, variables[kind], own)
            theirs = jax.tree.map(jnp.array, variables[kind])  # copies: states are donated
            state = state._replace(**{field: {**tree, "encoder": theirs}})
    return state


def _encoder_variables(key: str, path: str, config: ConfigDict) -> dict[str, Any]:
    """The variables of an encoder in a run, an export, or a file of torchvision's names."""
    settings = {"stem": "imagenet", "padding": "torch"}  # torchvision's
    if Path(path).is_dir():
        encoder = byol_jax.load(path)
        variables = encoder.variables
        settings = encoder.config["encoder"]
    else:
        variables = torchvision.from_state_dict(torchvision.read(path))
    for name in SAME_SHAPES:
        if settings[name] != config.encoder[name]:
            raise UserError(
                f"{key}={path} has an encoder of {name} {settings[name]!r}: add "
                f"--config.encoder.{name}={settings[name]}."
            )
    return variables


def _check_fit(key: str, path: str, theirs: Any, own: Any) -> None:
    mine, other = (
        {
            jax.tree_util.keystr(where): leaf
            for where, leaf in jax.tree_util.tree_leaves_with_path(t)
        }
        for t in (own, theirs)
    )
    for name in sorted(mine | other):
        if jnp.shape(mine.get(name)) != jnp.shape(other.get(name)) or name not in mine:
            raise UserError(_does_not_fit(key, path, name, other.get(name), mine.get(name)))


def _does_not_fit(key: str, path: str, name: str, there: Any, own: Any) -> str:
    there, own = ("absent" if x is None else f"of shape {jnp.shape(x)}" for x in (there, own))
    return f"{key}={path} does not fit this run's networks: {name} is {there} there and {own} here."
