"""Records of a file: a text each, perhaps with more fields, and perhaps with a label.

PATH is a file, which stands for the split "train", or a folder of files SPLIT.txt (one text a
line), SPLIT.jsonl (an object a line, with the fields and optionally "label") or SPLIT.csv (with
such columns, named in the first row), in UTF-8. Fields are strings; a label is a string or an
integer. Of .txt and .jsonl an index of 16 bytes a line is in memory, and lines are read whenever
they are used; a .csv, whose texts may have several lines, is read as a whole.
"""

import abc
import array
import codecs
import csv
import hashlib
import json
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from byol_jax.errors import DataError

EXTENSIONS = (".txt", ".jsonl", ".csv")
UNREADABLE = object()  # in place of the label of a record that cannot be read

Fields = dict[str, str]  # by name, without white space around them
Parse = Callable[[bytes], tuple[Fields | None, Any]]  # None: the record is empty


class Records(abc.ABC):
    """The records of a file.

    Attributes:
      file: their file.
      lines: int32 (n,), the number of each record's line; of several lines, that of the last.
      labels: int32 (n,), or None without labels.
      class_names: a name for each label, or None.
      digest: of the file, SHA-256 in hex.
      empty: how many records without a text were left out.
    """

    def __init__(self, file: Path, fields: tuple[str, ...]):
        """Reads the file once; raises OSError or DataError."""
        self.file, self.digest, self.empty = file, "", 0
        lines = array.array("i")

        def found() -> Iterator[tuple[int, Any]]:
            for line, label in self._scan(fields):
                lines.append(line)
                yield line, label

        self.labels, self.class_names = labels_of(file, found())
        self.lines = np.asarray(lines)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Fields:
        """The fields of a record; raises DataError if it cannot be read."""
        try:
            return self._read(index)
        except DataError:  # of the file, not of this record
            raise
        except ValueError as error:
            reason = "it is not UTF-8" if isinstance(error, UnicodeError) else str(error)
            raise self.error(index, reason) from error

    def error(self, index: int, reason: str) -> DataError:
        """What to raise for a record that cannot be read or used."""
        return DataError(f"{self.describe(index)} cannot be read: {reason}.")

    def describe(self, index: int) -> str:
        """Names a record, so that a person can find it."""
        return f"line {self.lines[index]} of {self.file}"

    @abc.abstractmethod
    def _scan(self, fields: tuple[str, ...]) -> Iterator[tuple[int, Any]]:
        """Sets `digest` and `empty`; yields lines of records, and their labels or UNREADABLE."""

    @abc.abstractmethod
    def _read(self, index: int) -> Fields:
        """The fields of a record; raises ValueError, whose text is the reason."""


class Field(Sequence):
    """One field of all records: a string, or a DataError, at each index."""

    def __init__(self, records: Records, name: str):
        self._records, self._name = records, name

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> str:
        return self._records[index][self._name]


def find(prefix: str, path: str, split: str, fields: tuple[str, ...]) -> Records:
    """The records of a split, as described above.

    Records without a text are left out if the text is their only field, and cannot be read if there
    are others.

    Args:
      prefix: what is before the path in `config.data.source`, without its colon.
      path: of a file or folder.
      split: such as "train".
      fields: of a record, one of them "text"; with more than one, there are no .txt files.

    Raises:
      DataError: there is no such file, or it cannot be read or used.
    """
    extensions = EXTENSIONS if fields == ("text",) else EXTENSIONS[1:]
    file = Path(path).expanduser()
    try:
        file = split_file(prefix, file, split, extensions)
        found = (_Rows if _kind(file) == ".csv" else _Lines)(file, fields)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): name another file.") from error
    if not len(found):
        raise DataError(f"{file} has no texts: name a file of texts, in UTF-8.")
    return found


def _kind(file: Path) -> str:
    """How the name of a file ends, in lower case."""
    return file.suffix.lower()


def split_file(prefix: str, path: Path, split: str, extensions: tuple[str, ...]) -> Path:
    """The file of a split; raises DataError if there is none."""
    kinds = ", ".join(extensions)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if _kind(p) in extensions and p.is_file())
        found = [file for file in files if file.stem == split]
        if len(found) > 1:
            names = " and ".join(file.name for file in found)
            raise DataError(f"{path} has {names}: keep one of them.")
        if found:
            return found[0]
        packed = sorted(path.glob(f"{split}.*.gz"))
        path = packed[0] if packed else path
    if path.suffix == ".gz" and path.is_file():
        raise DataError(f"{path} is compressed: decompress it, such as by gunzip {path}.")
    if path.is_dir():
        has = sorted({file.stem for file in files})
        raise DataError(
            f"{path} has no split {split!r} (it has {', '.join(has) or f'no {kinds} files'}): name "
            "one of these."
        )
    if not path.is_file():
        raise DataError(f"{path} does not exist: check the path after '{prefix}:'.")
    if _kind(path) not in extensions:
        raise DataError(f"{path} is no {kinds} file: rename it, or write one.")
    if split != "train":
        raise DataError(
            f"{path} is one file, which stands for the split 'train': for {split!r}, put train"
            f"{path.suffix} and {split}{path.suffix} into a folder and name that."
        )
    return path


class _Content:
    """A file that stays open, and may be replaced by another one, but not change.

    Attributes:
      file: its path.
      descriptor: of the open file.
      size: bytes.
    """

    def __init__(self, file: Path):
        """Opens it; raises OSError."""
        self.file, self.descriptor = file, os.open(file, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        self.size, self._written = self._state()

    def _state(self) -> tuple[int, int]:
        state = os.fstat(self.descriptor)
        return state.st_size, state.st_mtime_ns

    def read(self, start: int, end: int) -> bytes:
        """Bytes from a place to another; any thread may call it.

        Raises:
          DataError: the file has changed since it was opened, or cannot be read.
        """
        try:
            found = os.pread(self.descriptor, end - start, start)
            state = self._state()
        except OSError as error:
            raise DataError(f"{self.file} cannot be read ({error.strerror}).") from error
        if state != (self.size, self._written) or len(found) < end - start:
            raise DataError(f"{self.file} has changed since it was opened: start again.")
        return found


class _Lines(Records):
    """Lines of a .txt or .jsonl file, which are read whenever they are used."""

    def _scan(self, fields: tuple[str, ...]) -> Iterator[tuple[int, Any]]:
        self._parse: Parse = _from_line
        if _kind(self.file) == ".jsonl":
            self._parse = partial(_from_json, fields)
        starts, digest, end = array.array("q"), hashlib.sha256(), 0
        self._content = _Content(self.file)
        with open(self._content.descriptor, "rb", closefd=False) as opened:
            for number, line in enumerate(opened, start=1):
                digest.update(line)
                end += len(line)
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                try:
                    found, label = self._parse(line)
                except ValueError:  # raised again where the record is used
                    found, label = {}, UNREADABLE
                if found is None:
                    self.empty += 1
                    continue
                starts.append(end - len(line))
                yield number, label
        self._starts, self.digest = np.asarray(starts), digest.hexdigest()

    def _read(self, index: int) -> Fields:
        # Up to the next record, from which empty lines may separate it.
        ends = self._starts[index + 1 : index + 2]
        end = int(ends[0]) if len(ends) else self._content.size
        line, _, _ = self._content.read(int(self._starts[index]), end).partition(b"\n")
        return self._parse(line)[0]


def _from_line(line: bytes) -> tuple[Fields | None, None]:
    text = line.decode().strip()
    return ({"text": text} if text else None), None


def _from_json(names: tuple[str, ...], line: bytes) -> tuple[Fields | None, Any]:
    """Fields and label of an object; (None, None) of an empty line; raises ValueError."""
    line = line.strip()
    if not line:
        return None, None
    try:
        found = json.loads(line.decode())
    except RecursionError:
        raise ValueError("it is no JSON object") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON object ({error.msg})") from error
    for name in names:
        if not isinstance(found, dict) or not isinstance(found.get(name), str):
            raise ValueError(f'it is no JSON object with a string "{name}"')
    return _fields({name: found[name] for name in names}), found.get("label")


def _fields(found: Fields) -> Fields | None:
    """Fields without white space around them; None if there is one alone, and it is empty.

    Raises:
      ValueError: one of several is empty, or has halves of surrogate pairs.
    """
    for text in found.values():
        text.encode()
    found = {name: text.strip() for name, text in found.items()}
    for name, text in found.items():
        if not text:
            if len(found) == 1:
                return None
            raise ValueError(f'its "{name}" is empty')
    return found


class _Rows(Records):
    """Rows of a .csv file, in memory."""

    def _scan(self, fields: tuple[str, ...]) -> Iterator[tuple[int, Any]]:
        self._rows: list[Fields] = []
        with self.file.open("rb") as opened:
            self.digest = hashlib.file_digest(opened, "sha256").hexdigest()
        with self.file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as opened:
            reader, line = csv.DictReader(opened, strict=True), 0
            try:
                reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
                _check_columns(self.file, reader.fieldnames, fields)
                line = reader.line_num
                for row in reader:
                    line = reader.line_num
                    if None in row or None in row.values():  # surplus and missing fields
                        raise DataError(
                            f"line {line} of {self.file} has not as many fields as the first "
                            "row: put texts with commas into double quotes."
                        )
                    found = {name: row[name] for name in fields}
                    if len(fields) == 1 and not found["text"].strip():
                        self.empty += 1
                        continue
                    self._rows.append(found)
                    yield line, row.get("label")
            except csv.Error as error:
                raise DataError(
                    f"the row from line {line + 1} of {self.file} on cannot be read: {error}. "
                    "Double the quotes within a text, or write it as .jsonl."
                ) from error

    def _read(self, index: int) -> Fields:
        return _fields(self._rows[index])


def _check_columns(file: Path, columns: Sequence[str], fields: tuple[str, ...]) -> None:
    """Raises DataError unless there is one column for each field, and one "label" or none."""
    known = (*fields, "label")
    for name in columns:
        if name.lower() in known and name not in known:
            raise DataError(f"{file} has a column {name!r}: name it {name.lower()!r}.")
        if name in known and columns.count(name) > 1:
            raise DataError(f"{file} has several columns {name!r}: keep one of them.")
    for name in fields:
        if name not in columns:
            raise DataError(
                f"{file} has no column {name!r}: name the columns in its first row, "
                f"{', '.join(fields)} and, if there are labels, label."
            )


def labels_of(
    file: Path, found: Iterable[tuple[int, Any]]
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Labels of records with the numbers of their lines: all have one, or none has.

    White space around a label does not count.

    Raises:
      DataError: some have none, or one that is no string and no integer, or not Unicode.
    """
    numbers: dict[str, int] = {}
    labels, without = array.array("i"), 0
    for line, label in found:
        if isinstance(label, str):
            try:
                label.encode()
            except UnicodeError as error:
                raise DataError(f"line {line} of {file} has a label that is not UTF-8.") from error
            label = label.strip()
        if label is UNREADABLE:
            labels.append(0)  # which nothing reads
        elif label in (None, ""):
            without = without or line
            labels.append(0)
        elif isinstance(label, bool) or not isinstance(label, str | int):
            raise DataError(
                f"line {line} of {file} has the label {label!r}: give a string or an integer."
            )
        else:
            labels.append(numbers.setdefault(str(label), len(numbers)))
    if not numbers:
        return None, None
    if without:
        raise DataError(
            f"line {without} of {file} has no label, and others have: give one to each, or to none."
        )
    are_integers = all(re.fullmatch(r"-?\d{1,18}", name) for name in numbers)
    names = sorted(numbers, key=int if are_integers else None)
    place = {name: i for i, name in enumerate(names)}
    order = np.array([place[name] for name in numbers], np.int32)
    return order[np.asarray(labels)], tuple(names)
