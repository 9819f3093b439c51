"""A run and its folder: what is fixed at its start, config.json, and restoring a checkpoint.

config.json            the config, the data, the length, and the versions that wrote it
metrics.jsonl          metrics by step
checkpoints/           the state by step; damaged_checkpoints/ has those found damaged
decode_errors.jsonl    images that were replaced (config.data.on_decode_error=skip)
eval/                  results of evaluations
views.png, curves.png  the first views; loss, health and accuracy by step
events.*               the metrics for TensorBoard
tracking_id            of the run at services that get its metrics (config.log_to)
lock                   held by the process that trains
"""

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from ml_collections import ConfigDict, FrozenConfigDict

import byol_jax
from byol_jax import backend, byol, data, parallel
from byol_jax.errors import CheckpointError, ConfigError, DataError, OwnEncoderError
from byol_jax.runs import build, kinds, paths, tree
from byol_jax.runs import config as config_lib
from byol_jax.runs.checkpoint import Checkpoints
from byol_jax.runs.resolve import from_record

# Settings that may change when a run resumes: they do not change what is learned, except how data
# errors and non-finite updates are handled. And data.source, if the data's fingerprint is the same.
MUTABLE_ON_RESUME = (
    *("data.dir", "data.service", "data.on_decode_error", "on_nonfinite", "max_skipped_updates"),
    *("encoder.remat", "cpu_convolution", "log_every_steps", "log_to"),
    *("checkpoint.", "evaluation.", "health."),
)

SHOWN = 100  # characters of a setting in messages


class Run(NamedTuple):
    """What is fixed when a run starts."""

    config: ConfigDict  # resolved
    # name, num_examples, num_classes and class_names (None without labels), fingerprint (or None)
    data: dict[str, Any]
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Updates in the complete run."""
        return config_lib.total_steps(self.config, self.steps_per_epoch)

    @property
    def warmup_steps(self) -> int:
        """Updates until the learning rate is at its peak."""
        return config_lib.warmup_steps(self.config, self.steps_per_epoch)

    @property
    def cooldown_start(self) -> int | None:
        """The step whose state a longer run can start from; None if there is none."""
        return config_lib.cooldown_start(self.config, self.steps_per_epoch)

    def learning_rate(self) -> optax.Schedule:
        """The learning rate by step; raises ConfigError if the warm-up is longer than the run."""
        return build.learning_rate(self.config, self.steps_per_epoch)

    def learner(self, axis_name: str | None = None, *, for_training: bool = False) -> byol.Learner:
        """The learner of this run; the same object for equal runs of one process.

        Only for training does it have `config.augment.function`, as importing that runs its code.
        """
        config = self.config.copy_and_resolve_references()
        if not for_training:
            kinds.of(config).without_user_code(config)
        config = FrozenConfigDict(config)
        own = config_lib.own_classes(config)
        return _learner(config, own, self.data["num_classes"], self.steps_per_epoch, axis_name)


@functools.lru_cache(parallel.KEPT)
def _learner(
    config: FrozenConfigDict,
    own_classes: tuple[type, ...],  # of the names in the config, for the cache alone
    num_classes: int | None,
    steps_per_epoch: int,
    axis_name: str | None,
) -> byol.Learner:
    del own_classes
    rate = build.learning_rate(config, steps_per_epoch)
    total = config_lib.total_steps(config, steps_per_epoch)
    return build.make_learner(config, rate, total, num_classes, axis_name)


class Trained(NamedTuple):
    """A run at one of its checkpoints, for evaluation and export."""

    run: Run
    learner: byol.Learner
    state: byol.State


def make_run(config: ConfigDict, source: data.Source) -> Run:
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
    """A digest that is the same on all processes of a run, and differs from other runs'.

    Each process may have the data in a place of its own, if their fingerprint shows them equal.
    """
    config, description = run.config.copy_and_resolve_references(), dict(run.data)
    for key in {"dir", "service"} & set(config.data):
        config.data[key] = ""
    if description.get("fingerprint") is not None:
        config.data.source = description["name"] = ""
    text = json.dumps([config.to_dict(), description, run.steps_per_epoch], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def lock_workdir(workdir: paths.AnyPath) -> Iterator[None]:
    """Makes the folder if needed, and keeps other processes from training in it.

    The lock ends with the process, even if that is killed. Folders in a bucket are not locked.

    Raises:
      CheckpointError: another process holds the lock, or the folder cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / "lock").open("a") if paths.is_local(workdir) else None
    except OSError as error:
        raise CheckpointError(
            f"--workdir={workdir} cannot be written ({error.strerror}): choose another folder."
        ) from error
    with file or contextlib.nullcontext():
        try:
            if file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"Another process is training in {workdir}: wait for its end, or choose another "
                "--workdir."
            ) from None
        except OSError:  # some network file systems have no locks
            pass
        yield


def prepare_workdir(
    workdir: paths.AnyPath, run: Run, order_depends_on_processes: bool = False
) -> list[str]:
    """Writes config.json into a folder, if the folder is empty or holds the same run.

    With `order_depends_on_processes`, the order of the data depends on the number of processes.

    Returns:
      Lines for the log about settings that changed since the last start.

    Raises:
      ConfigError: the folder holds a run with other settings; they are named.
      DataError: the folder holds a run on other images.
      CheckpointError: the folder cannot be read or written.
    """
    path, changes = workdir / "config.json", []
    with paths.translate_write_errors(workdir):
        exists = path.exists()
        # Without a checkpoint nothing is lost: a failed first attempt may be overwritten.
        if has_checkpoint(workdir):
            if not exists:
                raise CheckpointError(
                    f"{workdir} has checkpoints, but no config.json: put back a copy, such as the "
                    "one that this command writes into another --workdir."
                )
            changes = _config_changes(workdir, read(workdir), run)
            record = paths.read_record(workdir)
            now, then = computed_by(run.config), record.get("computed_by")
            if isinstance(then, dict) and then != now:
                changes.append(
                    f"Computed by {describe(then)} before, by {describe(now)} now. Rounding "
                    "differs from here on: the result will not be the same to the bit."
                )
            before = record.get("processes")
            if order_depends_on_processes and before != jax.process_count():
                changes.append(
                    f"This run had {before} processes and now has {jax.process_count()}: each "
                    "reads its own part of the records, so from here on the order of the images "
                    "differs, and the result will not be the same to the bit."
                )
            if not changes:
                return []
        elif exists:
            read(workdir)  # do not overwrite a config.json of another program
        paths.write_atomically(path, (json.dumps(_record(run), indent=2) + "\n").encode())
    return changes


def has_checkpoint(workdir: paths.AnyPath) -> bool:
    """Whether there is a checkpoint to resume from."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


def _record(run: Run) -> dict[str, Any]:
    """The content of config.json."""
    versions = {"byol_jax": byol_jax.__version__}
    for package in ("jax", "flax", "optax", "tensorflow", "tensorflow-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "config": run.config.to_dict(),
        "data": run.data,
        "steps_per_epoch": run.steps_per_epoch,
        "total_steps": run.total_steps,
        "versions": versions,
        "computed_by": computed_by(run.config),
        "processes": jax.process_count(),
    }


def computed_by(config: ConfigDict) -> dict[str, Any]:
    """The devices of all processes; on a CPU also what rounding depends on, as JSON has it."""
    facts = {
        "platform": jax.default_backend(),
        "devices": jax.device_count(),
        "kind": jax.devices()[0].device_kind,
        "xla_flags": os.environ.get("XLA_FLAGS", "").strip(),
    }
    if facts["platform"] == "cpu":
        chosen = backend.choose_convolution(config.cpu_convolution, dtype=config.dtype)
        facts |= {"kind": backend.processor(), "convolutions": chosen.name}
        facts |= {"threads": chosen.threads}
    return facts


def describe(facts: dict[str, Any]) -> str:
    """What `computed_by` returned, as text."""
    count = facts.get("devices")
    text = f"{count} {facts.get('platform')} device{'s' * (count != 1)} ({facts.get('kind')})"
    if facts.get("convolutions") == backend.ONEDNN:
        threads = facts.get("threads")
        text += f", convolutions by oneDNN ({threads} thread{'s' * (threads != 1)} per device)"
    elif "convolutions" in facts:
        text += ", convolutions by XLA"
    return text + (f", XLA_FLAGS={facts['xla_flags']}" if facts.get("xla_flags") else "")


def cpu_devices(workdir: paths.AnyPath) -> int | None:
    """The CPU devices of the run in a folder, of all processes; None if unknown."""
    try:
        if has_checkpoint(workdir):
            match paths.read_record(workdir):
                case {"computed_by": {"platform": "cpu", "devices": int(count)}} if count >= 1:
                    return count
    except (OSError, ValueError):  # reported by `read`
        pass
    return None


def read(workdir: paths.AnyPath) -> Run:
    """The run that a folder's config.json describes.

    Raises:
      CheckpointError: there is none, or it cannot be read.
    """
    try:
        match paths.read_record(workdir):
            case {
                "config": dict(config),
                "data": {"name": str(), "num_classes": None | int() as classes} as description,
                "steps_per_epoch": int(steps),
            } if steps >= 1 and (classes is None or classes >= 1):
                return Run(from_record(config), description, steps)
        raise ValueError("'config', 'data' or 'steps_per_epoch' is missing or garbled")
    except FileNotFoundError:
        raise CheckpointError(
            f"{workdir} holds no run (no config.json): name the --workdir of a pre-training run."
        ) from None
    except OwnEncoderError as error:
        raise CheckpointError(f"{workdir}: {error}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{workdir / 'config.json'} is not a config of this program "
            f"({str(error).rstrip('.')}): put back a copy, such as the one that the run's own "
            "command writes into another --workdir."
        ) from error


def _config_changes(workdir: paths.AnyPath, before: Run, now: Run) -> list[str]:
    """A line about changed settings that may change, if any; raises an error about others."""
    old, new = tree.flat(before.config), tree.flat(now.config)
    changed = {
        key: f"config.{key} ({_shown(old.get(key))} -> {_shown(new.get(key))})"
        for key in sorted(old | new)
        if old.get(key) != new.get(key)
    }
    mutable = MUTABLE_ON_RESUME
    differing = [key for key in now.data if before.data.get(key) != now.data[key]]
    if now.data.get("fingerprint") is not None and differing in ([], ["name"]):
        mutable, differing = (*mutable, "data.source"), []  # the same images in another place
    refused = [text for key, text in changed.items() if not key.startswith(mutable)]
    if differing in (["fingerprint"], ["num_examples", "fingerprint"]) and not refused:
        raise DataError(
            f"The images of {now.data['name']} are not those that the run in {workdir} began with "
            f"({before.data.get('num_examples')} then, {now.data['num_examples']} now, or under "
            "other names): put back what was removed or renamed (any image under the old name will "
            "do), and take out what was added; or start from scratch in another --workdir."
        )
    refused += [
        f"{key} of the data ({before.data.get(key)} -> {now.data[key]})" for key in differing
    ]
    if refused:
        raise ConfigError(
            f"{workdir} holds a run with other settings: {', '.join(refused)}. Resume with the old "
            "ones, or start from scratch in another --workdir."
        )
    if not changed:
        return []
    moved = "; the images are the same by their fingerprint" if "data.source" in changed else ""
    return [f"Changed since the last start: {', '.join(changed.values())}{moved}."]


def _shown(value: Any) -> str:
    """A value of a config as text; of a long one, such as a vocabulary, the beginning."""
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def initial_state(learner: byol.Learner, config: ConfigDict) -> byol.State:
    """The state before the first update, from random weights."""
    init = _init_fn(learner, FrozenConfigDict(config))
    return init(config.seed, kinds.of(config).example_batch(config))


def abstract_state(learner: byol.Learner, config: ConfigDict) -> byol.State:
    """Shapes and dtypes of the state, without computing it."""
    init = _init_fn(learner, FrozenConfigDict(config))
    return jax.eval_shape(init, config.seed, kinds.of(config).example_batch(config))


@functools.lru_cache(parallel.KEPT)
def _init_fn(
    learner: byol.Learner, config: FrozenConfigDict
) -> Callable[[int, byol.Batch], byol.State]:
    return jax.jit(build.init_fn(config, learner))


def checkpoints_of(workdir: paths.AnyPath) -> Checkpoints:
    """The checkpoints of a run, for reading.

    Raises:
      CheckpointError: there is none.
    """
    if not has_checkpoint(workdir):
        raise CheckpointError(
            f"{workdir} has no checkpoint yet: let its pre-training save one first."
        )
    return Checkpoints(workdir / "checkpoints")


def restore(workdir: paths.AnyPath, step: int | None = None) -> Trained:
    """A run at a checkpoint, on the first local device.

    Args:
      workdir: the folder of the run.
      step: None for the newest that is not damaged; damage to newer ones is printed to stderr.

    Raises:
      CheckpointError: no run, no checkpoint, none of this step, or it is damaged.
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
            raise CheckpointError(
                f"{workdir} has no checkpoint of step {step}; it has {checkpoints.steps()}."
            )
    return Trained(run, learner, saved.state)
