"""Sound: parts of sound files, and log-mel spectrograms as views (BYOL-A, arXiv 2103.06695)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.fft
import numpy as np
from ml_collections import ConfigDict, config_dict

from byol_jax import byol, models
from byol_jax.augment import audio as augment
from byol_jax.byol import Tree
from byol_jax.data.audio import AudioSource, open_audio
from byol_jax.errors import ConfigError, DataError, describe
from byol_jax.runs.kinds.indexed_kind import IndexedKind, check_encoders
from byol_jax.runs.limits import MAX_FINITE, MIN_POSITIVE, limit

PREFIX = "folder:"
MEASURED = 512  # examples that mean and standard deviation are measured on
DIGITS = 3  # of mean and standard deviation, so that another machine finds the same ones
COEFFICIENTS = 20  # of the baseline of mel-frequency cepstra
SPECTROGRAM = tuple(field.name for field in dataclasses.fields(augment.Spectrogram))
SIZES = "time_min time_max frequency_min frequency_max"


class Audio(IndexedKind):
    """float32 (samples,) in -1..1."""

    name = "audio"
    unit = "sounds"
    input_meaning = "-1 to 1, at the sample rate of config.json: mean and std are applied inside"
    raw_name = "mfcc"
    source_type = AudioSource
    views_are_inputs = False
    at_least = (
        limit(1, "data.sample_rate data.n_fft data.hop_length")
        | limit(2, "data.n_mels")
        | limit(MIN_POSITIVE, "data.seconds views.std")
        | limit(-MAX_FINITE, "views.mean")
        | limit(MIN_POSITIVE, " ".join(f"views.*.{key}" for key in SIZES.split()))
    )
    at_most = (
        limit(1, "views.*.mixup_ratio")
        | limit(2**16, "data.n_fft data.n_mels")
        | limit(3600, "data.seconds")
        | limit(10, " ".join(f"views.*.{key}" for key in SIZES.split()))
    )

    def add_settings(self, config):  # noqa: D102 (see Kind, here and below)
        config.data.seconds = 0.95  # length of an example; shorter files are followed by zeros
        config.data.update(dataclasses.asdict(augment.Spectrogram()))
        view = dataclasses.asdict(augment.View())
        config.views = ConfigDict({"view1": view, "view2": view})
        # Of log-mel spectrograms; None: from the data.
        config.views.mean = config_dict.placeholder(float)
        config.views.std = config_dict.placeholder(float)

    def check(self, config, encoder):  # noqa: D102
        chosen = config.data
        if chosen.hop_length > chosen.n_fft or chosen.n_fft % 2:
            raise ConfigError(
                f"config.data.n_fft={chosen.n_fft} must be even, and at least config.data."
                f"hop_length={chosen.hop_length}."
            )
        if not chosen.fmin < chosen.fmax <= chosen.sample_rate / 2:
            raise ConfigError(
                f"config.data.fmax={chosen.fmax:g} must be above config.data.fmin={chosen.fmin:g} "
                f"and at most {chosen.sample_rate / 2:g}, half of config.data.sample_rate."
            )
        (shape,) = self.view_shapes(config)
        check_encoders(self, config, {"spectrograms": shape}, "choose audio_ntt")

    def fit_to(self, config: ConfigDict, source: AudioSource) -> None:  # noqa: D102
        self.check_source(config, source)
        if None not in (config.views.mean, config.views.std):
            return
        count = min(MEASURED, source.num_examples)
        spectrogram = _spectrogram(config.data)
        sums, last = [], None
        for index in np.random.default_rng(0).permutation(source.num_examples)[:count]:
            try:
                waves = source.load(np.array([index]))["audio"]
            except DataError as error:
                if config.data.on_decode_error == "error":
                    raise
                last = error
                continue
            mels = np.asarray(_log_mels(spectrogram, waves), np.float64)
            sums.append((mels.mean(), (mels**2).mean()))
        if not sums:
            raise last
        mean, square = np.mean(sums, axis=0)
        std = np.sqrt(max(square - mean**2, 0))
        for key, value in (("mean", mean), ("std", std)):
            if config.views[key] is None:
                config.views[key] = float(f"{value:.{DIGITS}g}")
        config.views.std = config.views.std or 1.0

    def check_source(self, config, source):
        """Raises DataError unless examples have the run's length and sample rate."""
        super().check_source(config, source)
        if (source.sample_rate, source.samples) != (config.data.sample_rate, _samples(config.data)):
            raise DataError(
                f"{source.name} was opened with {source.samples} samples at {source.sample_rate} "
                f"Hz, and the run has {_samples(config.data)} at {config.data.sample_rate}."
            )

    def view_shapes(self, config):  # noqa: D102
        frames = _spectrogram(config.data).frames(_samples(config.data))
        return [(config.data.n_mels, frames, 1)]

    def describe(self, config):  # noqa: D102
        mels, frames, _ = self.view_shapes(config)[0]
        return f"{config.data.seconds:g} s, {mels} mels x {frames} frames"

    def open_split(self, config: ConfigDict, split: str) -> AudioSource:  # noqa: D102
        spec = config.data.source
        if not spec.startswith(PREFIX):
            raise ConfigError(
                f"config.data.source={spec} must be folder:PATH: a preset of sound reads files."
            )
        rate = config.data.sample_rate
        return open_audio(spec.removeprefix(PREFIX), split, rate, _samples(config.data))

    def raw(self, config: ConfigDict, examples: dict[str, np.ndarray]) -> np.ndarray:
        """Means and standard deviations in time of mel-frequency cepstral coefficients."""
        mels = _log_mels(_spectrogram(config.data), examples["audio"])
        cepstra = np.asarray(jax.scipy.fft.dct(mels, axis=1, norm="ortho"))[:, :COEFFICIENTS]
        return np.concatenate([cepstra.mean(axis=2), cepstra.std(axis=2)], axis=1)

    def example_batch(self, config: ConfigDict) -> byol.Batch:  # noqa: D102
        samples = _samples(config.data)
        examples = {
            "audio": np.zeros((2, samples), np.float32),
            "background": np.zeros((2, 2, samples), np.float32),
        }
        return byol.Batch(examples, None, np.arange(2, dtype=np.int32))

    def policy(self, config: ConfigDict) -> augment.Policy:  # noqa: D102
        return augment.Policy(
            _spectrogram(config.data),
            augment.View(**config.views.view1),
            augment.View(**config.views.view2),
            config.views.mean,
            config.views.std,
        )

    def pictures(
        self, policy: augment.Policy, examples: dict[str, np.ndarray], views: Sequence[Tree]
    ) -> dict[str, np.ndarray]:
        """Spectrograms, low frequencies below: sounds, backgrounds, and both views."""
        background = examples["background"]
        waves = {"audio": examples["audio"]}
        waves |= {f"background {i + 1}": background[:, i] for i in range(2)}
        rows = {name: policy.preprocess(jnp.asarray(wave)) for name, wave in waves.items()}
        rows |= {f"view {number}": view for number, view in enumerate(views, start=1)}
        # From -2 to 2 standard deviations.
        return {name: (np.asarray(row)[:, ::-1] + 2) / 4 for name, row in rows.items()}

    def encoder_record(self, config: ConfigDict) -> dict[str, Any]:  # noqa: D102
        record = {key: config.data[key] for key in ("seconds", *SPECTROGRAM)}
        return record | {"kind": self.name, "mean": config.views.mean, "std": config.views.std}

    def config_of_record(self, record: dict[str, Any]) -> dict[str, Any]:  # noqa: D102
        return {
            "data": {key: record[key] for key in ("seconds", *SPECTROGRAM)},
            "views": {"mean": record["mean"], "std": record["std"]},
        }

    def check_same_inputs(self, given, config, record):  # noqa: D102
        here = self.encoder_record(config)
        for key in ("sample_rate", "seconds"):
            if record[key] != here[key]:
                raise ConfigError(
                    f"{given} takes sounds with {key}={record[key]}, and the run's have "
                    f"{here[key]}: name an encoder of the same."
                )

    def check_inputs(self, record, module, name, given):
        """Returns float32 (n, samples), by the name "audio"."""
        try:
            waves = np.asarray(given["audio"] if isinstance(given, Mapping) else given, np.float32)
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{name} takes sounds of one length, float (n, samples).") from None
        if waves.ndim != 2 or not np.abs(waves).max(initial=0) <= 2:
            raise DataError(
                f"{name} takes sounds (n, samples) from -1 to 1, at {record['sample_rate']} Hz, "
                f"not {waves.shape}{', other values or NaN' if waves.ndim == 2 else ''}."
            )
        example = jax.ShapeDtypeStruct((1, waves.shape[1]), np.float32)
        try:
            view = jax.eval_shape(lambda x: self.preprocess(record, x), example)
            models.variable_shapes(module, view)
        except Exception as error:  # whatever the module raises
            raise DataError(
                f"{name} cannot take sounds of {waves.shape[1]} samples ({describe(error)})."
            ) from error
        return {"audio": waves}

    def preprocess(self, record, examples):
        """Spectrograms of sounds, with or without their name."""
        view, moments = augment.View(), (record["mean"], record["std"])
        policy = augment.Policy(_spectrogram(record), view, view, *moments)
        return policy.preprocess(examples)

    def blank(self, record, n):  # noqa: D102
        return jax.ShapeDtypeStruct((n, _samples(record)), np.float32)


def _samples(settings: Mapping[str, Any]) -> int:
    """Samples of an example, by `config.data` or an `encoder_record`."""
    return round(settings["seconds"] * settings["sample_rate"])


def _spectrogram(settings: Mapping[str, Any]) -> augment.Spectrogram:
    """What a spectrogram is made with, likewise."""
    return augment.Spectrogram(**{key: settings[key] for key in SPECTROGRAM})


@functools.partial(jax.jit, static_argnums=0)
def _log_mels(spectrogram: augment.Spectrogram, waves: jax.Array) -> jax.Array:
    return jax.vmap(lambda wave: augment.log_mel(spectrogram, wave))(waves)
