"""Texts as a source: lines of a file, and the numbers of their tokens as examples.

PATH is a file, which stands for the split "train", or a folder of files SPLIT.txt (one text a
line), SPLIT.jsonl (an object a line, with "text" and optionally "label") or SPLIT.csv (with such
columns, named in the first row), in UTF-8. A label is a string or an integer. Of .txt and .jsonl an
index of 16 bytes a line is in memory, and lines are read whenever they are used; a .csv, whose
texts may have several lines, is read as a whole.
"""

import array
import codecs
import csv
import hashlib
import json
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from byol_jax.data import wordpiece
from byol_jax.data.indexed import IndexedSource
from byol_jax.data.source import Source, check_labels
from byol_jax.errors import DataError

EXTENSIONS = (".txt", ".jsonl", ".csv")
COLUMNS = ("text", "label")
UNREADABLE = object()  # in place of the label of a text that cannot be read
LEARNT_FROM = 200_000  # texts at most, at equal distances, that a vocabulary is learned from


class TextSource(Source):
    """Texts, in memory or in a file.

    Attributes:
      labels: int32 (N,), -1 without labels.
    """

    def __init__(
        self,
        name: str,
        texts: Sequence[str],
        labels: np.ndarray | None = None,
        class_names: tuple[str, ...] | None = None,
        fingerprint: str | None = None,
    ):
        """Keeps the texts.

        Args:
          name: what to call the source in logs and messages.
          texts: has a length, and a text or a DataError at each index.
          labels: integers (N,) from 0 up, or None.
          class_names: a name for each label; the numbers "0", "1", ... if left out.
          fingerprint: a digest of the texts, if there is one: see `Source.fingerprint`.

        Raises:
          DataError: there are no texts; a shape, dtype or value is not as above.
        """
        class_names = check_labels(name, len(texts), labels, class_names)
        super().__init__(name, len(texts), class_names)
        labels = np.full(len(texts), -1, np.int32) if labels is None else labels
        self.labels = np.asarray(labels, np.int32)
        self._texts, self._fingerprint = texts, fingerprint

    def fingerprint(self):  # noqa: D102 (see Source)
        return self._fingerprint

    def describe(self, index):  # noqa: D102 (see Source)
        return f"text {index} of {self.name}"

    def text(self, index: int) -> str:
        """A text; raises DataError if it cannot be read."""
        return self._texts[int(index)]

    def vocabulary(self, size: int, skip: bool) -> tuple[str, ...]:
        """A vocabulary of at most `size` tokens, from LEARNT_FROM texts: see `wordpiece.learn`.

        Args:
          size: tokens.
          skip: leave out texts that cannot be read, which else raise DataError.
        """
        indices = np.unique(np.linspace(0, self.num_examples - 1, LEARNT_FROM).astype(np.int64))

        def texts() -> Iterator[str]:
            for index in indices:
                try:
                    yield self.text(index)
                except DataError:
                    if not skip:
                        raise

        return wordpiece.learn(texts, size)


class TokenSource(IndexedSource):
    """Texts as int32 (length,): the numbers of their tokens, and zeros after a shorter text.

    Of a longer text a random window in training, else the beginning.
    """

    def __init__(self, source: TextSource, vocabulary: tuple[str, ...], length: int):
        super().__init__(source.name, source.labels, source.class_names)
        self._source, self._vocabulary, self._length = source, vocabulary, length

    def describe(self, index):  # noqa: D102 (see Source)
        return self._source.describe(index)

    def load(self, indices):  # noqa: D102 (see IndexedSource)
        return first_tokens(self._vocabulary, self._texts(indices), self._length)

    def load_random(self, indices: np.ndarray, seeds: Sequence[tuple[int, ...]]):  # noqa: D102
        numbers = wordpiece.encode(self._vocabulary, self._texts(indices))
        for row, (found, seed) in enumerate(zip(numbers, seeds, strict=True)):
            if len(found) > self._length:
                start = np.random.default_rng(seed).integers(len(found) - self._length + 1)
                numbers[row] = found[start:]
        return _padded(numbers, self._length)

    def _texts(self, indices: np.ndarray) -> list[str]:
        return [self._source.text(index) for index in indices]


def first_tokens(vocabulary: tuple[str, ...], texts: list[str], length: int) -> np.ndarray:
    """Int32 (n, length): the first tokens of each text, and zeros."""
    return _padded(wordpiece.encode_beginning(vocabulary, texts, length), length)


def _padded(numbers: list[list[int]], length: int) -> np.ndarray:
    rows = np.zeros((len(numbers), length), np.int32)
    for row, found in zip(rows, numbers, strict=True):
        row[: len(found)] = found[:length]
    return rows


def open_text(path: str, split: str) -> TextSource:
    """The texts of a split, as described above.

    Raises:
      DataError: there is no such file, or it cannot be read or used.
    """
    file = Path(path).expanduser()
    try:
        file = _split_file(file, split)
        read = _read_csv if _kind(file) == ".csv" else _read_lines
        texts, labels, digest, empty = read(file)
        # As old Macs wrote files.
        is_one_line = (
            _kind(file) == ".txt" and len(texts) == 1 and b"\r" in file.read_bytes().strip()
        )
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): name another file.") from error
    name = f"text:{path}/{split}"
    if not len(texts):
        raise DataError(f"{file} has no texts: name a file of texts, in UTF-8.")
    source = TextSource(name, texts, *labels, digest)
    if empty:
        source.warnings.append(f"Left out, as they are empty: {empty} texts of {file}.")
    if is_one_line:
        source.warnings.append(
            f"{file} is one text with carriage returns: lines have to end with a line feed."
        )
    return source


def _kind(file: Path) -> str:
    """How the name of a file ends, in lower case."""
    return file.suffix.lower()


def _split_file(path: Path, split: str) -> Path:
    """The file of a split; raises DataError if there is none."""
    kinds = ", ".join(EXTENSIONS)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if _kind(p) in EXTENSIONS and p.is_file())
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
        raise DataError(f"{path} does not exist: check the path after 'text:'.")
    if _kind(path) not in EXTENSIONS:
        raise DataError(f"{path} is no {kinds} file: rename it, or write one.")
    if split != "train":
        raise DataError(
            f"{path} is one file, which stands for the split 'train': for {split!r}, put train"
            f"{path.suffix} and {split}{path.suffix} into a folder and name that."
        )
    return path


Labels = tuple[np.ndarray | None, tuple[str, ...] | None]  # as of `TextSource`


def _read_lines(file: Path) -> tuple[Sequence[str], Labels, str, int]:
    """Texts of a .txt or .jsonl file, labels, a digest, and how many empty texts were left out."""
    parse = _from_json if _kind(file) == ".jsonl" else _from_line
    starts, numbers, digest, empty = array.array("q"), array.array("i"), hashlib.sha256(), 0

    content = _Content(file)

    def labels() -> Iterator[tuple[int, Any]]:
        nonlocal empty
        end = 0
        with open(content.descriptor, "rb", closefd=False) as opened:
            for number, line in enumerate(opened, start=1):
                digest.update(line)
                end += len(line)
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                try:
                    text, label = parse(line)
                except ValueError:  # raised again where the text is used
                    text, label = "?", UNREADABLE
                if not text:
                    empty += 1
                    continue
                starts.append(end - len(line))
                numbers.append(number)
                yield number, label

    found = _labels(file, labels())
    texts = _Lines(content, np.asarray(starts), np.asarray(numbers), parse) if starts else []
    return texts, found, digest.hexdigest(), empty


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


class _Lines:
    """Lines of a file, which are read whenever they are used."""

    def __init__(
        self,
        content: _Content,
        starts: np.ndarray,
        numbers: np.ndarray,
        parse: Callable[[bytes], tuple[str, Any]],
    ):
        """Keeps int64 (n,), the places of the first bytes, and int32 (n,), the lines' numbers."""
        self._content, self._starts, self._numbers = content, starts, numbers
        self._parse = parse

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> str:
        # Up to the next text, from which empty lines may separate it.
        ends = self._starts[index + 1 : index + 2]
        end = int(ends[0]) if len(ends) else self._content.size
        line, _, _ = self._content.read(int(self._starts[index]), end).partition(b"\n")
        try:
            return self._parse(line)[0]
        except ValueError as error:
            raise _unreadable(self._content.file, int(self._numbers[index]), error) from error


def _unreadable(file: Path, line: int, error: ValueError) -> DataError:
    reason = "it is not UTF-8" if isinstance(error, UnicodeError) else str(error)
    return DataError(f"line {line} of {file} cannot be read: {reason}.")


def _from_line(line: bytes) -> tuple[str, None]:
    return line.decode().strip(), None


def _from_json(line: bytes) -> tuple[str, Any]:
    """Text and label of an object, ("", None) of an empty line; raises ValueError."""
    line = line.strip()
    if not line:
        return "", None
    try:
        found = json.loads(line.decode())
    except RecursionError:
        raise ValueError("it is no JSON object") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON object ({error.msg})") from error
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        raise ValueError('it is no JSON object with a string "text"')
    return _unicode(found["text"]), found.get("label")


def _unicode(text: str) -> str:
    """A text without white space around it; raises ValueError for halves of surrogate pairs."""
    text.encode()
    return text.strip()


def _read_csv(file: Path) -> tuple[Sequence[str], Labels, str, int]:
    """As `_read_lines`, of a .csv file."""
    rows, empty, line = [], 0, 0
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as opened:
        reader = csv.DictReader(opened, strict=True)
        try:
            columns = [name.strip() for name in reader.fieldnames or ()]
            _check_columns(file, columns)
            reader.fieldnames = columns
            line = reader.line_num
            for row in reader:
                line = reader.line_num
                if None in row or None in row.values():  # surplus and missing fields
                    raise DataError(
                        f"line {line} of {file} has not as many fields as the first "
                        "row: put texts with commas into double quotes."
                    )
                if not row["text"].strip():
                    empty += 1
                    continue
                rows.append((line, row["text"], row.get("label")))
        except csv.Error as error:
            raise DataError(
                f"the row from line {line + 1} of {file} on cannot be read: {error}. Double the "
                "quotes within a text, or write it as .jsonl."
            ) from error
    texts = _Rows(file, [(number, text) for number, text, _ in rows])
    return texts, _labels(file, ((n, label) for n, _, label in rows)), digest, empty


def _check_columns(file: Path, columns: list[str]) -> None:
    """Raises DataError unless there is one column "text", and one "label" or none."""
    for name in columns:
        if name.lower() in COLUMNS and name not in COLUMNS:
            raise DataError(f"{file} has a column {name!r}: name it {name.lower()!r}.")
        if name in COLUMNS and columns.count(name) > 1:
            raise DataError(f"{file} has several columns {name!r}: keep one of them.")
    if "text" not in columns:
        raise DataError(
            f"{file} has no column 'text': name the columns in its first row, text and, if there "
            "are labels, label."
        )


class _Rows:
    """Texts of a .csv file, in memory, with their last lines' numbers."""

    def __init__(self, file: Path, rows: list[tuple[int, str]]):
        self._file, self._rows = file, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> str:
        number, text = self._rows[index]
        try:
            return _unicode(text)
        except ValueError as error:
            raise _unreadable(self._file, number, error) from error


def _labels(file: Path, found: Iterable[tuple[int, Any]]) -> Labels:
    """Labels of texts with the numbers of their lines: all have one, or none has.

    White space around a label does not count.

    Raises:
      DataError: some have none, or one that is no string and no integer, or not Unicode.
    """
    numbers: dict[str, int] = {}
    labels, without = array.array("i"), 0
    for line, label in found:
        if isinstance(label, str):
            try:
                label = _unicode(label)
            except ValueError as error:
                raise _unreadable(file, line, error) from error
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
