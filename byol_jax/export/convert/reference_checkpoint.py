"""A checkpoint of the authors' code as a run of ours.

The file is a pickle of {'experiment_state', 'step', 'rng'}, which pickles.py reads without running
it. The state has both networks' parameters and batch-norm statistics, and the momentum of LARS. The
data, the length of the training and the size of the views are not in the file: the caller gives
them, and the defaults are the paper's. Source: google-deepmind/deepmind-research, byol/.
"""

import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
from ml_collections import ConfigDict

from byol_jax import byol
from byol_jax.errors import CheckpointError, ConfigError
from byol_jax.export.convert import pickles, reference
from byol_jax.runs import config as config_lib
from byol_jax.runs import manifest
from byol_jax.runs import run as run_lib
from byol_jax.runs.checkpoint import Checkpoints, RetentionPolicy
from byol_jax.runs.resolve import resolve

IMAGENET_EXAMPLES = 1_281_167  # of the training split, which the authors use completely
WARMUP_EPOCHS = 10
LICENSE = (
    "The weights published by the authors are licensed CC BY-NC 4.0: attribution, no commercial use"
)
FIELDS = pickles.STATE_FIELDS


class Contents(NamedTuple):
    """The parts of a file, as trees of ours."""

    step: int
    online_params: dict[str, Any]
    target_params: dict[str, Any]
    online_stats: dict[str, Any]
    target_stats: dict[str, Any]
    momentum: dict[str, Any]


def read(
    path: Path, *, epochs: int = 1000, batch_size: int = 4096, image_size: int = 224
) -> run_lib.Trained:
    """Reads a file as a run and its state.

    Args:
      path: a pre-training checkpoint of the authors' code.
      epochs: length of its training on ImageNet; one of `config_lib.IMAGENET_RECIPES`.
      batch_size: of its training.
      image_size: height and width of its views.

    Returns:
      A run on unknown data, and its state with the file's step, parameters, statistics and
      momentum. Later randomness follows from seed 0, as the file has another generator.

    Raises:
      CheckpointError: the file is no such checkpoint.
      ConfigError: the length of the training is unknown or does not fit the file's step.
    """
    contents = _contents(path)
    sizes = reference.architecture(contents.online_params)
    config = _config(sizes, epochs, batch_size, image_size)
    if contents.step > config.steps:
        raise ConfigError(
            f"{path} is of step {contents.step}, but {epochs} epochs of batches of {batch_size} "
            f"are {config.steps} steps: give the values of its training by --epochs and "
            "--batch_size."
        )
    data = {
        "name": config_lib.UNKNOWN_SOURCE,
        "num_examples": None,
        "num_classes": sizes["num_classes"],
        "class_names": None,
        "license": LICENSE,
    }
    run = run_lib.Run(config, data, IMAGENET_EXAMPLES // batch_size)
    learner = run.learner()
    return run_lib.Trained(
        run, learner, _state(path, contents, run_lib.abstract_state(learner, config))
    )


def write(trained: run_lib.Trained, directory: Path) -> None:
    """Writes a run into a folder, which appears when it is complete.

    Raises:
      CheckpointError: it holds something, or cannot be written.
    """
    check_output(directory)
    parent, step = directory.absolute().parent, int(trained.state.step)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".import-", dir=parent) as staging:
            new = Path(staging, "run")
            new.mkdir()
            run_lib.prepare_workdir(new, trained.run)
            with Checkpoints(new / "checkpoints", RetentionPolicy(newest=1)) as checkpoints:
                checkpoints.save(step, trained.state)
            os.rename(new, directory)
    except OSError as error:
        raise CheckpointError(
            f"--output={directory} cannot be written ({error.strerror}): choose another folder."
        ) from error


def check_output(directory: Path) -> None:
    """Raises CheckpointError unless the folder is new or empty."""
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise CheckpointError(
            f"--output={directory} holds something already: choose another folder."
        )


def _contents(path: Path) -> Contents:
    """Reads the parts of a file."""
    held = pickles.load(path)
    state = held.get("experiment_state") if isinstance(held, dict) else None
    missing = [field for field in FIELDS if not hasattr(state, field)]
    if missing or not isinstance(held.get("step"), int | np.integer | np.ndarray):
        raise CheckpointError(
            f"{path} is not a pre-training checkpoint of the authors' code: it has no "
            f"{(missing or ['step'])[0]}."
        )
    optimizer = state.opt_state if isinstance(state.opt_state, list | tuple) else ()
    momentum = [part.mu for part in optimizer if hasattr(part, "mu")]
    if len(momentum) != 1:
        raise CheckpointError(f"{path} has no momentum of LARS (mu) in its opt_state.")
    groups = (*(getattr(state, field) for field in FIELDS[:-1]), momentum[0])
    for field, group in zip(FIELDS, groups, strict=True):
        _check_modules(path, field, group)
    online, target, online_state, target_state, mu = groups
    try:
        contents = Contents(
            step=int(held["step"]),
            online_params=reference.params(online),
            target_params=_target(reference.params(target)),
            online_stats=reference.batch_stats(online_state),
            target_stats=_target(reference.batch_stats(target_state)),
            momentum=reference.params(mu),
        )
        reference.architecture(contents.online_params)
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be imported: {error}") from error
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be imported: it lacks or garbles {error}.") from error
    if contents.step < 0:
        raise CheckpointError(f"{path} cannot be imported: it is of step {contents.step}.")
    return contents


def _check_modules(path: Path, field: str, modules: Any) -> None:
    fits = isinstance(modules, dict) and all(
        isinstance(name, str)
        and isinstance(leaves, dict)
        and all(isinstance(array, np.ndarray | np.generic) for array in leaves.values())
        for name, leaves in modules.items()
    )
    if not fits:
        raise CheckpointError(f"{path} cannot be imported: its {field} are not arrays by module.")


def _target(tree: dict[str, Any]) -> dict[str, Any]:
    """The target network's parts; the authors' has an unused predictor and classifier too."""
    return {part: tree[part] for part in ("encoder", "projector")}


def _config(sizes: dict[str, Any], epochs: int, batch_size: int, image_size: int) -> ConfigDict:
    """The authors' recipe, with networks of these sizes."""
    if epochs not in config_lib.IMAGENET_RECIPES:
        known = ", ".join(map(str, config_lib.IMAGENET_RECIPES))
        raise ConfigError(
            f"--epochs={epochs} is not one of {known}: the authors give settings for these lengths."
        )
    if not 4 <= batch_size <= IMAGENET_EXAMPLES:
        raise ConfigError(f"--batch_size={batch_size} must be between 4 and {IMAGENET_EXAMPLES}.")
    recipe = config_lib.IMAGENET_RECIPES[epochs]
    config = config_lib.default()
    config.steps = epochs * IMAGENET_EXAMPLES // batch_size
    config.batch_size = batch_size
    config.data.source = config_lib.UNKNOWN_SOURCE
    config.data.image_size = image_size
    config.encoder.update(sizes["encoder"])
    config.heads.update(sizes["heads"])
    config.optimizer.base_learning_rate = recipe.base_learning_rate
    config.optimizer.weight_decay = recipe.weight_decay
    # They divide the images of all ten epochs by the batch size; our epochs are complete batches.
    warmup_steps = WARMUP_EPOCHS * IMAGENET_EXAMPLES // batch_size
    config.optimizer.warmup_epochs = warmup_steps / (IMAGENET_EXAMPLES // batch_size)
    config.target.tau_base = recipe.tau_base
    return resolve(config)[0]


def _state(path: Path, contents: Contents, abstract: byol.State) -> byol.State:
    """The state of a run; every leaf must have the shape and dtype of `abstract`."""
    step = np.asarray(contents.step, np.int32)
    state = byol.State(
        step=step,
        seed=np.zeros((), np.uint32),
        online_params=contents.online_params,
        target_params=contents.target_params,
        online_stats=contents.online_stats,
        target_stats=contents.target_stats,
        # The learning rate depends on the optimiser's own count of steps.
        opt_state=optax.tree.set(abstract.opt_state, trace=contents.momentum, count=step),
    )
    wrong = manifest.difference(state, abstract)
    if wrong:
        raise CheckpointError(f"{path} cannot be imported: its {wrong}.")
    return state
