"""What a new run starts from: random weights, another encoder, or the state of another run."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import byol_jax
from byol_jax import byol
from byol_jax.errors import UserError
from byol_jax.export.convert import timm, torchvision
from byol_jax.runs import manifest, paths, tree
from byol_jax.runs import run as run_lib

# Settings that change what an encoder computes, but not the shapes of its weights.
SHAPELESS_SETTINGS = ("stem", "padding", "pool", "positions", "heads", "strides")
# Settings that a state must share with the run that it came from.
STATE_SETTINGS = ("optimizer.name", "optimizer.clip", "target.rule", "target.encoder.name")


def first_step(config: ConfigDict, total_steps: int) -> int:
    """Number of updates that a new run begins with: 0, or those of `config.init.state`.

    Raises:
      UserError: a path of `config.init` does not exist, or no step would be left.
    """
    for key in ("encoder", "target_encoder"):  # before anything is written or compiled
        path = config.init[key]
        if path and not paths.path(path).exists():
            raise UserError(
                f"config.init.{key}={path} does not exist: name a run, an export, or a file of "
                "torchvision's (ResNet) or timm's weights (.safetensors or .pth)."
            )
    if not config.init.state:
        return 0
    path, step = _run_and_step(config.init.state)
    if (path / "model.safetensors").exists():
        raise UserError(
            f"config.init.state={path} is an export, which has an encoder only: use "
            "config.init.encoder instead."
        )
    run_lib.read(path)  # raises if the folder is not a run
    if step is None:
        with run_lib.checkpoints_of(path) as checkpoints:
            step = checkpoints.latest_step()
    if step >= total_steps:
        raise UserError(
            f"config.init.state={path} is at step {step} and this run ends at {total_steps}: make "
            "it longer with config.epochs or config.steps, or start from its encoder alone with "
            "config.init.encoder."
        )
    return step


def _run_and_step(text: str) -> tuple[paths.AnyPath, int | None]:
    """A run's folder and None, or of a folder RUN/checkpoints/STEP the run's and the step."""
    path = paths.path(text)
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return path, None


def new_state(learner: byol.Learner, config: ConfigDict, first: int) -> byol.State:
    """The state that a new run of a resolved config starts from, after `first` updates.

    Raises:
      UserError: a path of `config.init` cannot be read, or does not fit this run's networks.
    """
    state = run_lib.initial_state(learner, config)
    if config.init.state:
        return _other_state(config, state, first)
    if config.init.encoder:
        has_same = not config.target.encoder.name
        state = _with_encoder(
            state, config, "encoder", ("online", "target") if has_same else ("online",)
        )
    if config.init.target_encoder:
        state = _with_encoder(state, config, "target_encoder", ("target",))
    return state


def _other_state(config: ConfigDict, fresh: byol.State, step: int) -> byol.State:
    """Another run's state at a step, with this run's seed, and its probe if the classes differ."""
    key, path = "config.init.state", config.init.state
    other = run_lib.restore(_run_and_step(path)[0], step)
    theirs = other.run.config
    before, now = tree.flat(theirs), tree.flat(config)
    shared = (f"encoder.{name}" for name in SHAPELESS_SETTINGS if name in theirs.encoder)
    for name in (*(name for name in shared if name in now), *STATE_SETTINGS):
        if before.get(name) != now.get(name):
            raise UserError(
                f"{key}={path} was trained with config.{name}={before.get(name)}, but this run has "
                f"{now.get(name)}: set it to the same value."
            )
    if wrong := manifest.difference(other.state, fresh, lambda name: "probe" in name.split("/")):
        raise UserError(_does_not_fit(key, path, wrong, theirs.to_dict(), config))
    found = manifest.leaves(other.state)

    def leaf(path: tuple, own: jax.Array) -> jax.Array:
        value = found.get(manifest.leaf_name(path), own)
        return value if value.shape == own.shape else own

    return jax.tree_util.tree_map_with_path(leaf, fresh)._replace(seed=fresh.seed)


def _with_encoder(
    state: byol.State, config: ConfigDict, name: str, networks: tuple[str, ...]
) -> byol.State:
    """The state with another encoder's variables in these networks."""
    key, path = f"config.init.{name}", config.init[name]
    # A frozen target may have another encoder than the online network.
    section = "encoder"
    if name == "target_encoder" and config.target.rule == "frozen":
        section = "target.encoder"
    own = config.target.encoder if config.target.encoder.name and "." in section else config.encoder
    variables, settings = _encoder_variables(key, path, section, own)
    for network in networks:
        for kind, group in (("params", "params"), ("batch_stats", "stats")):
            field = f"{network}_{group}"
            tree = getattr(state, field)
            if "encoder" not in tree:  # no target network, or no statistics
                continue
            if wrong := manifest.difference(variables[kind], tree["encoder"]):
                raise UserError(_does_not_fit(key, path, wrong, {section: settings}, config))
            theirs = jax.tree.map(jnp.array, variables[kind])  # copies: states are donated
            state = state._replace(**{field: {**tree, "encoder": theirs}})
    return state


def _encoder_variables(
    key: str, path: str, section: str, own: ConfigDict
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables and settings of the encoder in a run, an export or a file of weights.

    It is for an encoder of `own` settings, which are at `section` of the config.
    """
    if paths.path(path).is_dir():
        encoder = byol_jax.load(path).encoder
        variables, settings = encoder.variables, encoder.config["encoder"]
    else:
        fixed_positions = own.get("positions") == "sincos"
        try:
            arrays = torchvision.read(path)
            if timm.is_known(arrays):
                variables, settings = timm.from_state_dict(arrays, fixed_positions)
            else:
                variables = torchvision.from_state_dict(arrays)
                settings = {"stem": "imagenet", "padding": "torch"}
        except UserError as error:
            raise UserError(f"{key}={path}: {error}") from error
    # Encoders of another kind have other settings, and other weights, which are compared later.
    for name in (name for name in SHAPELESS_SETTINGS if name in settings):
        if settings[name] != own.get(name, settings[name]):
            flags = f"--config.{section}.{name}={settings[name]}"
            if section == "target.encoder":
                flags = f"--config.target.encoder.name={own.name} {flags}"
            raise UserError(
                f"{key}={path} has an encoder with {name} {settings[name]!r}: add {flags}."
            )
    return variables, settings


def _does_not_fit(
    key: str, path: str, wrong: str, theirs: dict[str, Any], config: ConfigDict
) -> str:
    """An error message with what is wrong and the settings that differ, where known."""
    flags = []
    for section in ("encoder", "target.encoder", "heads"):
        for name, value in theirs.get(section, {}).items():
            value = tuple(value) if isinstance(value, list) else value  # JSON has no tuples
            if value != tree.get(config, section).get(name):
                flags.append(f"--config.{section}.{name}={value}".replace(" ", ""))
    hint = f"; it was trained with {' '.join(flags)}" if flags else ""
    return f"{key}={path} does not fit this run's networks: its {wrong}{hint}."
