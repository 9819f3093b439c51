"""Views of sound: log-mel spectrograms, and the augmentations of BYOL-A.

References: Niizumi et al. 2021, "BYOL for Audio" (arXiv 2103.06695, section III: mixup, random
resize crop, normalisations) and 2022 (arXiv 2204.07402, section III-C: random linear fader). The
spectrogram is that of librosa 0.11 (`librosa.feature.melspectrogram` with its defaults: zeros
around the signal, a periodic Hann window, Slaney's mel scale and norm, power 2), then a logarithm.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

# What the key of a view is folded with, so that no operation changes the draws of another.
MIXUP, CROP, FADER = range(3)
EPSILON = float(np.finfo(np.float32).eps)  # added to powers before the logarithm
CUBIC = -0.75  # of the bicubic interpolation, as in PyTorch


@dataclasses.dataclass(frozen=True)
class Spectrogram:
    """What a log-mel spectrogram is made with; the defaults are BYOL-A's for 16 kHz."""

    sample_rate: int = 16_000  # Hz
    n_fft: int = 1024  # samples of a frame
    hop_length: int = 160  # samples from one frame to the next
    n_mels: int = 64
    fmin: float = 60.0  # Hz
    fmax: float = 7800.0

    def frames(self, samples: int) -> int:
        """How many frames so many samples give."""
        return 1 + samples // self.hop_length


@dataclasses.dataclass(frozen=True)
class View:
    """Strengths of one view, as in BYOL-A; at 0 or 1 an operation is off."""

    mixup_ratio: float = 0.2  # largest share of the background; uniform from 0 (0.4 in the paper)
    # Size of the crop by that of the spectrogram, in time and in frequency, uniform; it is resized
    # to the spectrogram. Crops lie in an area that is 1.5 times as long, with zeros at both ends.
    time_min: float = 0.6
    time_max: float = 1.5
    frequency_min: float = 0.6
    frequency_max: float = 1.5
    # Both ends of a slope in time are uniform in -gain..gain; 1 in version 2.
    fader_gain: float = 0.0


AREA = 1.5  # length of the area that crops are taken from, by that of the spectrogram


def _hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """Slaney's scale: linear up to 1000 Hz, then logarithmic."""
    linear, step = np.asarray(hz, float) / (200 / 3), np.log(6.4) / 27
    return np.where(hz < 1000, linear, 15 + np.log(np.maximum(hz, 1e-9) / 1000) / step)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    step = np.log(6.4) / 27
    return np.where(mel < 15, mel * (200 / 3), 1000 * np.exp(step * (mel - 15)))


@functools.lru_cache(8)
def mel_filters(config: Spectrogram) -> np.ndarray:
    """Triangular filters of equal area: float32 (n_mels, n_fft / 2 + 1)."""
    bins = np.fft.rfftfreq(config.n_fft, 1 / config.sample_rate)
    ends = _hz_to_mel(np.array([config.fmin, config.fmax]))
    edges = _mel_to_hz(np.linspace(*ends, config.n_mels + 2))
    width = np.diff(edges)[:, None]
    ramps = edges[:, None] - bins
    filters = np.maximum(0, np.minimum(-ramps[:-2] / width[:-1], ramps[2:] / width[1:]))
    return (filters * (2 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)


def log_mel(config: Spectrogram, wave: jax.Array) -> jax.Array:
    """The log-mel spectrogram of a sound.

    Args:
      config: what it is made with.
      wave: float32 (samples,) in -1..1, at `config.sample_rate`.

    Returns:
      Float32 (n_mels, frames): the natural logarithm of the power.
    """
    half, hop = config.n_fft // 2, config.hop_length
    frames = config.frames(wave.shape[-1])
    padded = jnp.pad(wave, (half, half))
    index = hop * np.arange(frames)[:, None] + np.arange(config.n_fft)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.n_fft) / config.n_fft)
    spectrum = jnp.fft.rfft(padded[index] * window.astype(np.float32))
    power = jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2
    exact = jax.lax.Precision.HIGHEST
    mels = jnp.einsum("mf,tf->mt", mel_filters(config), power, precision=exact)
    return jnp.log(mels + EPSILON)


def mixup(sound: jax.Array, background: jax.Array, share: jax.Array) -> jax.Array:
    """The logarithm of a mixture of powers: log((1 - share) e^sound + share e^background)."""
    return jnp.logaddexp(jnp.log1p(-share) + sound, jnp.log(share) + background)


def cubic_matrix(start: jax.Array, length: jax.Array, full: int, size: int) -> jax.Array:
    """Weights of `full` cells in each of `size`, resizing `length` of them from `start` on.

    Bicubic, with the centres of the first and last cells kept (align_corners in PyTorch); cells
    outside of the interval repeat its ends.

    Args:
      start: (), a whole number: the first cell of the interval.
      length: (), a whole number: how many cells it has.
      full: how many cells there are in all.
      size: how many to make of the interval, at least 2.

    Returns:
      Float32 (size, full); rows sum to one.
    """
    at = jnp.arange(size) * (length - 1) / (size - 1)
    before = jnp.floor(at)
    weights = jnp.zeros((size, full))
    for tap in (-1, 0, 1, 2):
        distance = jnp.abs(at - before - tap)
        near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
        far = ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
        weight = jnp.where(distance <= 1, near, far)
        cell = jnp.clip(before + tap, 0, length - 1) + start
        weights += weight[:, None] * (cell[:, None] == jnp.arange(full))
    return weights


def resize_crop(config: View, key: jax.Array, image: jax.Array) -> jax.Array:
    """A random part of a spectrogram (mels, frames), or more than it, resized to its shape."""
    mels, frames = image.shape
    area = int(AREA * frames)
    left = (area - frames) // 2
    canvas = jnp.pad(image, ((0, 0), (left, area - frames - left)))
    u = jax.random.uniform(key, (4,))

    def interval(u: jax.Array, low: float, high: float, size: int, full: int) -> tuple:
        length = jnp.clip(jnp.floor((low + (high - low) * u[0]) * size), 1, full)
        return jnp.floor(u[1] * (full - length + 1)), length

    rows = cubic_matrix(
        *interval(u[:2], config.frequency_min, config.frequency_max, mels, mels), mels, mels
    )
    columns = cubic_matrix(
        *interval(u[2:], config.time_min, config.time_max, frames, area), area, frames
    )
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("ym,mf,xf->yx", rows, canvas, columns, precision=exact)


def augment(config: View, key: jax.Array, sound: jax.Array, background: jax.Array) -> jax.Array:
    """One view of a normalised spectrogram (mels, frames), with a background likewise."""

    def key_of(operation: int) -> jax.Array:
        return jax.random.fold_in(key, operation)

    if config.mixup_ratio > 0:
        share = config.mixup_ratio * jax.random.uniform(key_of(MIXUP))
        sound = mixup(sound, background, share)
    sizes = (config.time_min, config.time_max, config.frequency_min, config.frequency_max)
    if sizes != (1, 1, 1, 1):
        sound = resize_crop(config, key_of(CROP), sound)
    if config.fader_gain > 0:
        ends = config.fader_gain * (2 * jax.random.uniform(key_of(FADER), (2,)) - 1)
        sound = sound + jnp.linspace(ends[0], ends[1], sound.shape[1])
    return sound


@dataclasses.dataclass(frozen=True)
class Policy:
    """What makes two views of a sound.

    Attributes:
      spectrogram: what spectrograms are made with.
      view1: strengths of view 1.
      view2: and of view 2.
      mean: of log-mel spectrograms: the first normalisation of BYOL-A. The second, of the batch of
        views, is the encoder's (`models.AudioNTT`).
      std: likewise.
    """

    spectrogram: Spectrogram
    view1: View
    view2: View
    mean: float
    std: float

    def __call__(self, key: jax.Array, example: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        """The views of one example, float32 (n_mels, frames, 1).

        Args:
          key: a PRNG key for this example alone.
          example: float32 "audio" (samples,), and "background" (2, samples), other sounds for
            view 1 and view 2.
        """
        sound = self.preprocess(example["audio"])[..., 0]
        backgrounds = self.preprocess(example["background"])[..., 0]
        return tuple(
            augment(view, jax.random.fold_in(key, i), sound, backgrounds[i])[..., None]
            for i, view in enumerate((self.view1, self.view2))
        )

    def preprocess(self, waves: jax.Array | dict[str, jax.Array]) -> jax.Array:
        """Float32 (..., samples), or "audio" of that -> normalised (..., n_mels, frames, 1)."""
        waves = waves["audio"] if isinstance(waves, dict) else waves
        of_one = functools.partial(log_mel, self.spectrogram)
        flat = waves.reshape(-1, waves.shape[-1])
        mels = jax.vmap(of_one)(flat).reshape(*waves.shape[:-1], self.spectrogram.n_mels, -1)
        return ((mels - self.mean) / self.std)[..., None]
