"""Files that a text file lists, or a table.

PATH is a .txt file with one path a line, or a .csv file with a header and a column "path", and
optionally "label" and "split". Such a file stands for the split "train", unless it has a column
"split". PATH may also be a folder of files SPLIT.txt or SPLIT.csv. Paths are relative to the folder
of their file. Empty lines are skipped.
"""

import csv
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from byol_jax.data import files, records
from byol_jax.errors import DataError

EXTENSIONS = (".txt", ".csv")


class Row(NamedTuple):
    """A row of a table."""

    line: int  # number of its line; of several lines, that of the last
    values: dict[str, str | None]  # by column; None, where the row is too short


def find(path: str, split: str, what: str) -> files.Files:
    """The files that a list names, in its order.

    Args:
      path: as described above.
      split: such as "train".
      what: the files are, for messages, such as "images".

    Raises:
      DataError: there is no such list, it cannot be read or is empty, one of its files is missing,
        or some rows have labels and others have none.
    """
    files.check_local("list", path)
    file = Path(path).expanduser()
    try:
        is_table = file.suffix.lower() == ".csv" and file.is_file()
        if not is_table:
            file = records.split_file("list", file, split, EXTENSIONS)
            is_table, split = file.suffix.lower() == ".csv", None  # all of it
        rows, columns = read_table(file, ("path",), split) if is_table else (_lines(file), ["path"])
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): name another list.") from error
    for line, values in rows:
        if not values["path"]:
            raise DataError(f"line {line} of {file} has no path: give one, or remove the line.")
    if not rows:
        raise DataError(f"{file} lists no {what}: give one path a line.")
    paths = [os.path.join(file.parent, os.path.normpath(row.values["path"])) for row in rows]
    missing = [i for i, found in enumerate(paths) if not os.path.isfile(found)]
    if missing:
        first, more = missing[0], f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(
            f"line {rows[first].line} of {file} names {files.printable(paths[first])}, which is no "
            f"file{more}: correct or remove it; paths are relative to the folder of the list."
        )
    labels, class_names = None, None
    if "label" in columns:
        labels, class_names = records.labels_of(file, ((n, row.get("label")) for n, row in rows))
    if labels is None:
        labels = np.full(len(paths), -1)
    return files.Files(file.parent, paths, labels.tolist(), class_names, files.repeated(paths))


def read_table(
    file: Path, needed: tuple[str, ...], split: str | None
) -> tuple[list[Row], list[str]]:
    """The rows of a split of a .csv file with a header, and its columns.

    Args:
      file: the table.
      needed: columns that it must have.
      split: a value of its column "split"; "train", if it has no such column;
        None for all rows.

    Raises:
      DataError: it cannot be read, or lacks a column or the split.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as opened:
            reader = csv.DictReader(opened)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [Row(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"the table {file} cannot be read ({error}).") from error
    for name in needed:
        if name not in columns:
            such = ",".join([*needed, "label", "split"])
            raise DataError(
                f"the table {file} has no column {name!r}: its first line must name the columns, "
                f"such as {such}."
            )
    if split is None:
        return rows, columns
    if "split" in columns:
        splits = dict.fromkeys(row.values["split"] for row in rows)
        rows = [row for row in rows if row.values["split"] == split]
        if not rows:
            known = ", ".join(map(repr, splits)) or "none"
            raise DataError(f"the table {file} has no split {split!r}; it has {known}.")
    elif split != "train":
        raise DataError(f"the table {file} has no split {split!r}, as it has no column 'split'.")
    return rows, columns


def _lines(file: Path) -> list[Row]:
    """The lines of a text file that are not empty."""
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline=None) as opened:
        lines = enumerate((line.strip() for line in opened), start=1)
        return [Row(number, {"path": line}) for number, line in lines if line]
