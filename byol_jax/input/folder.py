"""A folder of JPEG and PNG files as a source.

PATH/<split>/ is the root if that folder exists; otherwise PATH itself stands for the split "train".
Each folder at the top of the root is a class, whatever lies deeper in it belongs to it, and the
labels follow the sorted names of those that hold images. Two layouts have no labels: images
directly in the root (all images below are taken, labels could only be guessed), and a single folder
at the top (one class tells nothing apart). Files and folders whose name starts with a dot are
skipped: among them are the "._" twins that macOS leaves beside images.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from byol_jax.errors import UserError
from byol_jax.input._tensorflow import tf
from byol_jax.input.base import RandomAccessSource

EXTENSIONS = (".jpg", ".jpeg", ".png")
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "unlabeled"}


class FolderSource(RandomAccessSource):
    """Images read from files each time they are needed; gray and colour files become `channels`."""

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
        super().__init__(name, len(paths), channels, class_names)
        self._root = root
        self._paths = tf.constant(paths)
        self._labels = tf.constant(labels, tf.int32)

    def names(self):
        """The path of each image below the folder of the split, such as "cat/1.png"."""
        paths = (path.decode() for path in self._paths.numpy())
        return [Path(path).relative_to(self._root).as_posix() for path in paths]

    def decode(self, raw):  # noqa: D102 (see Source)
        data = tf.io.read_file(self._paths[raw])
        image = tf.io.decode_image(data, channels=self.channels, expand_animations=False)
        return image, self._labels[raw]

    def describe(self, raw):  # noqa: D102 (see Source)
        return self._paths[raw].numpy().decode()


def open_folder(path: str, split: str, channels: int) -> FolderSource:
    """A source of the images below `path`; the module's docstring tells which layouts it knows.

    Raises:
      UserError: if the folder or the split does not exist or holds no images.
    """
    name = f"folder:{path}/{split}"
    root = _root(Path(path).expanduser(), split)
    entries = _entries(root)
    flat = [entry.path for entry in entries if _is_image(entry)]
    by_class = {e.name: list(_images(e.path, set())) for e in entries if e.is_dir()}
    by_class = {folder: paths for folder, paths in by_class.items() if paths}
    splits = [folder for folder in by_class if folder.lower() in SPLITS]
    if splits and len(splits) == len(by_class):
        raise UserError(
            f"{root} holds the splits {', '.join(splits)}, not classes; name one of them with "
            "--config.data.train_split (of evaluate: --train_split, of export: --split), or point "
            "folder: at it."
        )
    if not flat and len(by_class) > 1:
        class_names = tuple(by_class)
        pairs = [(p, i) for i, paths in enumerate(by_class.values()) for p in paths]
    else:
        class_names = None
        pairs = [(p, -1) for p in flat + [p for paths in by_class.values() for p in paths]]
    if not pairs:
        raise UserError(f"{root} holds no images; put {', '.join(EXTENSIONS)} files into it.")
    paths, labels = zip(*pairs, strict=True)
    return FolderSource(name, root, list(paths), list(labels), class_names, channels)


def _root(path: Path, split: str) -> Path:
    if not path.exists():
        raise UserError(f"the folder {path} does not exist; check the path after 'folder:'.")
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; name the folder that holds the images.")
    if (path / split).is_dir():
        others = [e.name for e in _entries(path) if e.is_dir() and e.name.lower() not in SPLITS]
        if split.lower() in SPLITS and others:
            raise UserError(
                f"{path / split} looks like a split and the {others[0]!r} beside it like a class; "
                "move one of them elsewhere."
            )
        return path / split
    if split == "train":
        return path
    raise UserError(
        f"{path} has no split {split!r}: put its images into {path / split}, or name another split."
    )


def _entries(folder: str | Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if e.name[0] != "."), key=lambda entry: entry.name)


def _is_image(entry: os.DirEntry) -> bool:
    return entry.name.lower().endswith(EXTENSIONS) and entry.is_file()


def _images(folder: str, visited: set[str]) -> Iterator[str]:
    """Paths of all images below a folder, sorted. Links are followed, but no folder twice."""
    real = os.path.realpath(folder)
    if real in visited:
        return
    visited.add(real)
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _images(entry.path, visited)
        elif _is_image(entry):
            yield entry.path
