"""Pairs of images as a source: the two views of an example come from two files.

`pairs:FOLDER1,FOLDER2` joins two folders, in the layouts of files.py, by the paths of the images
below them without their endings: FOLDER1/train/a/1.jpg and FOLDER2/train/a/1.png are a pair.
Classes are those of the first folder. `pairs:TABLE.csv` joins by a table with a header: columns
"first" and "second" with paths relative to the table's folder, and optionally "label" and "split".
Without the latter, all rows are the split "train".

View 1 is a crop of the first image and view 2 one of the second. In evaluation an example is its
first image.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from byol_jax.data import files, lists
from byol_jax.data.image_files import ImageFiles, open_files
from byol_jax.data.source import RandomAccessSource
from byol_jax.errors import DataError

SHOWN = 3  # names in a warning


class PairSource(RandomAccessSource):
    """Two folders whose images at equal indices belong together."""

    def __init__(self, name: str, first: ImageFiles, second: ImageFiles):
        """Keeps the two, which have as many images; use `open_pairs`."""
        super().__init__(name, first.labels, first.channels, first.class_names)
        self._first, self._second = first, second
        self.uses_python = first.uses_python or second.uses_python

    def names(self):  # noqa: D102 (see Source)
        return self._first.names()

    def paths(self) -> list[str]:
        """The path of the first image of each pair."""
        return self._first.paths()

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


def open_pairs(
    spec: str, split: str, channels: int, value_range: tuple[float, float] | None = None
) -> PairSource:
    """A source of pairs.

    Args:
      spec: "FOLDER1,FOLDER2" or "TABLE.csv".
      split: of each folder, or a value of the table's column "split".
      channels: of the images.
      value_range: as of `ImageFiles`.

    Raises:
      DataError: a folder or the table cannot be read, or there is no pair.
      UserError: a package is missing.
    """
    name = f"pairs:{spec}/{split}"
    options = {"channels": channels, "value_range": value_range}
    if spec.lower().endswith(".csv"):
        return _from_table(name, Path(spec).expanduser(), split, **options)
    folders = spec.split(",")
    if len(folders) != 2 or not all(folders):
        raise DataError(
            f"pairs:{spec} is neither two folders, pairs:FOLDER1,FOLDER2, nor a table, "
            "pairs:TABLE.csv."
        )
    return _from_folders(name, *(open_files("folder", one, split, **options) for one in folders))


def _from_folders(name: str, first: ImageFiles, second: ImageFiles) -> PairSource:
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


def _stems(source: ImageFiles) -> dict[str, int]:
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


def _chosen(source: ImageFiles, indices: list[int]) -> ImageFiles:
    """The images of a folder at these indices, in this order."""
    paths = source.paths()
    labels = [int(source.labels[index]) for index in indices]
    chosen = [paths[index] for index in indices]
    found = files.Files(source.root, chosen, labels, source.class_names, [])
    return ImageFiles(source.name, found, source.channels, source.value_range)


def _from_table(name: str, path: Path, split: str, **options: Any) -> PairSource:
    rows, columns = lists.read_table(path, ("first", "second"), split)
    rows = [row.values for row in rows]
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
    root, sources = path.parent, []
    for column in ("first", "second"):
        paths = [os.path.join(root, row[column]) for row in rows]
        found = files.Files(root, paths, labels, class_names, [])
        sources.append(ImageFiles(f"{name} ({column})", found, **options))
    return PairSource(name, *sources)
