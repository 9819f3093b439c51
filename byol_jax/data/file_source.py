"""A source of which each example is of a file below a folder, and read by NumPy: see files.py."""

import numpy as np

from byol_jax.data import files
from byol_jax.data.indexed import IndexedSource


class FileSource(IndexedSource):
    """Files that `files.find` found.

    Attributes:
      paths: of the files.
    """

    def __init__(self, name: str, found: files.Files):
        """Keeps the files. Raises DataError if there are none."""
        super().__init__(name, np.asarray(found.labels), found.class_names)
        self.paths = found.paths
        self.warnings += found.warnings
        self._root = found.root

    def fingerprint(self):  # noqa: D102 (see Source)
        return files.fingerprint(self._root, self.paths, self.labels)

    def names(self):  # noqa: D102 (see Source)
        return list(map(files.printable, files.below(self._root, self.paths)))

    def describe(self, index):  # noqa: D102 (see Source)
        return files.printable(self.paths[index])
