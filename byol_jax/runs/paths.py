"""Paths of runs: in this machine's file system, or in a bucket (gs://, s3://)."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from byol_jax.errors import UserError

AnyPath = Path | epath.Path
BUCKETS = ("gs://", "s3://")
_STAGING = ".export-"


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


@contextlib.contextmanager
def writing_folder(directory: Path, record: dict[str, Any]) -> Iterator[Path]:
    """A place to write the files of an export in; they move into `directory` as the block ends.

    When the block fails, `directory` is left as it was. Files that the user has put beside an
    earlier export stay.

    Args:
      directory: made if need be.
      record: what config.json shall say; its "format" names the kind.

    Yields:
      An empty folder on the same disk.

    Raises:
      UserError: `directory` cannot be written, or holds something else than an earlier export of
        this kind.
    """
    _check_ours_or_new(directory, record["format"])
    existed = directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_STAGING, dir=directory) as staging:
            new, old = Path(staging, "new"), Path(staging, "old")
            new.mkdir()
            old.mkdir()
            yield new
            (new / "config.json").write_text(json.dumps(record, indent=2) + "\n")
            try:
                for path in sorted(new.iterdir()):
                    if (directory / path.name).exists():
                        os.rename(directory / path.name, old / path.name)
                    os.rename(path, directory / path.name)
            except OSError:
                for path in old.iterdir():
                    _move_over(path, directory / path.name)
                raise
    except OSError as error:
        raise UserError(
            f"--output={directory} cannot be written ({error.strerror or error}): choose another "
            "folder."
        ) from error
    finally:
        if not existed:
            with contextlib.suppress(OSError):  # not empty: all went well
                directory.rmdir()


def read_record(directory: Path) -> dict[str, Any]:
    """What config.json says.

    Raises:
      OSError, ValueError: it cannot be read, or is no JSON object.
    """
    try:
        record = json.loads((directory / "config.json").read_text())
    except RecursionError:
        raise ValueError("its values are nested too deep") from None
    if not isinstance(record, dict):
        raise ValueError(f"it holds a {type(record).__name__} in place of an object")
    return record


def _move_over(path: Path, place: Path) -> None:
    """Moves a file or folder to a place where another may be."""
    if place.is_dir():
        shutil.rmtree(place)
    os.replace(path, place)


def _check_ours_or_new(directory: Path, kind: str) -> None:
    try:
        # What a process that was killed has left of its attempt is nothing to keep.
        if not directory.exists() or all(p.name.startswith(_STAGING) for p in directory.iterdir()):
            return
        ours = read_record(directory).get("format") == kind
    except NotADirectoryError:  # a file on the way: `writing_folder` says so
        return
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise UserError(
            f"--output={directory} holds something else than an earlier export of this kind "
            f"({kind}): choose another folder."
        )
