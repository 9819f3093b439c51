"""Paths of runs and exports, local or in a bucket (gs://, s3://), and safe ways to write them."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from byol_jax.errors import CheckpointError, ConfigError

AnyPath = Path | epath.Path
BUCKETS = ("gs://", "s3://")
_STAGING = ".export-"


def path(name: str | os.PathLike) -> AnyPath:
    """Returns a path that a user named; in a bucket if it begins with gs:// or s3://.

    Raises:
      ConfigError: it begins with another scheme, or the packages for its bucket are not installed.
      CheckpointError: the bucket cannot be reached.
    """
    text = os.fspath(name)
    if "://" not in text:
        return Path(text).expanduser()
    if not text.startswith(BUCKETS):
        raise ConfigError(f"{text} is neither a path nor in a bucket ({' or '.join(BUCKETS)}).")
    try:
        found = epath.Path(text)
        found.exists()
    except ImportError as error:
        raise ConfigError(f"{text} cannot be reached: pip install {error.name}.") from error
    except Exception as error:  # each file system raises its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{text} cannot be reached ({reason[:200]}): check the network and the credentials."
        ) from error
    return found


def file_name(text: str) -> str:
    """A text as the name of a file, which is limited in length and does not begin with a dot."""
    return re.sub(r"[^\w.]+", "-", text)[-100:].lstrip(".")


def is_local(path: AnyPath) -> bool:
    """Whether a path is in a local file system, where files can be locked and appended to."""
    return isinstance(path, Path)


@contextlib.contextmanager
def translate_write_errors(path: AnyPath) -> Iterator[None]:
    """Turns an error of the disk, raised while `path` is written, into a CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror or error}): fix this, and the same command "
            "resumes from the last checkpoint, if there is one."
        ) from error


def write_atomically(path: AnyPath, data: bytes) -> None:
    """Writes a file so that it is never incomplete.

    Raises:
      CheckpointError: it cannot be written; the previous file is unchanged.
    """
    with translate_write_errors(path):
        if not is_local(path):
            path.write_bytes(data)  # objects in a bucket are complete or absent
            return
        temporary = path.with_name(f"{path.name}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def write_folder(directory: Path, record: dict[str, Any]) -> Iterator[Path]:
    """Yields an empty folder; its files, and config.json, move into `directory` as the block ends.

    If the block fails, `directory` is unchanged. Files that the user added to an earlier export
    stay. `record` is the content of config.json; its "format" names the kind of export.

    Raises:
      CheckpointError: `directory` cannot be written, or holds anything but an earlier export of
        this kind.
    """
    _check_replaceable(directory, record["format"])
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
                    target = directory / path.name
                    if target.is_dir():
                        shutil.rmtree(target)
                    os.replace(path, target)
                raise
    except OSError as error:
        raise CheckpointError(
            f"--output={directory} cannot be written ({error.strerror or error}): choose another "
            "folder."
        ) from error
    finally:
        if not existed:
            with contextlib.suppress(OSError):  # not empty: the export is complete
                directory.rmdir()


def read_record(directory: Path) -> dict[str, Any]:
    """Returns the content of config.json.

    Raises:
      OSError, ValueError: it cannot be read, or is not a JSON object.
    """
    try:
        record = json.loads((directory / "config.json").read_text())
    except RecursionError:
        raise ValueError("its values are nested too deep") from None
    if not isinstance(record, dict):
        raise ValueError(f"it holds a {type(record).__name__} in place of an object")
    return record


def _check_replaceable(directory: Path, kind: str) -> None:
    """Raises CheckpointError unless the folder is new, empty or an earlier export of this kind."""
    with contextlib.suppress(OSError, ValueError):
        # A killed process may have left its staging folder. `write_folder` reports a file.
        if not directory.is_dir() or all(p.name.startswith(_STAGING) for p in directory.iterdir()):
            return
        if read_record(directory).get("format") == kind:
            return
    raise CheckpointError(
        f"--output={directory} holds something else than an earlier export of this kind "
        f"({kind}): choose another folder."
    )
