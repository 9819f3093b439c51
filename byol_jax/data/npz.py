"""NumPy archives as a source: images that somebody else has decoded already.

PATH is a file, which stands for the split "train", or a folder of files SPLIT.npz. A file
holds `images`, uint8 (N, H, W, C) or (N, H, W) if gray, and perhaps `labels`, integers (N,) from 0
up, as `numpy.savez(file, images=..., labels=...)` writes them, and `class_names`, text (classes,).
"""

import os
from pathlib import Path

import numpy as np

from byol_jax.data.arrays import ArraySource, from_arrays
from byol_jax.data.source import check_channels
from byol_jax.errors import UserError

KNOWN = ("images", "labels", "class_names")


def open_npz(path: str, split: str, channels: int) -> ArraySource:
    """A source of the images in an archive; the module's docstring tells what it must hold.

    Raises:
      UserError: there is no such file, or it holds something else.
    """
    file = _file(Path(path).expanduser(), split)
    name = f"npz:{path}/{split}"
    try:
        # Opened here: NumPy leaves a file open that it cannot make sense of.
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in KNOWN if key in archive}
            # A CRC-32 of each array is in the archive: another file under the name is noticed.
            fingerprint = " ".join(f"{i.filename}:{i.CRC:08x}" for i in archive.zip.infolist())
    except MemoryError as error:
        raise UserError(f"{file} holds more than fits in memory: use fewer images.") from error
    except Exception as error:  # the readers of the format raise whatever they stumble over
        reason = getattr(error, "strerror", None) or "it is no archive of plain arrays, or damaged"
        raise UserError(
            f"{file} cannot be read ({reason}): write it with numpy.savez(FILE, images=IMAGES)."
        ) from error
    if "images" not in arrays:
        raise UserError(
            f"{file} holds no array called images: write it with numpy.savez(FILE, images=IMAGES), "
            "and labels=LABELS if there are any."
        )
    images, names = arrays["images"], arrays.get("class_names")
    if images.ndim == 3:
        images = images[..., None]
    source = from_arrays(
        images,
        arrays.get("labels"),
        name,
        None if names is None else tuple(str(name) for name in names.ravel()),
        fingerprint,
    )
    check_channels(name, source.channels, channels)
    return source


def _file(path: Path, split: str) -> Path:
    if path.is_dir():
        file = path / f"{split}.npz"
        if not file.is_file():
            found = sorted(os.path.splitext(p.name)[0] for p in path.glob("*.npz"))
            there = f"it has {', '.join(found)}" if found else "it has no .npz files"
            raise UserError(f"{path} has no split {split!r} ({there}): name one that it has.")
        return file
    if not path.is_file():
        raise UserError(f"{path} does not exist: check the path after 'npz:'.")
    if split != "train":
        raise UserError(
            f"{path} is one file, which stands for the split 'train': for {split!r}, put train.npz "
            f"and {split}.npz into a folder and name that."
        )
    return path
