"""Sound: files as a source, and a run's whole life."""

import json
import os

import numpy as np
import pytest
import resuming
from absl import flags
from commands import imported

import byol_jax
from byol_jax.data import indexed
from byol_jax.data.audio import open_audio
from byol_jax.errors import ConfigError, DataError
from byol_jax.export import stablehlo
from byol_jax.presets import byol_a
from byol_jax.runs import encoder as encoder_lib
from byol_jax.train import loop

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
RATE = 2000


def tone(hertz, seconds, rate=RATE, phase=0.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate + phase)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of tones, in several formats, lengths, sample rates and numbers of channels."""
    folder, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 4)):
        for label, hertz in (("high", 700), ("low", 200)):
            place = folder / split / label
            place.mkdir(parents=True)
            for i in range(count):
                rate = RATE * (1 + i % 2)
                wave = tone(hertz, 0.2 + 0.1 * i, rate, rng.random())
                wave = np.stack([wave, wave], axis=1) if i % 3 == 1 else wave
                suffix = ("wav", "flac", "ogg")[i % 3]
                soundfile.write(place / f"{i}.{suffix}", wave, rate)
    return folder


def test_a_part_is_read_and_resampled(folder):
    source = open_audio(str(folder), "train", RATE, 800)
    assert source.class_names == ("high", "low") and source.num_examples == 20
    waves = source.load(np.arange(20))["audio"]
    assert waves.dtype == np.float32 and waves.shape == (20, 800)
    names = source.names()
    for wave, name in zip(waves, names, strict=True):
        spectrum = np.abs(np.fft.rfft(wave))
        loudest = np.argmax(spectrum) * RATE / 800
        assert abs(loudest - (700 if "high" in name else 200)) < 10
    assert (waves[names.index("high/0.wav"), 400:] == 0).all()  # 0.2 s, then zeros


def test_a_long_file_gives_its_middle_or_a_random_part(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.arange(1000) / 1000, RATE, subtype="FLOAT")
    source = open_audio(str(tmp_path), "train", RATE, 100)
    np.testing.assert_allclose(source.load([0])["audio"][0], np.arange(450, 550) / 1000, atol=1e-6)
    seeds = [(0, 0, i) for i in range(20)]
    parts = source.load_random(np.zeros(20, int), seeds)
    starts = parts["audio"][:, 0]
    assert len(set(starts)) > 10 and starts.min() >= 0 and starts.max() <= 0.9
    again = source.load_random(np.zeros(1, int), seeds[3:4])
    np.testing.assert_array_equal(again["audio"][0], parts["audio"][3])
    assert parts["background"].shape == (20, 2, 100)
    assert not np.array_equal(parts["background"][:, 0], parts["background"][:, 1])


def test_any_file_name_is_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.ones(100) / 2, RATE)
    os.rename(os.fsencode(tmp_path / "a.wav"), os.path.join(os.fsencode(tmp_path), b"\xff.wav"))
    source = open_audio(str(tmp_path), "train", RATE, 100)
    np.testing.assert_allclose(source.load([0])["audio"], 0.5, atol=1e-4)


def test_what_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF not a sound")
    soundfile.write(tmp_path / "b.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "c.wav", np.zeros(3), RATE)
    source = open_audio(str(tmp_path), "train", RATE, 100)
    for index, message in ((0, r"a\.wav cannot be read \("), (1, r"b\.wav has no samples")):
        with pytest.raises(DataError, match=message) as raised:
            source.load(np.array([index]))
        assert "\n" not in str(raised.value)
    np.testing.assert_array_equal(source.load([2])["audio"], np.zeros((1, 100)))
    soundfile.write(tmp_path / "d.wav", np.ones(2), 48000)  # nothing is left of it at RATE
    soundfile.write(tmp_path / "e.mp3", 0.1 * np.random.default_rng(0).normal(size=32000), 16000)
    content = (tmp_path / "e.mp3").read_bytes()
    (tmp_path / "e.mp3").write_bytes(content[: 2 * len(content) // 3])
    source = open_audio(str(tmp_path), "train", RATE, 2 * RATE)
    for index, message in ((3, r"d\.wav has no samples"), (4, r"e\.mp3 ends 0\.\d\d s before")):
        with pytest.raises(DataError, match=message):
            source.load(np.array([index]))
    assert open_audio(str(tmp_path), "train", RATE, 100).load([4])["audio"].any()  # its middle
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no sound files; put \.wav, \.flac"):
        open_audio(str(tmp_path / "empty"), "train", RATE, 100)


def test_a_broken_background_is_another_one_with_the_same_example(tmp_path):
    (tmp_path / "0.wav").write_bytes(b"")
    for i in range(1, 8):
        soundfile.write(tmp_path / f"{i}.wav", np.full(200, i / 10), RATE, subtype="FLOAT")
    source, errors = open_audio(str(tmp_path), "train", RATE, 100), []
    settings = {"batch_size": 8, "seed": 0, "num_steps": 4, "rows": np.arange(8)}
    for batch in indexed.train_batches(
        source, **settings, on_decode_error=lambda step, error: errors.append((step, error))
    ):
        found = np.round(10 * batch.examples["audio"][:, 0]).astype(int)
        assert {*found} == {*range(1, 8)}  # each of the good ones, and one in place of the other
        assert (batch.examples["background"] > 0).all()
    assert len(errors) > 4 and all("0.wav cannot be read" in error for _, error in errors)
    with pytest.raises(DataError, match=r"0\.wav cannot be read"):
        next(indexed.train_batches(source, **settings))


def config_for(folder):
    config = byol_a.get_config()
    config.epochs, config.steps, config.batch_size = 0, 4, 8
    config.data.source, config.data.test_split = f"folder:{folder}", "test"
    config.data.sample_rate, config.data.seconds = RATE, 0.3
    config.data.n_fft, config.data.hop_length = 64, 40
    config.data.n_mels, config.data.fmax = 8, 1000.0
    config.encoder.width, config.encoder.hidden, config.encoder.features = 2, 8, 8
    config.encoder.convolutions = 2
    config.heads.hidden_size, config.heads.output_size = 8, 4
    config.log_every_steps = config.checkpoint.every_steps = 2
    config.evaluation.every_steps = 4
    return config


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    config, workdir = config_for(folder), tmp_path_factory.mktemp("run")
    assert loop.train(config, workdir)
    return config, workdir, byol_jax.load(workdir)


def test_a_run_resumes_to_the_bit(run, tmp_path, capsys):
    resuming.check(run, tmp_path, capsys, last_step=4)


def test_exports_have_the_same_features(run, folder, tmp_path, monkeypatch):
    _, _, model = run
    waves = open_audio(str(folder), "test", RATE, 600).load(np.arange(4))["audio"]
    features = model.embed(waves)
    assert features.shape == (4, 8) and np.isfinite(features).all()
    encoder_lib.save(model, tmp_path / "own")
    np.testing.assert_array_equal(byol_jax.load(tmp_path / "own").embed(waves), features)
    stablehlo.save(model, tmp_path / "hlo")
    record = json.loads((tmp_path / "hlo" / "config.json").read_text())
    assert record["input"]["shape"] == ["n", 600] and record["input"]["name"] == "sounds"
    monkeypatch.chdir(tmp_path / "hlo")
    names = {"sounds": waves}
    exec("\n".join(record["load"]), names)
    np.testing.assert_allclose(names["features"], features, atol=1e-5)
    with pytest.raises(DataError, match=r"takes sounds \(n, samples\) from -1 to 1"):
        model.embed(100 * waves)
    with pytest.raises(DataError, match=r"cannot take sounds of 20 samples \(ValueError: conv"):
        model.embed(waves[:, :20])


def test_the_command_evaluates_it(run, capsys):
    _, workdir, _ = run
    with imported("evaluate") as command:
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["evaluate", f"--checkpoint={workdir}", "--protocol=knn,logistic,label_free"])
        command.main()
    assert "8 sounds" in capsys.readouterr().out
    found = json.loads((workdir / "eval" / "knn.json").read_text())["top1"]
    assert {*found} == {"byol", "random", "mfcc"} and found["mfcc"] == 1


def test_broken_files_are_counted_and_replaced(folder, tmp_path):
    config = config_for(folder)
    copy = tmp_path / "data"
    for path in folder.glob("train/*/*"):
        (copy / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(folder)).write_bytes(path.read_bytes())
    broken = copy / "train" / "low" / "0.wav"
    broken.write_bytes(b"")
    config.data.source, config.data.test_split = f"folder:{copy}", ""
    config.evaluation.every_steps = 0
    with pytest.raises(DataError, match=r"low/0\.wav cannot be read"):
        loop.train(config, tmp_path / "error")
    config.data.on_decode_error = "skip"
    assert loop.train(config, tmp_path / "skip")
    rows = (tmp_path / "skip" / "decode_errors.jsonl").read_text().splitlines()
    assert rows and all("low/0.wav" in json.loads(row)["image"] for row in rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.source": "npz:x"}, "config.data.source=npz:x must be folder:PATH"),
        ({"data.fmax": 1500.0}, "config.data.fmax=1500 must be above .* at most 1000, half of"),
        ({"data.n_fft": 33}, "config.data.n_fft=33 must be even"),
        ({"data.hop_length": 100}, "at least config.data.hop_length=100"),
        ({"encoder.convolutions": 4}, "convolutions=4 needs 16 mels and frames"),
        ({"views.view1.mixup_ratio": 1.5}, "mixup_ratio=1.5 must be at least 0 and at most 1"),
    ],
)
def test_a_mistake_is_one_line(folder, tmp_path, changes, message):
    config = config_for(folder)
    config.update_from_flattened_dict(changes)
    with pytest.raises((ConfigError, DataError), match=message) as raised:
        loop.train(config, tmp_path)
    assert "\n" not in str(raised.value)
