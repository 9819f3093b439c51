"""Images of five channels: a run, its resume, its exports, and settings that do not fit."""

import json

import jax
import numpy as np
import pytest
import resuming
from commands import imported
from PIL import Image
from tiny import tiny_config

import byol_jax
from byol_jax import data
from byol_jax.augment import image as image_augment
from byol_jax.errors import ConfigError, DataError
from byol_jax.export import stablehlo
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import kinds
from byol_jax.runs.resolve import from_record, resolve
from byol_jax.train import loop, plots

CHANNELS = 5
MEANS = np.array([20, 60, 100, 140, 180])


def examples(count):
    rng = np.random.default_rng(0)
    images = MEANS + rng.normal(0, 10, (count, 18, 16, CHANNELS))
    return images.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    np.savez(folder / "train.npz", images=examples(24))
    return folder


def config_for(source):
    config = tiny_config()
    config.steps, config.batch_size = 4, 8
    config.data.source, config.data.channels = source, CHANNELS
    config.views.mean, config.views.std = (), ("",)  # as the flag without a value is read
    for view in (config.views.view1, config.views.view2):
        view.gray_prob, view.solarize_prob = 0.5, 0.5
    config.checkpoint.every_steps = 2
    config.evaluation.every_steps = 0
    return config


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory, pictures):
    """With pictures, to see that they can be drawn."""
    config, workdir = config_for(f"npz:{folder}"), tmp_path_factory.mktemp("run")
    config.data.placement = "host"
    with pictures():
        assert loop.train(config, workdir)
    return config, workdir, byol_jax.load(workdir)


def test_a_run_resumes_to_the_bit(run, tmp_path, capsys):
    resuming.check(run, tmp_path, capsys, last_step=4)


def test_mean_and_std_are_those_of_the_data(run):
    _, workdir, model = run
    kept = json.loads((workdir / "config.json").read_text())["config"]["views"]
    np.testing.assert_allclose(kept["mean"], MEANS / 255, atol=0.01)
    np.testing.assert_allclose(kept["std"], 5 * [10 / 255], atol=0.01)
    assert model.config["mean"] == kept["mean"] and len(kept["std"]) == CHANNELS


def test_exports_equal_the_run(run, folder, tmp_path, monkeypatch):
    _, _, model = run
    images = examples(4)
    images = images[:, :16]
    features = model.embed(images)
    assert features.shape == (4, 16)
    encoder_lib.save(model, tmp_path / "own")
    np.testing.assert_array_equal(byol_jax.load(tmp_path / "own").embed(images), features)
    stablehlo.save(model, tmp_path / "hlo")
    record = json.loads((tmp_path / "hlo" / "config.json").read_text())
    monkeypatch.chdir(tmp_path / "hlo")
    names = {"images": images}
    exec("\n".join(record["load"]), names)
    np.testing.assert_allclose(names["features"], features, atol=1e-5)
    with pytest.raises(DataError, match=r"\(n, height, width, 5\), not uint8 \(4, 16, 16, 3\)"):
        model.embed(images[..., :3])


def test_the_picture_shows_three_channels(run, tmp_path):
    _, workdir, _ = run
    with Image.open(workdir / "views.png") as picture:
        assert picture.mode == "RGB"
    for channels, want in ((5, [10, 20, 30]), (2, [10, 10, 10])):
        image = np.zeros((1, 96, 96, channels)) + 10 * np.arange(1, channels + 1) / 255
        plots.draw_rows(tmp_path / "rows.png", {"row": image})
        with Image.open(tmp_path / "rows.png") as picture:
            assert [*picture.getpixel((80, 60))] == want


@pytest.mark.parametrize("channels", [2, 5])
def test_colour_operations_are_skipped(channels):
    """A view of n channels is that of each of its channels alone."""
    image = np.random.default_rng(0).random((channels, 12, 12), np.float32)
    view = image_augment.View(gray_prob=1.0, solarize_prob=0.5)
    key = jax.random.key(3)
    got = image_augment.view(view, key, image)
    want = [image_augment.view(view, key, plane[None])[0] for plane in image]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_one_number_counts_for_all_channels():
    config = config_for("npz:x")
    config.views.mean, config.views.std = (0.5,), (0.25,)
    resolved, _ = resolve(config)
    assert resolved.views.mean == (0.5,) * 5 and resolved.views.std == (0.25,) * 5
    assert from_record(resolved.to_dict()) == resolved


def test_a_range_is_kept_with_the_encoder():
    config = config_for("list:x.txt")
    config.views.mean, config.views.std, config.data.value_range = (0.5,), (0.25,), (0, 4095)
    resolved, _ = resolve(config)
    record = kinds.of(resolved).encoder_record(resolved) | {"training": {}}
    assert record["value_range"] == [0, 4095]
    assert kinds.of(resolved).config_of_record(record)["data"]["value_range"] == (0, 4095)


def test_an_export_keeps_the_range(run, tmp_path):
    _, _, model = run
    config = json.loads(json.dumps(model.config)) | {"value_range": [0, 4095]}
    encoder_lib.save(encoder_lib.Encoder(config, model.variables), tmp_path / "export")
    assert byol_jax.load(tmp_path / "export").config["value_range"] == [0, 4095]


def test_mistakes_are_one_line(folder, tmp_path):
    config = config_for(f"npz:{folder}")
    config.data.channels = 4
    with pytest.raises(DataError, match="images of channels=5, not 4"):
        loop.train(config, tmp_path / "run")
    config.views.mean = (0.1, 0.2)
    with pytest.raises(ConfigError, match=r"give 4 number.s. .* or those of the data by") as error:
        resolve(config)
    assert "\n" not in str(error.value)


def test_commands_take_a_list(tmp_path, capsys):
    """check-data of a list: one of its images is damaged."""
    for i in range(3):
        Image.fromarray(np.full((20, 20), 9000 * i, np.uint16)).save(tmp_path / f"{i}.tif")
    (tmp_path / "1.tif").write_bytes((tmp_path / "1.tif").read_bytes()[:-100])
    (tmp_path / "all.txt").write_text("".join(f"{i}.tif\n" for i in range(3)))
    from absl import flags

    with imported("check_data") as command:
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["check-data", f"--data=list:{tmp_path / 'all.txt'}", "--channels=1"])
        with pytest.raises(DataError, match=r"1 of 3 images of list:.* cannot be decoded"):
            command.main()
    lines = capsys.readouterr().out.splitlines()
    assert any("1.tif: it is damaged" in line for line in lines)
    assert sum("only the upper 8 of its 16 bits are used" in line for line in lines) == 2
    source = data.open_source(f"list:{tmp_path / 'all.txt'}", "train", value_range=(0, 9000))
    assert source.decode((2,))[0].numpy().max() == 255
