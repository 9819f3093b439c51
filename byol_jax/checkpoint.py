"""Saving and restoring the state: the only file that knows Orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from byol_jax import byol
from byol_jax.errors import UserError


class Checkpoints:
    """The checkpoints of one run, by step; the newest `keep` stay.

    Saving goes on in the background, and a checkpoint appears under its name only when it is
    whole. Use as a context manager, or call `close`.
    """

    def __init__(self, directory: Path, keep: int | None = None):
        """With `keep`, the folder is made if need be; without, nothing is made or deleted."""
        self._directory = directory
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=keep is not None),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is being saved."""
        self.wait()
        self._manager.close()

    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All steps that have a whole checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def wait(self) -> None:
        """Returns when what was saved is whole on disk.

        Raises:
          UserError: it could not be written; what was saved before is still there.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self._directory}: the checkpoint could not be written ({_first_line(error)}); "
                "earlier ones are whole. Is the disk full?"
            ) from error

    def save(self, step: int, state: byol.State) -> None:
        """Saves a state unless this step is saved already; the state may be donated afterwards."""
        if self.latest_step() != step:
            # A dictionary, so that a reader needs no class of ours to make sense of the files.
            self._manager.save(step, args=ocp.args.StandardSave(state._asdict()))

    def restore(self, step: int, abstract: byol.State) -> byol.State:
        """Reads a state of the shapes and dtypes of `abstract` onto the first local device.

        Raises:
          UserError: the files are damaged, or hold other shapes.
        """
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), abstract._asdict()
        )
        try:
            restored = self._manager.restore(step, args=ocp.args.StandardRestore(wanted))
        except Exception as error:  # TensorStore raises no type of its own
            raise UserError(
                f"{self._directory / str(step)} cannot be read ({_first_line(error)}). If it is "
                "damaged, delete that folder, and the checkpoint before it is used."
            ) from error
        return byol.State(**restored)


def save_tree(path: Path, tree: Any) -> None:
    """Writes a tree of arrays into a new folder, for Orbax's own `StandardCheckpointer` to read.

    Returns when it is whole on disk.

    Raises:
      UserError: it could not be written.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), tree)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: the arrays could not be written ({_first_line(error)}). Is the disk full?"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
