"""Synthetic JPEG files that take about as long to decode as photographs.

Colour noise with the spectrum of natural images, 1 / frequency, in sizes and at a quality that are
usual in ImageNet.
"""

from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((375, 500), (333, 500), (500, 375), (400, 600), (500, 500), (480, 640))  # height, width
QUALITY = 88


def draw(folder: Path, count: int, seed: int = 0) -> list[str]:
    """Writes `count` JPEG files into a folder; returns their paths."""
    rng = np.random.default_rng(seed)
    paths = []
    for index in range(count):
        path = folder / f"{index:04d}.jpg"
        Image.fromarray(image(rng, *SIZES[index % len(SIZES)])).save(path, quality=QUALITY)
        paths.append(str(path))
    return paths


def image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One image, uint8 (height, width, 3)."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    amplitude = 1 / np.maximum(frequency, 1 / max(height, width))
    spectrum = np.fft.rfft2(rng.standard_normal((3, height, width))) * amplitude
    red, green, blue = np.fft.irfft2(spectrum, (height, width))
    # Photographs vary more in brightness than in colour.
    planes = red + np.stack([np.zeros_like(red), 0.3 * green, 0.3 * blue])
    planes = (planes - planes.mean()) / planes.std()
    return np.clip(np.rint(120 + 60 * planes), 0, 255).astype(np.uint8).transpose(1, 2, 0)
