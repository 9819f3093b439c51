"""Saves and restores the state. Only this file imports Orbax.

STEP/state/       the arrays, written by Orbax
STEP/manifest/    dtype, shape and digest of every array (manifest.py), and the loop state

Orbax writes into a temporary folder and renames it when the checkpoint is complete. It hardly
checks the files later: a flipped byte can load as a different weight. So every leaf is compared
with the manifest, which is part of the same commit, when it is read.
"""

import asyncio
import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from byol_jax import byol
from byol_jax.errors import CheckpointError, UserError
from byol_jax.runs import manifest, processes

MANIFEST = "manifest.json"
# Orbax and TensorStore raise these when they cannot write; they have no types of their own for it.
WRITE_ERRORS = (OSError, ValueError, RuntimeError)


class RetentionPolicy(NamedTuple):
    """Which checkpoints are kept; the others are deleted when a newer one is complete."""

    newest: int  # number of newest checkpoints
    every_steps: int = 0  # all whose step is a multiple of this; 0: none
    best: str = ""  # the checkpoint with the highest score of this name; the newer one of equals
    step: int | None = None  # that of this step

    def kept(self, steps: Sequence[int], scores: dict[int, float]) -> set[int]:
        """The steps to keep, given the scores by step."""
        best = sorted((scores[step], step) for step in steps if step in scores)[-1:]
        return {
            *sorted(steps)[-self.newest :],
            *(step for step in steps if self.every_steps and step % self.every_steps == 0),
            *(step for _, step in best if self.best),
            *(step for step in steps if step == self.step),
        }


class Restored(NamedTuple):
    """The content of a checkpoint."""

    step: int
    state: byol.State  # on the first local device
    loop_state: dict[str, float]  # numbers of the training loop


class Checkpoints:
    """The checkpoints of one run, by step.

    Checkpoints are saved in the background; each appears under its name only when it is complete.
    Use as a context manager, or call `close`. If several processes train together, all open the
    same folder and make the same calls of `save`, `wait`, `restore_newest` and `best_score`.
    """

    def __init__(self, directory: Path | epath.Path, keep: RetentionPolicy | None = None):
        """Opens the checkpoints of a run.

        Args:
          directory: local, or an `etils.epath.Path` such as gs://bucket/run/checkpoints.
          keep: which checkpoints are kept when others are saved. None opens the folder read-only:
            nothing is created, deleted or moved.

        Raises:
          CheckpointError: `keep` is given and the folder cannot be created.
        """
        local = "://" not in str(directory)
        self._directory = epath.Path(directory).absolute() if local else epath.Path(directory)
        self._keep = keep
        self._manager: ocp.CheckpointManager | None = None
        self._saving: int | None = None  # the step that is being saved
        # From `save` to a successful `wait`: after an error other writes go on without a known end.
        self._quiet = contextlib.ExitStack()
        if keep is not None:
            self._open()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        # If one of several processes fails, it must not wait for others who may be waiting for it.
        if kind is None or jax.process_count() == 1:
            self.close()

    def close(self) -> None:
        """Waits for the checkpoint that is being saved; raises what `wait` raises."""
        try:
            self.wait()
        finally:
            self._close_manager()

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending; some may be damaged."""
        found = ocp.path.step.standard_name_format().find_all(self._directory)
        return sorted(metadata.step for metadata in found)

    def latest_step(self) -> int | None:
        """The last of `steps`, or None."""
        return max(self.steps(), default=None)

    def best_score(self) -> float | None:
        """The highest score of the policy's name in the saved checkpoints, and that being saved.

        The same in every process. None if no checkpoint has one.
        """
        scores = self._read_scores() if self._manager is None else self._scores
        saved = {*self.steps(), self._saving}
        best = max((value for step, value in scores.items() if step in saved), default=None)
        return processes.from_first(best)

    def save(
        self,
        step: int,
        state: byol.State,
        loop_state: dict[str, float] | None = None,
        score: float | None = None,
    ) -> None:
        """Saves a state in the background, unless this step is saved already.

        Waits for the previous checkpoint. The state may be donated afterwards.

        Args:
          step: number of updates.
          state: replicated on the devices; or NumPy arrays. Process 0 writes it.
          loop_state: finite numbers of the training loop, restored along with the state.
          score: of this state, higher for a better one, named by `RetentionPolicy.best`.

        Raises:
          CheckpointError: this checkpoint or the previous one could not be written; earlier ones
            are still complete.
        """
        self.wait()
        if processes.from_first(step in self.steps()):
            return
        if self._manager is None:
            self._open()
        if score is not None:
            self._scores[step] = score
        # A dictionary, so that the files can be read without our classes, and NumPy arrays, because
        # of replicated ones Orbax would write a part of each from every device: many small files,
        # and a program to compile for each shape. They are copied before the state is donated.
        tree = jax.device_get(jax.tree.map(_first_shard, state._asdict()))
        named = {} if score is None else {self._keep.best: score}
        record = {"step": step, "loop": loop_state or {}, "scores": named}
        self._saving = step
        self._quiet.enter_context(_quiet_orbax())
        with self._write_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(tree), manifest=_SaveManifest(record, tree)
                ),
                force=True,  # the caller decides which steps are saved
            )

    def check(self) -> None:
        """Raises what `wait` raises, if it is known already, without waiting."""
        if self._saving is not None:
            with self._write_errors():
                self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns when the checkpoint that is being saved is complete on disk.

        Raises:
          CheckpointError: it could not be written; earlier ones are still complete.
        """
        if self._saving is None:
            return
        with self._write_errors():
            self._manager.wait_until_finished()
        self._saving = None
        self._quiet.close()

    def restore(self, step: int, abstract: byol.State) -> Restored:
        """Reads a checkpoint and compares every leaf with what was saved, in this process alone.

        Args:
          step: one of `steps`.
          abstract: the shapes and dtypes that the state must have.

        Raises:
          CheckpointError: the files are damaged, or hold a state of other names, shapes or dtypes.
        """
        try:
            return self._restore(step, abstract)
        except _DamagedError as error:
            others = [other for other in self.steps() if other != step]
            raise CheckpointError(f"{error}. Use another step, of {others}.") from error

    def restore_newest(self, abstract: byol.State, log: Callable[[str], None]) -> Restored | None:
        """Reads the newest checkpoint that is undamaged in every process.

        With a retention policy, newer damaged ones are moved out of the way, so that their steps
        can be saved again. If all are damaged, all stay where they are.

        Args:
          abstract: the shapes and dtypes that the state must have.
          log: called with one line for each damaged checkpoint.

        Returns:
          The content of the checkpoint; None if there is no checkpoint.

        Raises:
          CheckpointError: all are damaged, hold another state, or cannot be moved.
        """
        problems: dict[int, str] = {}
        steps = self.steps()
        # Folders may appear a moment later in other processes.
        while (step := processes.from_first(max(steps, default=-1))) >= 0:
            try:
                restored = processes.run_on_all_processes(partial(self._restore, step, abstract))
            except _DamagedError as error:
                problems[step] = str(error)
                steps = [other for other in steps if other < step]
                continue
            for problem in problems.values():
                log(f"{problem}. Going back to that of step {step}.")
            if problems and self._keep is not None:
                log(f"Damaged checkpoints were moved to {self._move_aside(list(problems))}.")
            return restored
        if problems:
            raise CheckpointError(
                f"{'; '.join(problems.values())}. No other checkpoint is left: put back a copy of "
                "one, or start from scratch in another folder."
            )
        return None

    def _open(self) -> None:
        self._scores = self._read_scores()

        def should_preserve(checkpoints: Sequence[Any], **_) -> list[bool]:
            steps = [checkpoint.step for checkpoint in checkpoints]
            kept = self._keep.kept(steps, self._scores)
            return [step in kept for step in steps]

        try:
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    create=True,
                    cleanup_tmp_directories=True,  # left by a killed process
                    preservation_policy=types.SimpleNamespace(should_preserve=should_preserve),
                    # Orbax's own metadata may be damaged, and is not needed.
                    lightweight_initialize=True,
                    async_options=ocp.AsyncOptions(
                        # If a folder cannot be created, fail at once. Otherwise the writers would
                        # wait five minutes for it.
                        create_directories_asynchronously=False,
                        barrier_sync_fn=_wait_for_all,
                    ),
                ),
            )
        except OSError as error:
            raise CheckpointError(
                f"{self._directory} cannot be created ({_reason(error)}): choose another folder."
            ) from error

    def _close_manager(self) -> None:
        if self._manager is not None:
            with contextlib.suppress(*WRITE_ERRORS):  # raised by `wait` before
                self._manager.close()
            self._manager = None

    def _read_scores(self) -> dict[int, float]:
        scores, name = {}, self._keep.best if self._keep else ""
        for step in self.steps():
            with contextlib.suppress(_DamagedError):  # reported when it is restored
                scores[step] = self._read_manifest(step)["scores"].get(name)
        return {step: value for step, value in scores.items() if value is not None}

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Turns an error of the disk into a CheckpointError and removes the incomplete files."""
        try:
            yield
        except jax.errors.JaxRuntimeError:  # another process failed, not the disk
            raise
        except WRITE_ERRORS as error:
            self._close_manager()  # it would assume the files exist; the next one lists the folder
            step, self._saving = self._saving, None
            if processes.is_first():  # the incomplete files may be what fills the disk
                with contextlib.suppress(OSError):
                    for path in ocp.path.step.all_temporary_paths(self._directory):
                        path.get().rmtree(missing_ok=True)
            raise CheckpointError(
                f"The checkpoint of step {step} could not be written to {self._directory} "
                f"({_reason(error)}); earlier ones are complete. Fix this, and the run resumes "
                "from them."
            ) from error

    def _move_aside(self, steps: list[int]) -> epath.Path:
        aside = self._directory.parent / f"damaged_{self._directory.name}"

        def move() -> None:
            try:
                aside.mkdir(exist_ok=True)
                for step in steps:
                    target, number = aside / str(step), 1
                    while target.exists():
                        number += 1
                        target = aside / f"{step}-{number}"
                    (self._directory / str(step)).rename(target)
            except OSError as error:
                raise CheckpointError(
                    f"The damaged checkpoints of steps {steps} cannot be moved to {aside} "
                    f"({_reason(error)}): move or delete them."
                ) from error

        processes.run_on_all_processes(move if processes.is_first() else lambda: None)
        self._close_manager()
        self._open()
        return aside

    def _restore(self, step: int, abstract: byol.State) -> Restored:
        record, wanted = self._read_manifest(step), abstract._asdict()
        difference = manifest.difference(record["arrays"], manifest.leaves(wanted))
        if difference:
            raise CheckpointError(
                f"The checkpoint of step {step} in {self._directory} is of another network: "
                f"{difference}. Use the config and the version that it was saved with."
            )
        try:
            tree = _read_arrays(self._directory / str(step) / "state", wanted)
        except Exception as error:  # damaged metadata can raise anything
            what = str(error) if isinstance(error, _LeafError) else "its _METADATA cannot be read"
            raise self._damaged(step, what) from error
        difference = manifest.first_difference(manifest.describe(tree), record["leaves"])
        if difference:
            raise self._damaged(step, difference)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return Restored(step, type(abstract)(**jax.device_put(tree, device)), record["loop"])

    def _read_manifest(self, step: int) -> dict[str, Any]:
        """The record that `save` wrote, and its leaves as "arrays" of shapes and dtypes."""
        try:
            record = json.loads((self._directory / str(step) / "manifest" / MANIFEST).read_bytes())
            if record.pop("sha256") == _digest(record) and record["step"] == step:
                arrays = {
                    name: jax.ShapeDtypeStruct(leaf["shape"], leaf["dtype"])
                    for name, leaf in record["leaves"].items()
                }
                loop_state = {key: float(value) for key, value in record["loop"].items()}
                return record | {
                    "arrays": arrays,
                    "loop": loop_state,
                    "scores": dict(record["scores"]),
                }
            what = "is not as it was written"
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            what = "cannot be read"
        raise self._damaged(step, f"its {MANIFEST} {what}")

    def _damaged(self, step: int, what: str) -> "_DamagedError":
        return _DamagedError(
            f"The checkpoint of step {step} in {self._directory} is damaged: {what}"
        )


def save_tree(path: Path, tree: Any) -> None:
    """Writes a tree of arrays into a new folder that Orbax's `StandardCheckpointer` can read.

    Returns when it is complete on disk.

    Raises:
      CheckpointError: it could not be written.
    """
    try:
        with _quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), tree)
    except WRITE_ERRORS as error:
        raise CheckpointError(
            f"{path}: the arrays could not be written ({_reason(error)}). Fix this and try again."
        ) from error


class _DamagedError(UserError):
    """A checkpoint is not as it was written; the one before may be."""


class _LeafError(Exception):
    """A leaf cannot be read."""


def _read_arrays(directory: epath.Path, wanted: Any) -> Any:
    """Reads a tree as NumPy arrays, neither cast nor put on a device; raises _LeafError."""
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    with _quiet_orbax():
        # Orbax's `Checkpointer` would wait for all processes after reading: if one of them finds
        # damage, the others would wait forever.
        registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, _LeafReader()))
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
        with contextlib.closing(handler):
            restore_args = jax.tree.map(lambda _: as_numpy, wanted)
            return handler.restore(
                directory, args=ocp.args.PyTreeRestore(item=wanted, restore_args=restore_args)
            )


class _LeafReader(ocp.type_handlers.NumpyHandler):
    """Reads the leaves one by one, so that an error names its leaf."""

    async def deserialize(self, infos: Sequence[Any], args: Any = None) -> Sequence[np.ndarray]:
        read = super().deserialize
        found = await asyncio.gather(
            *(read([info], [arg]) for info, arg in zip(infos, args, strict=True)),
            return_exceptions=True,
        )
        for info, leaf in zip(infos, found, strict=True):
            if isinstance(leaf, BaseException):
                kind = str(leaf).partition(":")[0]  # of TensorStore, such as DATA_LOSS
                raise _LeafError(f"{info.name.replace('.', '/')} cannot be read ({kind})") from leaf
        return [leaf for (leaf,) in found]


class _ManifestHandler(ocp.AsyncCheckpointHandler):
    """Writes the manifest as a part of a checkpoint; computes the digests in the background."""

    async def async_save(self, directory: epath.Path, args: "_SaveManifest") -> list[Any]:
        if not processes.is_first():
            return []

        async def write() -> None:
            record = args.record | {"leaves": manifest.describe(args.tree)}
            record["sha256"] = _digest(record)
            (directory / MANIFEST).write_text(json.dumps(record))

        return [ocp.future.CommitFutureAwaitingContractedSignals(write(), name="manifest")]

    save = restore = None  # written in the background, read without Orbax


@ocp.args.register_with_handler(_ManifestHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _SaveManifest(ocp.args.CheckpointArgs):
    record: dict[str, Any]  # the manifest without the leaves and its own digest
    tree: Any  # NumPy arrays


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Drops what Orbax and TensorStore print about an error that they also raise."""
    # Orbax logs each exception with its traceback. At the first error it also closes its event loop
    # while other reads or writes continue, which then print that the loop is closed, or that nobody
    # retrieved their exceptions.

    def is_other(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname and "orbax" not in record.getMessage()

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    # Not undone at the end: writes that were given up are found when garbage is collected.
    warnings.filterwarnings("ignore", "coroutine 'async_serialize", RuntimeWarning)
    before, sys.unraisablehook = sys.unraisablehook, hook
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for logger in loggers:
        logger.addFilter(is_other)
    try:
        yield
    finally:
        if sys.unraisablehook is hook:
            sys.unraisablehook = before
        for logger in loggers:
            logger.removeFilter(is_other)


def _wait_for_all(*, key: str, timeout_ms: int) -> None:
    """Waits for all processes; while an exception is handled, raises it again instead."""
    if jax.process_count() == 1:
        return
    if error := sys.exception():
        raise error  # processes without an error never come
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _first_shard(leaf: Any) -> Any:
    """A replicated array's copy on the first device, so that it is copied to the host once."""
    return leaf.addressable_shards[0].data if isinstance(leaf, jax.Array) else leaf


def _reason(error: Exception) -> str:
    """The system's message in an error, if there is one; TensorStore adds a lot to it."""
    text = str(error) or type(error).__name__
    known = map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES))
    return next((reason for reason in known if reason in text), text.splitlines()[0][:200])
