"""Video through a run's whole life: training, resuming, evaluation, export, and mistakes."""

import json
import shutil

import flax.linen as nn
import numpy as np
import pytest
import resuming
from absl import flags
from commands import imported

pytest.importorskip("av")

from videos import square, write

import byol_jax
from byol_jax import models
from byol_jax.data.video import open_video
from byol_jax.errors import ConfigError, DataError
from byol_jax.export import stablehlo
from byol_jax.presets import rho_byol
from byol_jax.runs import config as config_lib
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import kinds
from byol_jax.runs.resolve import resolve
from byol_jax.train import loop


class PerImage(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        assert x.ndim == 4
        return nn.Dense(4)(x.mean((1, 2)))


class OfClips(nn.Module):
    of_clips = True

    @nn.compact
    def __call__(self, x, train):
        assert x.ndim == 5
        return nn.Dense(4)(x.mean((1, 2, 3)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes that differ by their colour."""
    folder = tmp_path_factory.mktemp("videos")
    for split, count in (("train", 10), ("test", 4)):
        for label, color in (("blue", (30, 30, 250)), ("red", (250, 30, 30))):
            place = folder / split / label
            place.mkdir(parents=True)
            for i in range(count):
                write(place / f"{i}.mp4", square(6 + i, step=1 + i % 3, color=color))
    return folder


def config_for(folder):
    config = rho_byol.get_config()
    config.epochs, config.steps, config.batch_size = 0, 4, 8
    config.data.source, config.data.test_split = f"folder:{folder}", "test"
    config.data.frames, config.data.seconds = 3, 0.3
    config.data.decode_size, config.data.image_size = 16, 12
    for view in (config.views.view1, config.views.view2):  # jitter takes seconds to compile
        view.jitter_prob = view.blur_prob = 0.0
    config.encoder.name = "convnet"
    config.encoder.channels, config.encoder.features = (4, 4), 6
    config.heads.hidden_size, config.heads.output_size = 8, 4
    config.optimizer.warmup_epochs = 0.0
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


def test_features_and_exports_are_those_of_the_module(run, folder, tmp_path, monkeypatch):
    _, _, model = run
    clips = open_video(str(folder), "test", 3, 0.3, 12).load(np.arange(4))["clip1"]
    features = model.embed(clips)
    frames = (clips.reshape(12, 12, 12, 3) / np.float32(255) - 0.45) / 0.225
    single = models.make_encoder(**model.config["encoder"])
    want = models.encode(single.bind(model.variables), frames.astype(np.float32), train=False)
    np.testing.assert_allclose(features, want.reshape(4, 3, 6).mean(1), atol=1e-5)
    encoder_lib.save(model, tmp_path / "own")
    np.testing.assert_array_equal(byol_jax.load(tmp_path / "own").embed(clips), features)
    stablehlo.save(model, tmp_path / "hlo")
    record = json.loads((tmp_path / "hlo" / "config.json").read_text())
    assert record["input"]["shape"] == ["n", 3, 12, 12, 3] and record["input"]["name"] == "videos"
    monkeypatch.chdir(tmp_path / "hlo")
    names = {"videos": clips}
    exec("\n".join(record["load"]), names)
    np.testing.assert_allclose(names["features"], features, atol=1e-5)
    assert model.embed(np.zeros((2, 5, 14, 20, 3), np.uint8)).shape == (2, 6)  # any size
    for wrong in (clips[0], clips / 255, clips[..., :1], clips[:, :0]):
        with pytest.raises(DataError, match=r"embed takes uint8 clips \(n, frames, height, width"):
            model.embed(wrong)
    with pytest.raises(ConfigError, match="has no maps of features"):
        model.embed_dense(clips)


def test_the_command_evaluates_it(run, capsys):
    _, workdir, _ = run
    with imported("evaluate") as command:
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["evaluate", f"--checkpoint={workdir}", "--protocol=knn,logistic,label_free"])
        command.main()
    assert "8 videos" in capsys.readouterr().out
    found = json.loads((workdir / "eval" / "logistic.json").read_text())["top1"]
    assert {*found} == {"byol", "random", "raw"} and found["raw"] == 1
    details = json.loads((workdir / "eval" / "label_free.json").read_text())["details"]
    assert details["byol"]["lidar"] > 0


def test_the_baseline_is_the_mean_frame_and_the_mean_change(folder):
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4, 3), np.uint8)
    got = kinds.get("video").raw(config_for(folder), {"clip1": clips})
    first, second, third = clips.astype(float).swapaxes(0, 1)
    change = (np.abs(second - first) + np.abs(third - second)) / 2
    want = np.stack([(first + second + third) / 3, change], axis=1).reshape(2, -1) / 255
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_pictures_show_the_frames(folder):
    config, rng = config_for(folder), np.random.default_rng(0)
    clips = rng.integers(0, 256, (2, 3, 3, 16, 16, 3), np.uint8)
    views = rng.normal(size=(2, 3, 3, 12, 12, 3))
    kind = kinds.of(config)
    examples = {"clip1": clips[0], "clip2": clips[1]}
    rows = kind.pictures(kind.policy(config), examples, views)
    assert [*rows][:5] == ["1: clip 1", "1: view 1", "1: clip 2", "1: view 2", "2: clip 1"]
    np.testing.assert_array_equal(rows["2: clip 2"], clips[1, 1] / 255)
    np.testing.assert_allclose(rows["2: view 1"], views[0, 1] * 0.225 + 0.45)


def test_a_source_has_as_many_clips_as_the_run(folder):
    config, kind = config_for(folder), kinds.get("video")
    three = open_video(str(folder), "train", 3, 0.3, 16, clips=3)
    with pytest.raises(DataError, match=r"has 3 clips .* config\.data\.clips=2: open it"):
        kind.fit_to(config, three)
    kind.check_source(config, three)  # enough for evaluation, where a video has one clip


def test_broken_files_are_counted_and_replaced_also_with_three_clips(folder, tmp_path):
    config = config_for(folder)
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "train" / "red" / "0.mp4").write_bytes(b"")
    config.data.source, config.data.test_split = f"folder:{tmp_path / 'data'}", ""
    config.evaluation.every_steps = 0
    with pytest.raises(DataError, match=r"red/0\.mp4 cannot be read"):
        loop.train(config, tmp_path / "error")
    config.data.on_decode_error, config.data.clips = "skip", 3
    assert loop.train(config, tmp_path / "skip")
    rows = (tmp_path / "skip" / "decode_errors.jsonl").read_text().splitlines()
    assert rows and all("red/0.mp4" in json.loads(row)["image"] for row in rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.source": "npz:x"}, "config.data.source=npz:x must be folder:PATH"),
        ({"data.source": "folder:/missing"}, "the folder /missing does not exist"),
        ({"data.decode_size": 8}, "decode_size=8 must be at least config.data.image_size=12"),
        ({"data.frames": 1}, "config.data.frames=1 must be at least 2"),
        ({"data.clips": 1}, "config.data.clips=1 must be at least 2"),
        ({"views.std": (0.2,)}, r"config.views.std=\(0.2,\): give 3 number"),
        ({"views.view1.mask_share": 0.001}, "view1.mask_share=0.001 masks 0 of the"),
        ({"encoder.name": "conv1d"}, "name='conv1d' takes signals, not images"),
        ({"encoder.name": "slow_r18", "data.kind": "images"}, "needs config.* which this config"),
    ],
)
def test_a_mistake_is_one_line(folder, tmp_path, changes, message):
    config = config_for(folder)
    if "encoder.name" in changes:
        config.encoder.channels = config.encoder.features = None
    config.update_from_flattened_dict(changes)
    with pytest.raises((ConfigError, DataError), match=message) as raised:
        loop.train(config, tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["PerImage", "OfClips"])
def test_an_encoder_of_ones_own_is_for_frames_or_for_clips(folder, name):
    config = config_for(folder)
    config_lib.use_encoder(config, f"{__name__}:{name}")
    config, _ = resolve(config)
    kind = kinds.of(config)
    module = kind.adapt(models.make_encoder(config.encoder.name))
    assert isinstance(module, models.FrameMean) == (name == "PerImage")
