"""A folder of image files as a source: JPEG, PNG, GIF, BMP and WebP.

files.py says which files below a folder are taken, and what their labels are.
"""

import os
from pathlib import Path

from byol_jax.data import files
from byol_jax.data._tensorflow import tf
from byol_jax.data.decode import decode
from byol_jax.data.source import RandomAccessSource

EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")


class FolderSource(RandomAccessSource):
    """Images read from files whenever they are used, and converted to `channels`."""

    def __init__(
        self,
        name: str,
        root: Path,
        paths: list[str],
        labels: list[int],
        class_names: tuple[str, ...] | None,
        channels: int,
    ):
        """Keeps a path below `root` and a label (-1 for none) for each; use `open_folder`."""
        super().__init__(name, labels, channels, class_names)
        self.root = root
        self._paths = tf.constant([os.fsencode(path) for path in paths])

    def names(self):
        """The path of each image below the root, such as "cat/1.png"."""
        return list(map(files.printable, files.below(self.root, self.paths())))

    def fingerprint(self):
        """SHA-256, in hex, of the paths below the root, in order, and of the labels."""
        return files.fingerprint(self.root, self.paths(), self.labels)

    def paths(self) -> list[str]:
        """The path of each image."""
        return list(map(os.fsdecode, self._paths.numpy()))

    def decode(self, raw):  # noqa: D102 (see Source)
        return decode(self.encoded(raw), self.channels), self.labels_tensor[raw[0]]

    def encoded(self, raw):  # noqa: D102 (see Source)
        return tf.io.read_file(self._paths[raw[0]])

    def describe(self, index):  # noqa: D102 (see Source)
        return files.printable(self._paths[index].numpy())


def open_folder(path: str, split: str, channels: int) -> FolderSource:
    """A source of the images below `path`.

    Raises:
      DataError: if the folder or the split does not exist, cannot be read or holds no images.
    """
    found = files.find(path, split, EXTENSIONS, "images")
    name, labels, class_names = f"folder:{path}/{split}", found.labels, found.class_names
    source = FolderSource(name, found.root, found.paths, labels, class_names, channels)
    source.warnings += found.warnings
    return source
