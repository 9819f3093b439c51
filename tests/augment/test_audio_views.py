"""Spectrograms against librosa, and BYOL-A's views against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax.augment import audio
from byol_jax.augment.audio import Policy, Spectrogram, View

KEY = jax.random.key(5)
MELS = np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32)
OTHER = np.random.default_rng(1).normal(size=(8, 12)).astype(np.float32)
OFF = View(mixup_ratio=0, time_min=1, time_max=1, frequency_min=1, frequency_max=1)


def draws(operation, *shape):
    return np.asarray(jax.random.uniform(jax.random.fold_in(KEY, operation), shape))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("a", Spectrogram()),
        ("b", Spectrogram(8000, n_fft=256, hop_length=80, n_mels=20, fmin=0.0, fmax=4000.0)),
    ],
)
def test_a_log_mel_spectrogram_is_that_of_librosa(reference_data, name, config):
    rng = np.random.default_rng(0)
    wave = 0.1 * rng.normal(size=4000) + 0.3 * np.sin(np.arange(4000) * 0.3)
    with np.load(reference_data / "log_mel.npz") as archive:
        want = archive[name]
    got = audio.log_mel(config, jnp.float32(wave))
    assert got.shape == want.shape == (config.n_mels, config.frames(4000))
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_silence_is_finite():
    np.testing.assert_allclose(
        audio.log_mel(Spectrogram(), jnp.zeros(1600)), np.log(audio.EPSILON), rtol=1e-6
    )


def test_with_nothing_on_a_view_is_its_input():
    np.testing.assert_array_equal(audio.augment(OFF, KEY, MELS, OTHER), MELS)


def test_mixup_adds_powers():
    share = 0.4 * draws(audio.MIXUP)
    want = np.log((1 - share) * np.exp(MELS) + share * np.exp(OTHER))
    view = View(**{**vars(OFF), "mixup_ratio": 0.4})
    np.testing.assert_allclose(audio.augment(view, KEY, MELS, OTHER), want, atol=1e-5)


def test_the_fader_adds_a_slope():
    head, tail = 2 * draws(audio.FADER, 2) - 1
    view = View(**{**vars(OFF), "fader_gain": 1.0})
    got = audio.augment(view, KEY, MELS, OTHER)
    np.testing.assert_allclose(got, MELS + np.linspace(head, tail, 12), atol=1e-6)


def cubic(values, size):
    """Bicubic resizing of the first axis that keeps its ends; plainly, with a = -3/4."""

    def weight(d):
        a, d = -0.75, abs(d)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    rows = []
    for i in range(size):
        at = i * (len(values) - 1) / (size - 1)
        before = int(np.floor(at))
        taps = range(before - 1, before + 3)
        rows.append(sum(weight(at - t) * values[min(max(t, 0), len(values) - 1)] for t in taps))
    return np.array(rows)


@pytest.mark.parametrize("seed", range(4))
def test_a_crop_is_resized_from_an_area_with_zeros(seed):
    key = jax.random.key(seed)
    canvas = np.zeros((8, 18))
    canvas[:, 3:15] = MELS
    u = np.asarray(jax.random.uniform(key, (4,)))
    height = int(np.clip(np.floor((0.6 + 0.9 * u[0]) * 8), 1, 8))
    width = int(np.clip(np.floor((0.6 + 0.9 * u[2]) * 12), 1, 18))
    top, left = int(u[1] * (8 - height + 1)), int(u[3] * (18 - width + 1))
    part = canvas[top : top + height, left : left + width]
    want = cubic(cubic(part, 8).T, 12).T
    np.testing.assert_allclose(audio.resize_crop(View(), key, jnp.array(MELS)), want, atol=1e-5)


def test_resizing_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    image = torch.tensor(MELS[None, None, :, 2:9])
    want = torch.nn.functional.interpolate(image, (8, 12), mode="bicubic", align_corners=True)
    columns = audio.cubic_matrix(jnp.array(2.0), jnp.array(7.0), 12, 12)
    np.testing.assert_allclose(MELS @ np.asarray(columns).T, want[0, 0], atol=1e-5)


def test_views_differ_and_are_normalised():
    policy = Policy(Spectrogram(), OFF, OFF, mean=-5.0, std=2.0)
    wave = jnp.float32(np.random.default_rng(2).normal(size=800))
    first, second = policy(KEY, {"audio": wave, "background": jnp.stack([wave, wave])})
    want = (audio.log_mel(Spectrogram(), wave) + 5) / 2
    np.testing.assert_allclose(first[..., 0], want, atol=1e-5)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(policy.preprocess({"audio": wave[None]})[0], first)
    random = Policy(Spectrogram(), View(), View(), -5.0, 2.0)
    first, second = random(KEY, {"audio": wave, "background": jnp.stack([wave[::-1], 2 * wave])})
    assert np.abs(first - second).max() > 0.1
