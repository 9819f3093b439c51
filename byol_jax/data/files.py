"""The files below a folder: their labels are the folders that they are in.

The root is PATH/<split>/ if that folder exists; otherwise PATH itself stands for the split "train".
Each folder at the top of the root is a class, with all files at any depth below it, and labels
follow the sorted names of the classes that hold files. Two layouts have no labels: files directly
in the root (all files below are taken), and a single folder at the top (one class says nothing).
Files and folders whose name starts with a dot are skipped, such as the "._" files of macOS.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from byol_jax.errors import DataError

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "unlabeled"}


class Files(NamedTuple):
    """What `find` found."""

    root: Path
    paths: list[str]
    labels: list[int]  # -1 without labels
    class_names: tuple[str, ...] | None
    warnings: list[str]


def find(path: str, split: str, extensions: tuple[str, ...], what: str) -> Files:
    """The files below `path`, in one of the layouts described above.

    Args:
      path: of a folder.
      split: "train", "test" or the name of another folder below it.
      extensions: of the files, in lower case, such as ".wav".
      what: the files are, for messages, such as "images".

    Raises:
      DataError: if the folder or the split does not exist, cannot be read or holds no such files.
    """
    if "://" in path:
        raise DataError(
            f"folder:{path} is in a bucket, where folders are not read: copy it to a disk, or "
            "make a TFDS dataset of it, which --config.data.dir (of evaluate and export: "
            "--data_dir) may look for there."
        )
    try:
        root = _root(Path(path).expanduser(), split, what)
    except OSError as error:  # such as a path that is too long
        raise DataError(
            f"the folder {printable(path)} cannot be read ({error.strerror}); check the path after "
            "'folder:', and the split."
        ) from error
    broken: list[str] = []  # broken links, and what has the name of such a file but is none
    entries = _entries(root)
    flat = [entry.path for entry in entries if _is_wanted(entry, extensions, broken)]
    real = Path(os.path.realpath(root))
    above = {str(folder) for folder in (real, *real.parents)}  # links to these would be circular
    by_class = {
        e.name: list(_below(e.path, {*above}, extensions, broken)) for e in entries if _is(e.is_dir)
    }
    empty = [folder for folder, paths in by_class.items() if not paths]
    by_class = {folder: paths for folder, paths in by_class.items() if paths}
    splits = [folder for folder in by_class if folder.lower() in SPLITS]
    if splits and len(splits) == len(by_class):
        raise DataError(
            f"{root} holds the splits {', '.join(splits)}, not classes; name one of them with "
            "--config.data.train_split (of evaluate: --train_split, of export: --split), or point "
            "folder: at it."
        )
    warnings = []
    if not flat and len(by_class) > 1:
        class_names = tuple(map(printable, by_class))
        pairs = [(p, i) for i, paths in enumerate(by_class.values()) for p in paths]
        if empty:
            warnings.append(f"No classes, as they hold no {what}: {_first_few(empty)}.")
    else:
        class_names = None
        pairs = [(p, -1) for p in flat + [p for paths in by_class.values() for p in paths]]
    if not pairs:
        raise DataError(f"{root} holds no {what}; put {', '.join(extensions)} files into it.")
    if broken:
        warnings.append(f"Skipped, as they are broken links or no files: {_first_few(broken)}.")
    paths, labels = zip(*pairs, strict=True)
    return Files(root, list(paths), list(labels), class_names, warnings)


def fingerprint(root: Path, paths: list[str], labels: np.ndarray) -> str:
    """SHA-256, in hex, of the paths below the root, in order, and of the labels."""
    names = [os.fsencode(path) for path in below(root, paths)]
    return hashlib.sha256(b"\0".join([*names, labels.astype("<i4").tobytes()])).hexdigest()


def below(root: Path, paths: list[str]) -> list[str]:
    """Each path below the root."""
    start = os.path.join(os.fspath(root), "")
    return [path.removeprefix(start) for path in paths]


def printable(path: str | bytes) -> str:
    """A path as text on one line: invalid UTF-8 and control characters are escaped."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _first_few(paths: list[str], limit: int = 5) -> str:
    """The first paths of a list, and how many more there are."""
    more = f" and {len(paths) - limit} more" if len(paths) > limit else ""
    return ", ".join(map(printable, paths[:limit])) + more


def _root(path: Path, split: str, what: str) -> Path:
    if not path.exists():
        raise DataError(f"the folder {path} does not exist; check the path after 'folder:'.")
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; name the folder that holds the {what}.")
    if (path / split).is_dir():
        others = [e.name for e in _entries(path) if _is(e.is_dir) and e.name.lower() not in SPLITS]
        if split.lower() in SPLITS and others:
            raise DataError(
                f"{path / split} looks like a split and {others[0]!r} next to it like a class; "
                "move one of them elsewhere."
            )
        return path / split
    if split == "train":
        return path
    raise DataError(
        f"{path} has no split {split!r}: put its {what} into {path / split}, or name another split."
    )


def _entries(folder: str | Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if e.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"the folder {printable(os.fspath(folder))} cannot be read ({error.strerror}); fix "
            "this, or move it elsewhere."
        ) from error


def _is(question: Callable[[], bool]) -> bool:
    """The result of DirEntry.is_dir or is_file; False for a link to itself, where they raise."""
    try:
        return question()
    except OSError:
        return False


def _is_wanted(entry: os.DirEntry, extensions: tuple[str, ...], broken: list[str]) -> bool:
    """Whether it is a file with such a name; if it only has the name, it is added to `broken`."""
    if not entry.name.lower().endswith(extensions) or _is(entry.is_dir):
        return False
    if not _is(entry.is_file):
        broken.append(entry.path)
        return False
    return True


def _below(
    folder: str, visited: set[str], extensions: tuple[str, ...], broken: list[str]
) -> Iterator[str]:
    """Paths of all such files below a folder, sorted. Links are followed, but no folder twice."""
    real = os.path.realpath(folder)
    if real in visited:
        return
    visited.add(real)
    for entry in _entries(folder):
        if _is(entry.is_dir):
            yield from _below(entry.path, visited, extensions, broken)
        elif _is_wanted(entry, extensions, broken):
            yield entry.path
