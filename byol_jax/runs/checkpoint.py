"""Saving and restoring the state: the only file that knows Orbax.

STEP/state/       the arrays, as Orbax writes them
STEP/manifest/    what they must be when they are read (manifest.py), and what goes with them

Orbax writes a folder under another name, and renames it when it is whole. What becomes of the
files after that it hardly checks: a flipped byte can load as another weight. So every leaf that is
read is compared with the manifest, which comes in the same commit.
"""

import asyncio
import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from byol_jax import byol
from byol_jax.runs import manifest
from byol_jax.runs import orbax_noise
from byol_jax.runs import processes
from byol_jax.errors import UserError

MANIFEST = "manifest.json"
# What Orbax and TensorStore raise when they cannot write; they have no types of their own for it.
WRITE_ERRORS = (OSError, ValueError, RuntimeError)

orbax_noise.silence()


class RetentionPolicy(NamedTuple):
    """Which checkpoints stay; the others are deleted as newer ones become whole."""

    newest: int  # how many of the newest
    every_steps: int = 0  # all whose step is a multiple of this; 0: none for that reason
    best: bool = False  # the one saved with the highest kNN accuracy, the newer of equals


class Restored(NamedTuple):
    """What a checkpoint holds."""

    step: int
    state: byol.State  # on the first local device
    loop: dict[str, float]  # numbers of the training loop


class Checkpoints:
    """The checkpoints of one run, by step.

    Saving goes on in the background, and a checkpoint appears under its name only when it is
    whole. Use as a context manager, or call `close`. Where several processes train together, each
    opens the same folder, and all make the same calls of `save`, `wait` and `restore_newest`.
    """

    def __init__(self, directory: Path | epath.Path, keep: RetentionPolicy | None = None):
        """Opens the checkpoints of a run.

        Args:
          directory: where they are; also an `etils.epath.Path` such as gs://bucket/run/checkpoints.
          keep: which stay when others are saved. None opens them to read: nothing is made, deleted
            or moved.

        Raises:
          UserError: `keep` is given, and the folder cannot be made.
        """
        local = "://" not in str(directory)
        self._directory = epath.Path(directory).absolute() if local else epath.Path(directory)
        self._keep = keep
        self._manager: ocp.CheckpointManager | None = None
        self._last: int | None = None  # the step of the last call of `save`
        # Not Orbax's `Checkpointer`, which after reading waits for all processes: if one of them
        # finds damage, the others would wait for ever.
        self._reader = ocp.PyTreeCheckpointHandler(
            type_handler_registry=ocp.type_handlers.create_type_handler_registry(
                (np.ndarray, _LeafReader())
            )
        )
        if keep is not None:
            self._open()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        # One of several processes that fails does not wait for the others, who may wait for it.
        if kind is None or jax.process_count() == 1:
            self.close()

    def close(self) -> None:
        """Waits for what is being saved; raises what `wait` raises."""
        try:
            self.wait()
        finally:
            self._close_manager()
            self._reader.close()

    def steps(self) -> list[int]:
        """All steps that have a whole checkpoint, ascending; one damaged since is among them.

        Where this was opened to write, as of the last call of `save` or `wait`.
        """
        return self._listed() if self._manager is None else self._whole

    def latest_step(self) -> int | None:
        """The last of `steps`, or None."""
        return max(self.steps(), default=None)

    def best_knn(self) -> float | None:
        """The highest kNN accuracy of the saved checkpoints; None if there is none."""
        return max(self._knn.values(), default=None)

    def save(
        self,
        step: int,
        state: byol.State,
        loop: dict[str, float] | None = None,
        knn: float | None = None,
    ) -> None:
        """Saves a state in the background, unless this step is saved already.

        Waits for what is still being saved. The state may be donated afterwards.

        Args:
          step: the number of updates.
          state: whole on every device of every process; or NumPy arrays.
          loop: finite numbers of the training loop, which come back with the state.
          knn: the accuracy of this state, which `Keep.best` goes by.

        Raises:
          UserError: this checkpoint, or the one that was still being saved, could not be written;
            what was whole before still is.
        """
        # Not by its folder alone, which other processes may see a moment later.
        if step == self._last:
            return
        self.wait()
        if _of_first_process(step in self.steps()):
            return
        if self._manager is None:
            self._open()
        # A dictionary, so that a reader needs no class of ours to make sense of the files.
        tree = state._asdict()
        record = {"step": step, "loop": loop or {}, "knn": knn}
        if knn is not None:
            self._knn[step] = knn
        self._last = step
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(tree), manifest=_WriteManifest(record, tree)
                ),
                force=True,  # the caller decides which steps are saved
            )
        except jax.errors.JaxRuntimeError:  # of another process, not of the disk
            raise
        except WRITE_ERRORS as error:
            raise self._not_written(error) from error

    def check(self) -> None:
        """Raises what `wait` raises, if it is known already; without waiting."""
        if self._manager is None:
            return
        try:
            self._manager.check_for_errors()
        except WRITE_ERRORS as error:
            raise self._not_written(error) from error

    def wait(self) -> None:
        """Returns when what was saved is whole on disk.

        Raises:
          UserError: it could not be written; what was whole before still is.
        """
        if self._manager is None:
            return
        try:
            self._manager.wait_until_finished()
        except jax.errors.JaxRuntimeError:
            raise
        except WRITE_ERRORS as error:
            raise self._not_written(error) from error
        if self._last is not None and self._last not in self._whole:
            self._whole = self._listed()

    def restore(self, step: int, abstract: byol.State) -> Restored:
        """Reads a checkpoint, and compares every leaf with what was saved.

        Of several processes, each reads for itself.

        Args:
          step: one of `steps`.
          abstract: the shapes and dtypes that the state must have.

        Raises:
          UserError: the files are damaged, or hold a state of other names, shapes or dtypes.
        """
        try:
            return self._restore(step, abstract)
        except _DamagedError as error:
            others = [other for other in self.steps() if other != step]
            raise UserError(f"{error}. Use another step, of {others}.") from error

    def restore_newest(self, abstract: byol.State, say: Callable[[str], None]) -> Restored | None:
        """Reads the newest checkpoint that is undamaged, in every process.

        Where this was opened to write, the newer ones, which are damaged, are moved out of the way,
        so that their steps can be saved again. When none is good, all stay where they are.

        Args:
          abstract: the shapes and dtypes that the state must have.
          say: given a sentence for each damaged checkpoint.

        Returns:
          What it holds; None where there is no checkpoint.

        Raises:
          UserError: all are damaged, the files hold another state, or cannot be moved.
        """
        problems: dict[int, str] = {}
        steps = self.steps()
        while (step := _of_first_process(max(steps, default=-1))) >= 0:
            saved, damage = None, None
            try:
                saved = self._restore(step, abstract)
            except _DamagedError as error:
                damage = error
            try:
                processes.run_on_all_processes(lambda damage=damage: _refuse(damage))
            except UserError as error:
                problems[step] = str(error)
                steps = [other for other in steps if other < step]
                continue
            for problem in problems.values():
                say(f"{problem}. Going back to that of step {step}.")
            if problems and self._keep is not None:
                say(f"What is damaged was moved to {self._move_aside(list(problems))}.")
            return saved
        if problems:
            raise UserError(
                f"{'; '.join(problems.values())}. No other is left: put back a copy of one, or "
                "start anew in another folder."
            )
        return None

    def _open(self) -> None:
        self._whole = self._listed()
        self._knn: dict[int, float] = {}  # by step, for those that were measured
        try:
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    create=True,
                    cleanup_tmp_directories=True,  # what a process left that was killed
                    preservation_policy=_Preservation(self._keep, self._knn),
                    # Orbax's own metadata may be damaged, and nothing here needs it.
                    lightweight_initialize=True,
                    async_options=ocp.AsyncOptions(
                        # Where a folder cannot be made, this fails at once; else the writers would
                        # wait for it, for five minutes.
                        create_directories_asynchronously=False,
                        barrier_sync_fn=_wait_for_all,
                    ),
                ),
            )
        except OSError as error:
            raise UserError(
                f"{self._directory} cannot be made ({_reason(error)}): choose another folder."
            ) from error
        for step in self._whole:
            with contextlib.suppress(_DamagedError):  # found when it is to be restored
                knn = self._manifest(step).knn
                if knn is not None:
                    self._knn[step] = knn

    def _listed(self) -> list[int]:
        found = ocp.path.step.standard_name_format().find_all(self._directory)
        return sorted(metadata.step for metadata in found)

    def _close_manager(self) -> None:
        if self._manager is not None:
            with contextlib.suppress(*WRITE_ERRORS):  # raised by `wait` before
                self._manager.close()
            self._manager = None

    def _not_written(self, error: Exception) -> UserError:
        self._close_manager()  # it goes by what should be on disk; the next looks what is there
        step, self._last = self._last, None
        if processes.is_first():  # what is half-written may be what fills the disk
            with contextlib.suppress(OSError):
                for path in ocp.path.step.all_temporary_paths(self._directory):
                    path.get().rmtree(missing_ok=True)
        return UserError(
            f"The checkpoint of step {step} could not be written to {self._directory} "
            f"({_reason(error)}); earlier ones are whole. Mend that, and the run goes on from them."
        )

    def _move_aside(self, steps: list[int]) -> epath.Path:
        aside = self._directory.parent / f"damaged_{self._directory.name}"

        def move() -> None:
            try:
                aside.mkdir(exist_ok=True)
                for step in steps:
                    (self._directory / str(step)).rename(_unused(aside / str(step)))
            except OSError as error:
                raise UserError(
                    f"The damaged checkpoints of steps {steps} cannot be moved to {aside} "
                    f"({_reason(error)}): move or delete them."
                ) from error

        processes.run_on_all_processes(move if processes.is_first() else lambda: None)
        self._close_manager()
        self._open()
        return aside

    def _restore(self, step: int, abstract: byol.State) -> Restored:
        saved = self._manifest(step)
        wanted = abstract._asdict()
        difference = manifest.difference(saved.arrays, manifest.leaves(wanted))
        if difference:
            raise UserError(
                f"The checkpoint of step {step} in {self._directory} is of another network: "
                f"{difference}. Use the config and the version that it was saved with."
            )
        as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)  # neither cast nor on a device yet
        try:
            tree = self._reader.restore(
                self._directory / str(step) / "state",
                args=ocp.args.PyTreeRestore(
                    item=wanted, restore_args=jax.tree.map(lambda _: as_numpy, wanted)
                ),
            )
        except Exception as error:  # damaged metadata can be wrong in any way
            what = str(error) if isinstance(error, _LeafError) else "its _METADATA cannot be read"
            raise self._damaged(step, what) from error
        difference = manifest.first_difference(manifest.describe(tree), saved.leaves)
        if difference:
            raise self._damaged(step, difference)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return Restored(step, byol.State(**jax.device_put(tree, here)), saved.loop)

    def _manifest(self, step: int) -> "_Manifest":
        try:
            record = json.loads((self._directory / str(step) / "manifest" / MANIFEST).read_bytes())
            if record.pop("sha256") == _digest_of(record) and record["step"] == step:
                return _Manifest.from_json(record)
            what = "is not as it was written"
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            what = "cannot be read"
        raise self._damaged(step, f"its {MANIFEST} {what}")

    def _damaged(self, step: int, what: str) -> "_DamagedError":
        return _DamagedError(
            f"The checkpoint of step {step} in {self._directory} is damaged: {what}"
        )


def save_tree(path: Path, tree: Any) -> None:
    """Writes a tree of arrays into a new folder, for Orbax's own `StandardCheckpointer` to read.

    Returns when it is whole on disk.

    Raises:
      UserError: it could not be written.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), tree)
    except WRITE_ERRORS as error:
        raise UserError(
            f"{path}: the arrays could not be written ({_reason(error)}). Mend that and try again."
        ) from error


class _DamagedError(Exception):
    """A checkpoint is not as it was written; the one before may be."""


class _LeafError(Exception):
    """A leaf cannot be read at all."""


class _Manifest(NamedTuple):
    """What a manifest says, besides the step and the digest of itself."""

    leaves: manifest.Description
    arrays: dict[str, jax.ShapeDtypeStruct]  # the same, as shapes and dtypes
    loop: dict[str, float]
    knn: float | None

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "_Manifest":
        leaves = record["leaves"]
        arrays = {
            name: jax.ShapeDtypeStruct(leaf["shape"], leaf["dtype"])
            for name, leaf in leaves.items()
        }
        return cls(leaves, arrays, dict(record["loop"]), record["knn"])


class _Preservation:
    """Answers Orbax which checkpoints stay."""

    def __init__(self, keep: RetentionPolicy, knn: dict[int, float]):
        self._keep = keep
        self._knn = knn  # by step; grows as checkpoints are saved

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        stay = set(sorted(steps)[-self._keep.newest :])
        if self._keep.every_steps:
            stay |= {step for step in steps if step % self._keep.every_steps == 0}
        measured = [(self._knn[step], step) for step in steps if step in self._knn]
        if self._keep.best and measured:
            stay.add(max(measured)[1])
        return [step in stay for step in steps]


class _LeafReader(ocp.type_handlers.NumpyHandler):
    """Reads each leaf by itself, so that an error has the leaf's name."""

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
    """Writes the manifest as a part of a checkpoint, the digests being computed meanwhile."""

    async def async_save(self, directory: epath.Path, args: "_WriteManifest") -> list[Any]:
        if not processes.is_first():
            return []
        leaves = _on_host(args.tree)  # now: the state is donated as soon as this returns

        async def write() -> None:
            record = args.record | {"leaves": manifest.describe(leaves)}
            record["sha256"] = _digest_of(record)
            (directory / MANIFEST).write_text(json.dumps(record))

        return [ocp.future.CommitFutureAwaitingContractedSignals(write(), name="manifest")]

    def save(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("written by async_save only")

    def restore(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("read without Orbax")


@ocp.args.register_with_handler(_ManifestHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _WriteManifest(ocp.args.CheckpointArgs):
    record: dict[str, Any]  # all but the leaves and the digest of itself
    tree: Any


def _wait_for_all(*, key: str, timeout_ms: int) -> None:
    """Waits until every process is here; on the way out of an error, goes on with that instead.

    Orbax comes here in that case, too, where processes without an error never come.
    """
    if jax.process_count() == 1:
        return
    error = sys.exception()
    if error is not None:
        raise error
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _digest_of(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _on_host(tree: Any) -> Any:
    """The leaves of a tree as NumPy arrays; Orbax asks the same shards, and finds them copied."""
    arrays = jax.tree.map(
        lambda x: x.addressable_shards[0].data if isinstance(x, jax.Array) else x, tree
    )
    for array in jax.tree.leaves(arrays):
        if isinstance(array, jax.Array):
            array.copy_to_host_async()
    return jax.tree.map(np.asarray, arrays)


def _of_first_process(number: int) -> int:
    """The number that the first process has, in all: folders may be listed a moment apart."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _refuse(damage: _DamagedError | None) -> None:
    if damage is not None:
        raise UserError(str(damage))


def _unused(path: epath.Path) -> epath.Path:
    """The path, or where that exists the first of PATH-2, PATH-3... that does not."""
    others = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(other for other in itertools.chain([path], others) if not other.exists())


def _reason(error: Exception) -> str:
    """What the system says in an error, where it does; TensorStore wraps that in much else."""
    text = str(error) or type(error).__name__
    known = map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES))
    return next((reason for reason in known if reason in text), text.splitlines()[0][:200])
