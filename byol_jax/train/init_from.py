"""What a new run starts from: random weights, another encoder, or the state of another run."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import byol_jax
from byol_jax import byol
from byol_jax.errors import UserError
from byol_jax.export.convert import torchvision
from byol_jax.runs import config as config_lib
from byol_jax.runs import manifest, paths
from byol_jax.runs import run as run_lib

# In these, two encoders of the same shapes compute different things.
SAME_SHAPES = ("stem", "padding")
# And with another of these, a state goes on otherwise or has other parts.
SAME_STATES = ("optimizer.name", "optimizer.clip", "target_network")


def first_step(config: ConfigDict, total_steps: int) -> int:
    """Updates that a new run has behind it already: 0, or those of `config.init.state`.

    Raises:
      UserError: nothing is there, or nothing would be left to do.
    """
    for key in ("encoder", "target_encoder"):  # now, before anything is written or compiled
        path = config.init[key]
        if path and not paths.path(path).exists():
            raise UserError(
                f"config.init.{key}={path} does not exist: name a run, an export, or a file of "
                "torchvision's weights (.safetensors or .pth)."
            )
    if not config.init.state:
        return 0
    path = paths.path(config.init.state)
    if (path / "model.safetensors").exists():
        raise UserError(
            f"config.init.state={path} is an export, which has no state but an encoder: name it "
            "by config.init.encoder instead."
        )
    run_lib.read(path)  # says what is wrong with the folder
    with run_lib.checkpoints_of(path) as checkpoints:
        step = checkpoints.latest_step()
    if step >= total_steps:
        raise UserError(
            f"config.init.state={path} is at step {step} and this run ends at {total_steps}: make "
            "it longer with config.epochs or config.steps, or start anew from its encoder by "
            "config.init.encoder."
        )
    return step


def new_state(learner: byol.Learner, config: ConfigDict, first: int) -> byol.State:
    """The state that a new run of a resolved config starts from, with `first` updates behind it.

    Raises:
      UserError: what `config.init` names cannot be read, or is not of this run's networks.
    """
    state = run_lib.initial_state(learner, config)
    if config.init.state:
        return _whole_state(config, state, first)
    if config.init.encoder:
        state = _with_encoder(state, config, "encoder", ("online", "target"))
    if config.init.target_encoder:
        state = _with_encoder(state, config, "target_encoder", ("target",))
    return state


def _whole_state(config: ConfigDict, fresh: byol.State, step: int) -> byol.State:
    """The other run's state at a step; its probe stays behind where this run's classes are others.

    The seed is this run's own.
    """
    key, path = "config.init.state", config.init.state
    other = run_lib.restore(paths.path(path), step)
    theirs = other.run.config
    for name in (*(f"encoder.{name}" for name in SAME_SHAPES), *SAME_STATES):
        if config_lib.get(theirs, name) != config_lib.get(config, name):
            raise UserError(
                f"{key}={path} was trained with config.{name}={config_lib.get(theirs, name)}, and "
                f"this run has {config_lib.get(config, name)}: set it to the same."
            )
    wrong = manifest.difference(other.state, fresh, ignore=_is_of_probe)
    if wrong:
        raise UserError(_does_not_fit(key, path, wrong, theirs.to_dict(), config))
    found = manifest.leaves(other.state)

    def leaf(where: tuple, own: jax.Array) -> jax.Array:
        there = found.get(manifest.leaf_name(where), own)
        return there if there.shape == own.shape else own

    return jax.tree_util.tree_map_with_path(leaf, fresh)._replace(seed=fresh.seed)


def _is_of_probe(name: str) -> bool:
    return "probe" in name.split("/")


def _with_encoder(
    state: byol.State, config: ConfigDict, name: str, networks: tuple[str, ...]
) -> byol.State:
    """The state with another encoder's weights and statistics in these of its networks."""
    key, path = f"config.init.{name}", config.init[name]
    variables, settings = _encoder_variables(key, path, config)
    for network in networks:
        for kind, group in (("params", "params"), ("batch_stats", "stats")):
            field = f"{network}_{group}"
            tree = getattr(state, field)
            if "encoder" not in tree:  # no target network, or no statistics
                continue
            own = tree["encoder"]
            wrong = manifest.difference(variables[kind], own)
            if wrong:
                raise UserError(_does_not_fit(key, path, wrong, {"encoder": settings}, config))
            theirs = jax.tree.map(jnp.array, variables[kind])  # copies: states are donated
            state = state._replace(**{field: {**tree, "encoder": theirs}})
    return state


def _encoder_variables(
    key: str, path: str, config: ConfigDict
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variables of an encoder in a run, an export, or a file of torchvision's names.

    And its settings, as far as they are known.
    """
    settings = {"stem": "imagenet", "padding": "torch"}  # torchvision's
    if paths.path(path).is_dir():
        encoder = byol_jax.load(path)
        variables = encoder.variables
        settings = encoder.config["encoder"]
    else:
        try:
            variables = torchvision.from_state_dict(torchvision.read(path))
        except UserError as error:
            raise UserError(f"{key}={path}: {error}") from error
    for name in SAME_SHAPES:
        if settings[name] != config.encoder[name]:
            raise UserError(
                f"{key}={path} has an encoder of {name} {settings[name]!r}: add "
                f"--config.encoder.{name}={settings[name]}."
            )
    return variables, settings


def _does_not_fit(
    key: str, path: str, wrong: str, theirs: dict[str, Any], config: ConfigDict
) -> str:
    """What is wrong, and all settings of the networks that are others there, where known."""
    flags = []
    for section in ("encoder", "heads"):
        for name, value in theirs.get(section, {}).items():
            value = tuple(value) if isinstance(value, list) else value  # JSON has no tuples
            if value != config[section][name]:
                flags.append(f"--config.{section}.{name}={value}".replace(" ", ""))
    hint = f"; it was made with {' '.join(flags)}" if flags else ""
    return f"{key}={path} does not fit this run's networks: its {wrong}{hint}."
