"""How an export gets into its folder: all of it or nothing, and never over something else.

Every export has a config.json whose "format" says what wrote the folder; by it an earlier export
of the same kind is known, which a new one may replace.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from byol_jax.errors import UserError

_STAGING = ".export-"


@contextlib.contextmanager
def writing(directory: Path, record: dict[str, Any]) -> Iterator[Path]:
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
    except NotADirectoryError:  # a file on the way: `writing` says so
        return
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise UserError(
            f"--output={directory} holds something else than an earlier export of this kind "
            f"({kind}): choose another folder."
        )
