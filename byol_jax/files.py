"""Paths of runs: in this machine's file system, or in a bucket (gs://, s3://)."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from byol_jax.errors import UserError

AnyPath = Path | epath.Path
BUCKETS = ("gs://", "s3://")


def path(where: str | os.PathLike) -> AnyPath:
    """The path that a user named; one of a bucket where it begins with gs:// or s3://.

    Raises:
      UserError: the packages to reach a bucket are not installed.
    """
    text = os.fspath(where)
    if "://" not in text:
        return Path(text).expanduser()
    if not text.startswith(BUCKETS):
        raise UserError(f"{text} is neither a path nor in a bucket ({' or '.join(BUCKETS)}).")
    try:
        there = epath.Path(text)
        there.exists()
    except ImportError as error:
        raise UserError(f"{text} cannot be reached: pip install {error.name}.") from error
    except Exception as error:  # each file system raises its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{text} cannot be reached ({reason[:200]}): see to the network and the credentials."
        ) from error
    return there


def is_local(path: AnyPath) -> bool:
    """Whether a path is of this machine's file system: a file there can be locked and added to."""
    return isinstance(path, Path)


@contextlib.contextmanager
def writing(path: AnyPath) -> Iterator[None]:
    """Turns an error of the disk, while a file is written inside, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): mend that, and the same "
            "command goes on from the last checkpoint, if there is one."
        ) from error


def write_whole(path: AnyPath, data: bytes) -> None:
    """Writes a file so that no fault can leave it half-written.

    Raises:
      UserError: it cannot be written; what was there before still is.
    """
    with writing(path):
        if not is_local(path):
            path.write_bytes(data)  # objects of a bucket are whole or not there
            return
        unfinished = path.with_name(f"{path.name}.tmp")
        try:
            with unfinished.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise
