"""Pairs of an image and a text about it, by Pillow; records.py reads the files that list them.

A record has "image", a path below the folder of its file, and "text". Images are read whenever they
are used: JPEG, PNG, WebP and what else Pillow knows. The first frame counts, alpha channels are
dropped, images are turned upright by their EXIF orientation, and of 16 bits the upper 8 are kept.
"""

import os
from collections.abc import Sequence

import numpy as np

from byol_jax.data import optional, records
from byol_jax.data.indexed import IndexedSource
from byol_jax.data.text import TextSource, TokenSource

REDUCING_GAP = 2.0  # a fast reduction comes before the resizing if it leaves that much


class ImageTextSource(IndexedSource):
    """Pairs of a file.

    Attributes:
      texts: the texts alone.
      size: height and width of images, in pixels.
    """

    def __init__(self, name: str, found: records.Records, size: int):
        """Keeps the records; use `open_image_text`."""
        labels = np.full(len(found), -1, np.int32) if found.labels is None else found.labels
        super().__init__(name, labels, found.class_names)
        self.texts = TextSource(name, records.Field(found, "text"))
        self.size, self._records = size, found

    def fingerprint(self):
        """Of the file alone, and not of the images that it names."""
        return self._records.digest

    def describe(self, index):  # noqa: D102 (see Source)
        return self._records.describe(index)

    def load(self, indices):
        """The central squares of images, uint8 (n, size, size, 3)."""
        return np.stack([self._image(index, 0.5) for index in indices])

    def load_random(self, indices, seeds):
        """Squares at a random place along the longer sides."""
        # Not the first number of a seed, by which the text's window is chosen.
        places = [np.random.default_rng(seed).random(2)[1] for seed in seeds]
        return np.stack([self._image(*pair) for pair in zip(indices, places, strict=True)])

    def _image(self, index: int, where: float) -> np.ndarray:
        """A square, the shorter side of the image; `where` 0 is its left or top, and 1 its end.

        Raises:
          DataError: the record or the image cannot be read.
        """
        name = self._records[index]["image"]
        below = os.path.normpath(name)
        if os.path.isabs(name) or below.split(os.sep)[0] == os.pardir:
            reason = f"its image {name} is not below the folder of that file"
            raise self._records.error(index, reason)
        image_lib = _package()
        try:
            with image_lib.open(self._records.file.parent / below) as image:
                image.draft(None, (2 * self.size, 2 * self.size))  # JPEG: decodes no more
                return _square(image, self.size, where)
        except FileNotFoundError:
            reason = f"its image {name} does not exist"
        # What Pillow raises for damaged files differs from format to format.
        except Exception as error:
            lines = str(error).splitlines() or [type(error).__name__]
            reason = f"its image {name} cannot be decoded ({lines[0].rstrip('.')})"
        raise self._records.error(index, reason)


class PairSource(IndexedSource):
    """Examples {"image": uint8 (size, size, 3), "text": int32 (length,)}.

    The text is as of `TokenSource`.
    """

    def __init__(self, source: ImageTextSource, vocabulary: tuple[str, ...], length: int):
        super().__init__(source.name, source.labels, source.class_names)
        self._images, self._texts = source, TokenSource(source.texts, vocabulary, length)

    def describe(self, index):  # noqa: D102 (see Source)
        return self._images.describe(index)

    def load(self, indices):  # noqa: D102 (see IndexedSource)
        return {"image": self._images.load(indices), "text": self._texts.load(indices)}

    def load_random(self, indices: np.ndarray, seeds: Sequence[tuple[int, ...]]):  # noqa: D102
        image = self._images.load_random(indices, seeds)
        return {"image": image, "text": self._texts.load_random(indices, seeds)}


def open_image_text(path: str, split: str, size: int) -> ImageTextSource:
    """The pairs of a split, from .jsonl or .csv files: see records.py.

    Args:
      path: of a file, or of a folder of files.
      split: such as "train".
      size: height and width of images, in pixels.

    Raises:
      DataError: there is no such file, or it cannot be read or used.
      UserError: a package is missing.
    """
    _package()
    found = records.find("image_text", path, split, ("image", "text"))
    return ImageTextSource(f"image_text:{path}/{split}", found, size)


def _square(image, size: int, where: float) -> np.ndarray:
    """Uint8 (size, size, 3) of a Pillow image; may raise whatever Pillow does."""
    image = optional.package("PIL.ImageOps", "images with texts", "train").exif_transpose(image)
    if image.mode.startswith("I"):
        pixels = (np.asarray(image) >> 8).astype(np.uint8)
        image = _package().fromarray(pixels)
    if image.mode == "P":  # whose transparent colours have names or bytes
        image = image.convert("RGBA")
    image = image.convert("RGB")
    side = min(image.size)
    left, top = (where * (length - side) for length in image.size)
    box = (left, top, left + side, top + side)
    bicubic = _package().Resampling.BICUBIC
    return np.asarray(image.resize((size, size), bicubic, box, reducing_gap=REDUCING_GAP))


def _package():
    return optional.package("PIL.Image", "images with texts", "train")
