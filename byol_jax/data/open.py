"""Opens a source by its name on the command line."""

from collections.abc import Sequence

from byol_jax.data.arrays import from_arrays
from byol_jax.data.npz import open_npz
from byol_jax.data.source import ImageSource, check_channels
from byol_jax.data.textures import CLASS_NAMES, load
from byol_jax.errors import ConfigError

# What the name of a source begins with, of images and of other kinds of data.
FILES = ("folder:", "glob:", "list:", "pairs:")
PREFIXES = (*FILES, "tfds:", "npz:", "csv:", "text:", "image_text:")


def is_spec(name: str) -> bool:
    """Whether it is the name of a source, of images or of other kinds of data."""
    return name == "embedded" or name.startswith(PREFIXES)


def spec(name: str) -> str:
    """The name of a source; a path alone is that of a folder."""
    return name if is_spec(name) else f"folder:{name}"


def open_source(
    spec: str,
    split: str,
    *,
    data_dir: str | None = None,
    channels: int = 3,
    value_range: Sequence[float] = (),
) -> ImageSource:
    """Opens a source of images.

    Args:
      spec: "tfds:NAME" (a data set that TFDS has prepared), "folder:PATH" or "folder:PATH1,PATH2",
        "glob:PATTERN" or "list:FILE" (image files), "pairs:PATH1,PATH2" or "pairs:TABLE.csv" (image
        files, two for each example), "npz:PATH" (NumPy arrays) or "embedded" (generated textures,
        32 x 32, gray). The last two need no TensorFlow.
      split: "train", "test" or any other split of the source.
      data_dir: where TFDS keeps its data sets; None for its own default. Only tfds: uses it.
      channels: 3 for colour, 1 for gray; any other number for TIFF files and npz:.
      value_range: (low, high) of image files of more than 8 bits: what becomes 0 and 255; () for
        the range of their type. See more_formats.py.

    Raises:
      ConfigError: if the name or the number of channels is not one of these.
      DataError: if there is no such source or split, or its images have other channels.
    """
    kind, _, rest = spec.partition(":")
    if channels < 1 or (kind == "tfds" and channels not in (1, 3)):
        raise ConfigError(
            f"images of {spec} cannot have {channels} channels: choose another "
            "--config.data.channels, such as 1 or 3."
        )
    if kind == "tfds" and rest:
        from byol_jax.data.tfds import open_records

        return open_records(rest, split, data_dir, channels)
    of_files = (channels, tuple(value_range) or None)
    if kind in ("folder", "glob", "list") and rest:
        from byol_jax.data.image_files import open_files

        return open_files(kind, rest, split, *of_files)
    if kind == "pairs" and rest:
        from byol_jax.data.pairs import open_pairs

        return open_pairs(rest, split, *of_files)
    if kind == "npz" and rest:
        return open_npz(rest, split, channels)
    if spec == "embedded":
        images, labels = load(split)
        check_channels(spec, images.shape[-1], channels)
        return from_arrays(images, labels, f"embedded/{split}", CLASS_NAMES)
    raise ConfigError(
        f"unknown source {spec!r}; use tfds:NAME, folder:PATH, glob:PATTERN, list:FILE, "
        "pairs:PATH1,PATH2, npz:PATH or embedded."
    )
