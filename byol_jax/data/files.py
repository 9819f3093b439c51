"""The files below a folder: their labels are the folders that they are in.

The root is PATH/<split>/ if that folder exists; otherwise PATH itself stands for the split "train".
Each folder at the top of the root is a class, with all files at any depth below it, and labels
follow the sorted names of the classes that hold files. Two layouts have no labels: files directly
in the root (all files below are taken), and a single folder at the top (one class says nothing).
Files and folders whose name starts with a dot are skipped, such as the "._" files of macOS.

Several folders are PATH1,PATH2 and so on. A comma within a name has a backslash before it, unless
the whole text is the path of a folder. Classes of equal names are one class; if a folder has none,
there are no labels.
globs.py and lists.py find files in other ways.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from byol_jax.errors import DataError

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "unlabeled"}


class Files(NamedTuple):
    """What was found."""

    root: Path  # that names begin below
    paths: list[str]
    labels: list[int]  # -1 without labels
    class_names: tuple[str, ...] | None
    warnings: list[str]


def find(spec: str, split: str, extensions: tuple[str, ...], what: str) -> Files:
    """The files below one or several folders, in the layouts described above.

    Args:
      spec: the folder, or several with commas between them.
      split: "train", "test" or the name of another folder below it.
      extensions: of the files, in lower case, such as ".wav".
      what: the files are, for messages, such as "images".

    Raises:
      DataError: if a folder or the split does not exist, cannot be read or holds no such files.
    """
    found = [_below_one(path, split, extensions, what) for path in folders_of(spec)]
    return found[0] if len(found) == 1 else _joined(found)


def folders_of(spec: str) -> list[str]:
    """The folders of PATH1,PATH2; raises DataError for an empty one."""
    if "," not in spec or os.path.isdir(os.path.expanduser(spec)):
        return [spec]
    folders = [folder.replace("\\,", ",") for folder in re.split(r"(?<!\\),", spec)]
    if not all(folders):
        raise DataError(
            f"folder:{spec} names an empty path: separate folders by single commas, and write a "
            "comma within a name as \\,."
        )
    return folders


def _joined(found: list[Files]) -> Files:
    """Several folders as one: their common parent is the root."""
    root = Path(os.path.commonpath([os.path.abspath(one.root) for one in found]))
    paths = [os.path.abspath(path) for one in found for path in one.paths]
    warnings = [line for one in found for line in one.warnings]
    class_names, labels = None, [-1] * len(paths)
    if all(one.class_names for one in found):
        class_names = tuple(sorted({name for one in found for name in one.class_names}))
        number = {name: i for i, name in enumerate(class_names)}
        labels = [number[one.class_names[label]] for one in found for label in one.labels]
    elif any(one.class_names for one in found):
        without = next(one.root for one in found if not one.class_names)
        warnings.append(f"No labels, as {without} has no classes, and others have.")
    return Files(root, paths, labels, class_names, warnings + repeated(paths))


def repeated(paths: list[str]) -> list[str]:
    """A warning about paths that are there more than once, if there are any."""
    counts = Counter(map(os.path.normpath, paths))
    twice = [path for path, count in counts.items() if count > 1]
    if not twice:
        return []
    return [f"Named more than once, and used as often: {len(twice)} files: {_first_few(twice)}."]


def check_local(prefix: str, path: str) -> None:
    """Raises DataError for a path in a bucket."""
    if "://" in path:
        raise DataError(
            f"{prefix}:{path} is in a bucket, where folders are not read: copy it to a disk, or "
            "make a TFDS dataset of it, which --config.data.dir (of evaluate and export: "
            "--data_dir) may look for there."
        )


def _below_one(path: str, split: str, extensions: tuple[str, ...], what: str) -> Files:
    """As `find`, of one folder."""
    check_local("folder", path)
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
    found = arranged(root, flat, by_class, what)
    if not found.paths:
        raise DataError(f"{root} holds no {what}; put {', '.join(extensions)} files into it.")
    if broken:
        found.warnings.append(
            f"Skipped, as they are broken links or no files: {_first_few(broken)}."
        )
    return found


def arranged(root: Path, flat: list[str], by_class: dict[str, list[str]], what: str) -> Files:
    """Files with labels, if their layout has classes; perhaps none.

    Args:
      root: the folder.
      flat: paths of the files in it.
      by_class: of the files below each folder in it.
      what: as of `find`.

    Raises:
      DataError: the folders are splits.
    """
    empty = [folder for folder, paths in by_class.items() if not paths]
    by_class = {folder: paths for folder, paths in by_class.items() if paths}
    splits = [folder for folder in by_class if folder.lower() in SPLITS]
    if splits and len(splits) == len(by_class):
        raise DataError(
            f"{root} holds the splits {', '.join(splits)}, not classes; name one of them with "
            "--config.data.train_split (of evaluate: --train_split, of export: --split), or point "
            "folder: at it."
        )
    if flat or len(by_class) < 2:
        paths = flat + [path for paths in by_class.values() for path in paths]
        return Files(root, paths, [-1] * len(paths), None, [])
    paths = [path for paths in by_class.values() for path in paths]
    labels = [label for label, paths in enumerate(by_class.values()) for _ in paths]
    warnings = [f"No classes, as they hold no {what}: {_first_few(empty)}."] if empty else []
    return Files(root, paths, labels, tuple(map(printable, by_class)), warnings)


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
