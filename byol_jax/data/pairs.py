"""Pairs of images as a source: the two views of an example come from two files.

`pairs:FOLDER1,FOLDER2` joins two folders, in the layouts of folder.py, by the paths of the images
below them without their endings: FOLDER1/train/a/1.jpg and FOLDER2/train/a/1.png are a pair.
Classes are those of the first folder. `pairs:TABLE.csv` joins by a table with a header: columns
"first" and "second" with paths relative to the table's folder, and optionally "label" and "split".
Without the latter, all rows are the split "train".

View 1 is a crop of the first image and view 2 one of the second. In evaluation an example is its
first image.
"""

import csv
import hashlib
import os
from pathlib import Path

from byol_jax.data.folder import FolderSource, open_folder
from byol_jax.data.source import RandomAccessSource
from byol_jax.errors import DataError

SHOWN = 3  # names in a warning


class PairSource(RandomAccessSource):
    """Two folders whose images at equal indices belong together."""

    def __init__(self, name: str, first: FolderSource, second: FolderSource):
        """Keeps the two, which have as many images; use `open_pairs`."""
        super().__init__(name, first.labels, first.channels, first.class_names)
        self._first, self._second = first, second

    def names(self):  # noqa: D102 (see Source)
        return self._first.names()

    def fingerprint(self):
        """SHA-256, in hex, of the fingerprints of both folders."""
        both = self._first.fingerprint() + self._second.fingerprint()
        return hashlib.sha256(both.encode()).hexdigest()

    def decode(self, raw):  # noqa: D102 (see Source)
        return self._first.decode(raw)[0], self.labels_tensor[raw[0]]

    def decode_views(self, raw, count):
        """The images of `count` views, which take turns, and the label."""
        images = [self._first.decode(raw)[0]]
        if count > 1:
            images.append(self._second.decode(raw)[0])
        return tuple(images[i % 2] for i in range(count)), self.labels_tensor[raw[0]]

    def describe(self, index):  # noqa: D102 (see Source)
        return f"{self._first.describe(index)} or {self._second.describe(index)}"


def open_pairs(spec: str, split: str, channels: int) -> PairSource:
    """A source of pairs.

    Args:
      spec: "FOLDER1,FOLDER2" or "TABLE.csv".
      split: as of `open_folder`, or a value of the table's column "split".
      channels: of the images.

    Raises:
      DataError: a folder or the table cannot be read, or there is no pair.
    """
    name = f"pairs:{spec}/{split}"
    if spec.lower().endswith(".csv"):
        return _from_table(name, Path(spec).expanduser(), split, channels)
    folders = spec.split(",")
    if len(folders) != 2 or not all(folders):
        raise DataError(
            f"pairs:{spec} is neither two folders, pairs:FOLDER1,FOLDER2, nor a table, "
            "pairs:TABLE.csv."
        )
    return _from_folders(name, *(open_folder(folder, split, channels) for folder in folders))


def _from_folders(name: str, first: FolderSource, second: FolderSource) -> PairSource:
    stems = [_stems(source) for source in (first, second)]
    common = [stem for stem in stems[0] if stem in stems[1]]
    if not common:
        raise DataError(
            f"no image of {first.name} has a partner of the same name in {second.name}: "
            f"the first ones are {first.names()[0]} and {second.names()[0]}."
        )
    chosen = (
        _chosen(folder, [indices[stem] for stem in common])
        for folder, indices in zip((first, second), stems, strict=True)
    )
    source = PairSource(name, *chosen)
    source.warnings += [*first.warnings, *second.warnings]
    for folder, own in zip((first, second), stems, strict=True):
        if alone := [stem for stem in own if stem not in stems[0] or stem not in stems[1]]:
            shown = ", ".join(alone[:SHOWN]) + (", ..." if len(alone) > SHOWN else "")
            source.warnings.append(
                f"Left out, as they have no partner: {len(alone)} of {folder.name} ({shown})."
            )
    return source


def _stems(source: FolderSource) -> dict[str, int]:
    """Indices by the path below the root without its ending; raises DataError for equal ones."""
    found: dict[str, int] = {}
    for index, path in enumerate(source.names()):
        stem = os.path.splitext(path)[0]
        if stem in found:
            raise DataError(
                f"{source.name} has two images called {stem}, with different endings: keep one."
            )
        found[stem] = index
    return found


def _chosen(source: FolderSource, indices: list[int]) -> FolderSource:
    """The images of a folder at these indices, in this order."""
    paths = source.paths()
    labels = [int(source.labels[index]) for index in indices]
    return FolderSource(
        source.name,
        source.root,
        [paths[index] for index in indices],
        labels,
        source.class_names,
        source.channels,
    )


def _from_table(name: str, path: Path, split: str, channels: int) -> PairSource:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows, columns = list(table), table.fieldnames or []
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"the table {path} cannot be read ({error}).") from error
    missing = {"first", "second"} - set(columns)
    if missing:
        raise DataError(
            f"the table {path} has no column {min(missing)!r}: its first line must name the "
            "columns, such as first,second,label,split."
        )
    if "split" in columns:
        splits = dict.fromkeys(row["split"] for row in rows)
        rows = [row for row in rows if row["split"] == split]
        if not rows:
            known = ", ".join(map(repr, splits)) or "none"
            raise DataError(f"the table {path} has no split {split!r}; it has {known}.")
    elif split != "train":
        raise DataError(f"the table {path} has no split {split!r}, as it has no column 'split'.")
    for number, row in enumerate(rows):
        if not row["first"] or not row["second"]:
            raise DataError(
                f"row {number + 1} of the split {split!r} of {path} lacks a file: each row names "
                "two."
            )
    class_names, labels = None, [-1] * len(rows)
    if "label" in columns:
        class_names = tuple(sorted({row["label"] or "" for row in rows}))
        labels = [class_names.index(row["label"] or "") for row in rows]
    root = path.parent
    return PairSource(
        name,
        *(
            FolderSource(
                f"{name} ({column})",
                root,
                [os.path.join(root, row[column]) for row in rows],
                labels,
                class_names,
                channels,
            )
            for column in ("first", "second")
        ),
    )
