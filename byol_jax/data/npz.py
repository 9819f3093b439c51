"""NumPy archives as a source: images that are decoded already.

PATH is a file, which stands for the split "train", or a folder of files SPLIT.npz. A file holds, as
`numpy.savez(file, images=..., labels=...)` writes them, `images`, uint8 (N, H, W, C) or (N, H, W)
if gray, and optionally `labels`, integers (N,) from 0 up, and `class_names`, text (classes,).
"""

from pathlib import Path

import numpy as np

from byol_jax.data.arrays import ArraySource, from_arrays
from byol_jax.data.source import check_channels
from byol_jax.errors import DataError

KNOWN = ("images", "labels", "class_names")


def open_npz(path: str, split: str, channels: int) -> ArraySource:
    """A source of the images in an archive as described above.

    Raises:
      DataError: there is no such file, or its content is different.
    """
    name = f"npz:{path}/{split}"
    file = split_file(Path(path).expanduser(), split)
    arrays, fingerprint = read(file, "images=IMAGES", KNOWN)
    if "images" not in arrays:
        raise DataError(
            f"{file} holds no array called images: write it with numpy.savez(FILE, images=IMAGES), "
            "and labels=LABELS if there are any."
        )
    images, names = arrays["images"], arrays.get("class_names")
    if images.ndim == 3:
        images = images[..., None]
    names = None if names is None else tuple(map(str, names.ravel()))
    source = from_arrays(images, arrays.get("labels"), name, names, fingerprint)
    check_channels(name, source.channels, channels)
    return source


def read(
    file: Path, example: str, known: tuple[str, ...] = ()
) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of an archive by name, and a digest of them.

    Args:
      file: the archive.
      example: how to write one, for the message.
      known: names of the arrays to read; () for all.

    Raises:
      DataError: it cannot be read.
    """
    try:
        # Opened here, as NumPy does not close a file that it cannot parse.
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in known or archive if key in archive}
            # The archive has a CRC-32 of each array, so changed examples are noticed.
            return arrays, " ".join(f"{i.filename}:{i.CRC:08x}" for i in archive.zip.infolist())
    except MemoryError as error:
        raise DataError(f"{file} holds more than fits in memory: use fewer examples.") from error
    except Exception as error:  # what is raised depends on where the format is broken
        reason = getattr(error, "strerror", None) or "it is no archive of plain arrays, or damaged"
        raise DataError(
            f"{file} cannot be read ({reason}): write it with numpy.savez(FILE, {example})."
        ) from error


def split_file(path: Path, split: str) -> Path:
    """The file of a split; raises DataError if there is none."""
    if path.is_dir():
        file = path / f"{split}.npz"
        if not file.is_file():
            found = ", ".join(sorted(p.stem for p in path.glob("*.npz"))) or "no .npz files"
            raise DataError(f"{path} has no split {split!r} (it has {found}): name one of these.")
        return file
    if not path.is_file():
        raise DataError(f"{path} does not exist: check the path after 'npz:'.")
    if split != "train":
        raise DataError(
            f"{path} is one file, which stands for the split 'train': for {split!r}, put train.npz "
            f"and {split}.npz into a folder and name that."
        )
    return path
