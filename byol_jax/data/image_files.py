"""Image files as a source: JPEG, PNG, GIF, BMP, WebP, TIFF and PNM.

files.py, globs.py and lists.py find them, and say what their labels are.
"""

import functools
import os
from pathlib import Path

from byol_jax.data import files, globs, lists
from byol_jax.data._tensorflow import tf
from byol_jax.data.decode import decode
from byol_jax.data.source import RandomAccessSource

BY_TENSORFLOW = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
EXTENSIONS = (*BY_TENSORFLOW, ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
FIND = {
    "folder": functools.partial(files.find, extensions=EXTENSIONS, what="images"),
    "glob": functools.partial(globs.find, extensions=EXTENSIONS, what="images"),
    "list": functools.partial(lists.find, what="images"),
}


class ImageFiles(RandomAccessSource):
    """Images read from files whenever they are used, and converted to `channels`.

    Attributes:
      value_range: of values of more than 8 bits, see more_formats.py; None: that of their type.
    """

    def __init__(
        self,
        name: str,
        found: files.Files,
        channels: int,
        value_range: tuple[float, float] | None = None,
    ):
        """Keeps a path and a label (-1 for none) for each; use `open_files`."""
        super().__init__(name, found.labels, channels, found.class_names)
        self.warnings += found.warnings
        self.value_range = value_range
        self.root: Path = found.root
        self._paths = tf.constant([os.fsencode(path) for path in found.paths])
        # Files that TensorFlow decodes alone cost not one operation more than it takes.
        if channels in (1, 3) and value_range is None and _are_by_tensorflow(found.paths):
            self._decode = functools.partial(decode, channels=channels)
        else:
            from byol_jax.data import more_formats

            more_formats.require(channels)
            self.uses_python = True
            self._decode = functools.partial(
                more_formats.decode, channels=channels, value_range=value_range
            )

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
        return self._decode(self.encoded(raw)), self.labels_tensor[raw[0]]

    def encoded(self, raw):  # noqa: D102 (see Source)
        return tf.io.read_file(self._paths[raw[0]])

    def describe(self, index):  # noqa: D102 (see Source)
        return files.printable(self._paths[index].numpy())


def open_files(
    kind: str,
    spec: str,
    split: str,
    channels: int,
    value_range: tuple[float, float] | None = None,
) -> ImageFiles:
    """A source of image files.

    Args:
      kind: a key of FIND.
      spec: of the files, as the module of this kind describes.
      split: such as "train".
      channels: of the images.
      value_range: as of `ImageFiles`.

    Raises:
      DataError: if there is no such file or split, or it cannot be read.
      UserError: a package is missing.
    """
    return ImageFiles(f"{kind}:{spec}/{split}", FIND[kind](spec, split), channels, value_range)


def _are_by_tensorflow(paths: list[str]) -> bool:
    return all(path.lower().endswith(BY_TENSORFLOW) for path in paths)
