"""What a run keeps in its folder, besides checkpoints and metrics: config.json, and how to return.

config.json      the whole config, the data, the length, and the versions that made it
metrics.jsonl    one line for each reading (writers.py)
checkpoints/     the state, by step (checkpoint.py); damaged_checkpoints/ what was found damaged
decode_errors.jsonl the images that were replaced, with config.data.on_decode_error=skip (decode_error_log.py)
eval/            what `byol_jax.cli.evaluate` found
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from ml_collections import ConfigDict

import byol_jax
from byol_jax.runs import build
from byol_jax import byol
from byol_jax.runs import config as config_lib
from byol_jax import data
from byol_jax.runs.checkpoint import Checkpoints
from byol_jax.errors import UserError
from byol_jax.runs.paths import AnyPath
from byol_jax.runs.paths import is_local
from byol_jax.runs.paths import write_atomically

# What may change from one start of a run to the next: it cannot change what is learned (but for
# what is done about data or numbers that an undisturbed run does not meet).
MUTABLE_ON_RESUME = (
    *("data.dir", "data.service", "data.on_decode_error", "on_nonfinite", "max_skipped_updates"),
    *("encoder.remat", "log_every_steps", "checkpoint.", "knn.", "health."),
)


class Run(NamedTuple):
    """What is fixed when a run starts, and cannot change when it goes on."""

    config: ConfigDict  # resolved
    # name, num_examples, num_classes and class_names (None without labels), listing
    data: dict[str, Any]
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


def make_run(config: ConfigDict, source: "input_lib.Source") -> Run:
    """The run of a resolved config on its training images."""
    description = {
        "name": source.name,
        "num_examples": source.num_examples,
        "num_classes": source.num_classes,
        "class_names": None if source.class_names is None else list(source.class_names),
        "fingerprint": source.fingerprint(),
    }
    return Run(config, description, data.steps_per_epoch(source, config.batch_size))


def fingerprint(run: Run) -> str:
    """A text that is the same for all processes of a run, and hardly for another run."""
    config = run.config.copy_and_resolve_references()
    config.data.dir = config.data.service = ""  # these may be a machine's own
    text = json.dumps([config.to_dict(), run.data, run.steps_per_epoch], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def lock_workdir(workdir: AnyPath) -> Iterator[None]:
    """Makes the folder if need be, and keeps other processes from training in it.

    The lock goes with the process, however it ends. In a bucket nothing can be locked.

    Raises:
      UserError: another process holds it, or the folder cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / "lock").open("w") if is_local(workdir) else contextlib.nullcontext()
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written ({error.strerror}): choose another folder."
        ) from error
    with lock as file:
        try:
            if file is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another process is training in {workdir}: wait for its end, or choose another "
                "--workdir."
            ) from None
        except OSError:  # some network file systems know no locks: as in a bucket
            pass
        yield


def prepare_workdir(workdir: AnyPath, run: Run, order_depends_on_hosts: bool = False) -> list[str]:
    """Writes config.json into a folder, after a check that what is there is of the same run.

    Args:
      workdir: the folder.
      run: what is about to be trained in it.
      order_depends_on_hosts: whether its data come in another order with other processes.

    Returns:
      What to tell: which settings are others than at the last start, of those that may be.

    Raises:
      UserError: the folder cannot be written, or it holds a run with another config; the fields
        that differ are named.
    """
    news = []
    try:
        has_config = (workdir / "config.json").exists()
        # Without a checkpoint nothing is lost, and a first attempt may well have been a mistake.
        if has_checkpoint(workdir):
            if not has_config:
                raise UserError(
                    f"{workdir} has checkpoints, but no config.json says of what: put back a copy, "
                    "such as the one that this command writes into another --workdir."
                )
            news = _changes(workdir, read(workdir), run)
            before = json.loads((workdir / "config.json").read_text()).get("processes")
            if order_depends_on_hosts and before != jax.process_count():
                news.append(
                    f"This run had {before} processes and goes on with {jax.process_count()}: each "
                    "reads its own part of the records, so from here the images come in another "
                    "order, and the result will not be the same to the bit."
                )
            if not news:
                return []
        elif has_config:
            read(workdir)  # refuses what is not ours to overwrite
        write_atomically(workdir / "config.json", (json.dumps(_as_json(run), indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written ({error.strerror}): choose another folder."
        ) from error
    return news


def has_checkpoint(workdir: AnyPath) -> bool:
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
        "processes": jax.process_count(),
    }


def read(workdir: AnyPath) -> Run:
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
        try:
            config, _ = config_lib.resolve(config)
        except UserError as error:
            raise _not_a_config(path, str(error).rstrip(".")) from error
        run = Run(config, record["data"], record["steps_per_epoch"])
        _check_data(path, run)
        return run
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(
            f"{workdir} holds no run (no config.json): name the --workdir of a pre-training run."
        ) from None
    except (
        OSError,
        ValueError,
        ArithmeticError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise _not_a_config(path, repr(error)) from error


def _not_a_config(path: AnyPath, reason: str) -> UserError:
    return UserError(
        f"{path} is not a config of this program ({reason}): put back a copy, such as the one that "
        "the run's own command writes into another --workdir."
    )


def _check_data(path: AnyPath, run: Run) -> None:
    """Raises UserError, KeyError or TypeError unless the data are as `Run` says."""
    classes, steps = run.data["num_classes"], run.steps_per_epoch
    fits = isinstance(run.data["name"], str) and (classes is None or type(classes) is int)
    if not fits or (classes or 1) < 1 or type(steps) is not int or steps < 1:
        raise _not_a_config(path, "'data' or 'steps_per_epoch' is garbled")


def _changes(workdir: AnyPath, before: Run, now: Run) -> list[str]:
    """The free settings that are others now; raises UserError where another one is."""
    old, new = _flat(before.config.to_dict()), _flat(now.config.to_dict())
    changed = {
        key: f"config.{key} ({old.get(key)} -> {new.get(key)})"
        for key in sorted(old | new)
        if old.get(key) != new.get(key)
    }
    wrong = [text for key, text in changed.items() if not key.startswith(MUTABLE_ON_RESUME)]
    others = [key for key in now.data if before.data.get(key) != now.data[key]]
    if others in (["fingerprint"], ["num_examples", "fingerprint"]) and not wrong:
        raise UserError(
            f"The images of {now.data['name']} are not those that the run in {workdir} began with "
            f"({before.data['num_examples']} then, {now.data['num_examples']} now, or under other "
            "names): put back what was removed or renamed (any image under the old name will do), "
            "and take out what was added; or start anew in another --workdir."
        )
    wrong += [f"{key} of the data ({before.data.get(key)} -> {now.data[key]})" for key in others]
    if wrong:
        raise UserError(
            f"{workdir} holds a run with other settings: {', '.join(wrong)}. Go on with the old "
            "ones, or start anew in another --workdir."
        )
    return [f"Changed since the last start: {', '.join(changed.values())}."] if changed else []


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
    batch = build.example_batch(config)
    return jax.jit(lambda: byol.init(learner, config.seed, batch))()


def abstract_state(learner: byol.Learner, config: ConfigDict) -> byol.State:
    """Shapes and dtypes of the state, without computing it."""
    return jax.eval_shape(lambda: initial_state(learner, config))


def checkpoints_of(workdir: AnyPath) -> Checkpoints:
    """The checkpoints of a run, to read.

    Raises:
      UserError: there is none.
    """
    if not has_checkpoint(workdir):
        raise UserError(f"{workdir} has no checkpoint yet: let its pre-training save one first.")
    return Checkpoints(workdir / "checkpoints")


def restore(workdir: AnyPath, step: int | None = None) -> Trained:
    """A run at a checkpoint, on the first local device.

    Without a step at the newest that is not damaged; what is wrong with newer ones is said on
    stderr.

    Raises:
      UserError: no run, no checkpoint, or not the one asked for, or it is damaged.
    """
    run = read(workdir)
    learner = run.learner()
    abstract = abstract_state(learner, run.config)
    with checkpoints_of(workdir) as checkpoints:
        if step is None:
            saved = checkpoints.restore_newest(abstract, partial(print, file=sys.stderr))
        elif step in checkpoints.steps():
            saved = checkpoints.restore(step, abstract)
        else:
            raise UserError(
                f"{workdir} has no checkpoint of step {step}; it has {checkpoints.steps()}."
            )
    return Trained(run, learner, saved.state)
