"""A folder of sound files as a source: WAV, FLAC, OGG and MP3, by soundfile and soxr.

files.py says which files below a folder are taken, and what their labels are. A file is read
whenever it is used, and only the part that is needed; channels are averaged, and another sample
rate is converted.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from byol_jax.data import files, optional
from byol_jax.data.file_source import FileSource
from byol_jax.data.indexed import OtherExampleError
from byol_jax.errors import DataError

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif")
MISSING = 0.1  # seconds that a file may be shorter than it says: of some MP3 files it is estimated


class AudioSource(FileSource):
    """Parts of equal length of sound files.

    Examples are float32 (samples,) in -1..1, called "audio": in training a random part of a file,
    and "background", float32 (2, samples), random parts of two random files, one for each view;
    else the central part. A shorter file is followed by zeros.
    """

    def __init__(self, name: str, found: files.Files, sample_rate: int, samples: int):
        """Keeps the files; use `open_audio`."""
        super().__init__(name, found)
        self.sample_rate, self.samples = sample_rate, samples

    def load(self, indices):  # noqa: D102 (see IndexedSource)
        return {"audio": np.stack([self._read(index, 0.5) for index in indices])}

    def load_random(self, indices: np.ndarray, seeds: Sequence[tuple[int, ...]]):  # noqa: D102
        draws = [np.random.default_rng(seed).random(5) for seed in seeds]
        audio = [self._read(i, draw[0]) for i, draw in zip(indices, draws, strict=True)]
        try:
            background = [
                [self._read(int(draw[k] * self.num_examples), draw[k + 1]) for k in (1, 3)]
                for draw in draws
            ]
        except DataError as error:
            raise OtherExampleError(str(error)) from error
        return {"audio": np.stack(audio), "background": np.stack(background)}

    def _read(self, index: int, where: float) -> np.ndarray:
        """A part of a file, float32 (samples,); `where` 0 is its beginning and 1 its end.

        Raises:
          DataError: the file cannot be read, is empty, or ends before its time.
        """
        soundfile, soxr = _packages()
        try:
            with soundfile.SoundFile(os.fsencode(self.paths[index])) as file:
                rate = file.samplerate
                wanted = -(-self.samples * rate // self.sample_rate)
                start = int(where * max(0, file.frames - wanted))
                file.seek(start)
                read = file.read(wanted, dtype="float32", always_2d=True)
                missing = min(wanted, file.frames - start) - len(read)
        except (OSError, RuntimeError) as error:  # soundfile's errors are RuntimeErrors
            reason = str(error).splitlines()[0].rstrip(".")
            raise DataError(f"{self.describe(index)} cannot be read ({reason}).") from error
        if missing > MISSING * rate:
            raise DataError(f"{self.describe(index)} ends {missing / rate:.2f} s before its time.")
        wave = read.mean(axis=1)
        if len(wave) and rate != self.sample_rate:
            wave = soxr.resample(wave, rate, self.sample_rate)
        if not len(wave) or not np.isfinite(wave).all():
            raise DataError(f"{self.describe(index)} has no samples, or such as are not finite.")
        wave = wave[: self.samples]
        return np.pad(wave, (0, self.samples - len(wave))).astype(np.float32)


def open_audio(path: str, split: str, sample_rate: int, samples: int) -> AudioSource:
    """A source of the sound files below `path`.

    Args:
      path: of a folder.
      split: "train", "test" or the name of another folder below it.
      sample_rate: Hz, of the examples.
      samples: of each example.

    Raises:
      DataError: if the folder or the split does not exist, cannot be read or holds no sound files.
      UserError: a package is missing.
    """
    _packages()
    found = files.find(path, split, EXTENSIONS, "sound files")
    return AudioSource(f"folder:{path}/{split}", found, sample_rate, samples)


def _packages() -> tuple[Any, Any]:
    return tuple(optional.package(name, "sound files", "audio") for name in ("soundfile", "soxr"))
