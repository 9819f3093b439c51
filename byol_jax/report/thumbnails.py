"""Small pictures of many images in a few large ones."""

import io

import numpy as np

from byol_jax.train.plots import as_picture

ACROSS = 32  # pictures in a row of a sheet, which has as many rows at most
FEW, MANY = 2_000, 5_000  # up to which pictures may be larger
QUALITIES = 70, 50, 30, 10  # of WebP: the first that is small enough
MOST = 8_000_000  # bytes of all sheets: base64 makes them a third larger


def side(count: int, image_size: int) -> int:
    """Height and width of so many pictures; images that are smaller are not enlarged."""
    largest = 96 if count <= FEW else 64 if count <= MANY else 48
    return min(largest, max(image_size, 32))


def sheets(pictures: np.ndarray) -> list[bytes]:
    """WebP images with up to ACROSS^2 pictures each, row by row.

    Args:
      pictures: uint8 (n, side, side, channels), of 1 or 3 channels.
    """
    for quality in QUALITIES:
        found = [
            webp(_sheet(pictures[start : start + ACROSS**2]), quality)
            for start in range(0, len(pictures), ACROSS**2)
        ]
        if sum(map(len, found)) <= MOST:
            break
    return found


def _sheet(part: np.ndarray) -> np.ndarray:
    rows = -(-len(part) // ACROSS)
    padded = np.zeros((rows * ACROSS, *part.shape[1:]), np.uint8)
    padded[: len(part)] = part
    _, height, width, channels = padded.shape
    sheet = padded.reshape(rows, ACROSS, height, width, channels).swapaxes(1, 2)
    return sheet.reshape(rows * height, ACROSS * width, channels)


def webp(image: np.ndarray, quality: int) -> bytes:
    """An image, uint8 (height, width, channels), drawn as by `as_picture`, as a WebP file."""
    written = io.BytesIO()
    as_picture(image).save(written, "webp", quality=quality)
    return written.getvalue()
