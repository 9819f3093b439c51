"""What a run keeps in its folder, besides checkpoints and metrics: config.json, and how to return.

config.json      the whole config, the data, the length, and the versions that made it
metrics.jsonl    one line for each reading (writers.py)
checkpoints/     the state, by step (checkpoint.py)
eval/            what `experiments.evaluate` found
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from ml_collections import ConfigDict

import byol_jax
from byol_jax import build, byol
from byol_jax import config as config_lib
from byol_jax import input as input_lib
from byol_jax.checkpoint import Checkpoints
from byol_jax.errors import UserError


class Run(NamedTuple):
    """What is fixed when a run starts, and cannot change when it goes on."""

    config: ConfigDict  # resolved
    data: dict[str, Any]  # name, num_examples, num_classes and class_names (None without labels)
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Updates in the whole run."""
        return config_lib.total_steps(self.config, self.steps_per_epoch)

    @property
    def warmup_steps(self) -> int:
        """Updates until the learning rate is at its peak."""
        return config_lib.warmup_steps(self.config, self.steps_per_epoch)

    def learning_rate(self) -> optax.Schedule:
        """The learning rate by step; raises UserError where the warm-up outlasts the run."""
        return build.learning_rate(self.config, self.steps_per_epoch)

    def learner(self, axis_name: str | None = None) -> byol.Learner:
        """The learner of this run."""
        return build.make_learner(
            self.config,
            self.learning_rate(),
            self.total_steps,
            self.data["num_classes"],
            axis_name,
        )


class Trained(NamedTuple):
    """A run at one of its checkpoints, for evaluation and export."""

    run: Run
    learner: byol.Learner
    state: byol.State


def describe(config: ConfigDict, source: "input_lib.Source") -> Run:
    """The run of a resolved config on its training images."""
    data = {
        "name": source.name,
        "num_examples": source.num_examples,
        "num_classes": source.num_classes,
        "class_names": None if source.class_names is None else list(source.class_names),
    }
    return Run(config, data, input_lib.steps_per_epoch(source, config.batch_size))


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Makes the folder if need be, and keeps other processes from training in it.

    The lock goes with the process, however it ends.

    Raises:
      UserError: another process holds it, or the folder cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / "lock").open("w")
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written ({error.strerror}): choose another folder."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"Another process is training in {workdir}: wait for its end, or choose another "
                "--workdir."
            ) from None
        yield


def begin(workdir: Path, run: Run) -> None:
    """Writes config.json into a folder, or checks that the one there is of the same run.

    Raises:
      UserError: the folder cannot be written, or it holds a run with another config; the fields
        that differ are named.
    """
    try:
        has_config = (workdir / "config.json").exists()
        # Without a checkpoint nothing is lost, and a first attempt may well have been a mistake.
        if has_checkpoint(workdir):
            if not has_config:
                raise UserError(
                    f"{workdir} has checkpoints but no config.json to say of what: choose another "
                    "--workdir."
                )
            _check_same(workdir, read(workdir), run)
            return
        if has_config:
            read(workdir)  # refuses what is not ours to overwrite
        text = json.dumps(_as_json(run), indent=2) + "\n"
        # Whole or not at all: a half-written file would lock the folder.
        (workdir / "config.json.tmp").write_text(text)
        os.replace(workdir / "config.json.tmp", workdir / "config.json")
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written ({error.strerror}): choose another folder."
        ) from error


def has_checkpoint(workdir: Path) -> bool:
    """Whether there is anything to go on from."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


def _as_json(run: Run) -> dict[str, Any]:
    packages = ("jax", "flax", "optax", "tensorflow", "tensorflow-cpu")
    versions = {"byol_jax": byol_jax.__version__}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "config": run.config.to_dict(),
        "data": run.data,
        "steps_per_epoch": run.steps_per_epoch,
        "total_steps": run.total_steps,
        "versions": versions,
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
    }


def read(workdir: Path) -> Run:
    """The run that a folder's config.json describes.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    path = workdir / "config.json"
    try:
        record = json.loads(path.read_text())
        # Through default(), so that numbers and tuples have the types they had.
        config = config_lib.default()
        missing = sorted(_flat(config.to_dict()).keys() - _flat(record["config"]).keys())
        if missing:
            version = record.get("versions", {}).get("byol_jax")
            raise UserError(
                f"{workdir} is a run of byol_jax {version}, which had no config.{missing[0]}: use "
                f"that version, as this one ({byol_jax.__version__}) cannot read its checkpoints."
            )
        config.update(record["config"])
        return Run(config, record["data"], record["steps_per_epoch"])
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(
            f"{workdir} holds no run (no config.json): name the --workdir of a pre-training run."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a config of this program: {error!r}") from error


def _check_same(workdir: Path, before: Run, now: Run) -> None:
    old, new = _flat(before.config.to_dict()), _flat(now.config.to_dict())
    changed = [
        f"config.{key} ({old.get(key)} -> {new.get(key)})"
        for key in sorted(old | new)
        if old.get(key) != new.get(key)
    ]
    if before.data != now.data:
        changed += [
            f"{key} of the data ({before.data.get(key)} -> {now.data.get(key)})"
            for key in now.data
            if before.data.get(key) != now.data[key]
        ]
    if changed:
        raise UserError(
            f"{workdir} holds a run with other settings: {', '.join(changed)}. Go on with the old "
            "ones, or start anew in another --workdir."
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = list(value) if isinstance(value, tuple) else value
    return leaves


def initial_state(learner: byol.Learner, config: ConfigDict) -> byol.State:
    """The state before the first update."""
    shape = build.image_shape(config)
    return jax.jit(lambda: byol.init(learner, config.seed, shape))()


def abstract_state(learner: byol.Learner, config: ConfigDict) -> byol.State:
    """Shapes and dtypes of the state, without computing it."""
    return jax.eval_shape(lambda: initial_state(learner, config))


def checkpoints_of(workdir: Path) -> Checkpoints:
    """The checkpoints of a run, to read.

    Raises:
      UserError: there is none.
    """
    if not has_checkpoint(workdir):
        raise UserError(f"{workdir} has no checkpoint yet: let its pre-training save one first.")
    return Checkpoints(workdir / "checkpoints")


def restore(workdir: Path, step: int | None = None) -> Trained:
    """A run at a checkpoint, the newest by default, on the first local device.

    Raises:
      UserError: no run, no checkpoint, or not the one asked for.
    """
    run = read(workdir)
    learner = run.learner()
    with checkpoints_of(workdir) as checkpoints:
        chosen = checkpoints.latest_step() if step is None else step
        if chosen not in checkpoints.steps():
            raise UserError(
                f"{workdir} has no checkpoint of step {chosen}; it has {checkpoints.steps()}."
            )
        state = checkpoints.restore(chosen, abstract_state(learner, run.config))
    return Trained(run, learner, state)
