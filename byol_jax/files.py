"""Paths of runs: in this machine's file system, or in a bucket (gs://, s3://)."""

import os
from pathlib import Path

from etils import epath

from byol_jax.errors import UserError

AnyPath = Path | epath.Path


def path(where: str | os.PathLike) -> AnyPath:
    """The path that a user named; one of a bucket where it begins with gs:// or s3://.

    Raises:
      UserError: the packages to reach a bucket are not installed.
    """
    text = os.fspath(where)
    if "://" not in text:
        return Path(text).expanduser()
    try:
        there = epath.Path(text)
        there.exists()
    except ImportError as error:
        raise UserError(f"{text} cannot be reached: pip install {error.name}.") from error
    except Exception as error:  # each file system raises its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{text} cannot be reached ({reason[:200]}).") from error
    return there


def is_local(path: AnyPath) -> bool:
    """Whether a path is of this machine's file system: a file there can be locked and added to."""
    return isinstance(path, Path)


def write_whole(path: AnyPath, data: bytes) -> None:
    """Writes a file so that no fault can leave it half-written."""
    if not is_local(path):
        path.write_bytes(data)  # objects of a bucket are whole or not there
        return
    unfinished = path.with_name(f"{path.name}.tmp")
    with unfinished.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
