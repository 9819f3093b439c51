"""Exports in our own format hold the trained encoder, and replace nothing but exports."""

import errno
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from encoders import random_trained

import byol_jax
from byol_jax import byol
from byol_jax.errors import UserError
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import run as run_lib


@pytest.fixture(scope="module")
def trained():
    return random_trained(3)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported") / "encoder"
    encoder_lib.save(encoder_lib.from_trained(trained), directory)
    return directory


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


IMAGES = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 1), np.uint8)


def test_an_export_embeds_like_the_trained_encoder(trained, exported):
    want = byol.embed(trained.learner, trained.state, IMAGES)
    got = byol_jax.load(exported).embed(IMAGES, batch_size=3)
    assert got.dtype == np.float32 and got.shape == (7, 16)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_the_weights_are_those_of_the_online_encoder(trained, exported):
    arrays = safetensors.numpy.load_file(exported / "model.safetensors")
    kernel = trained.state.online_params["encoder"]["layer2_0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(arrays["params/layer2_0/conv1/kernel"], kernel)
    mean = trained.state.online_stats["encoder"]["bn1"]["mean"]
    np.testing.assert_array_equal(arrays["batch_stats/bn1/mean"], mean)


def test_the_config_tells_how_the_encoder_was_trained(exported):
    record = json.loads((exported / "config.json").read_text())
    assert record["encoder"]["name"] == "resnet8" and record["mean"] == [0.5]
    assert record["training"]["step"] == 3
    assert record["training"]["data"]["name"] == "random"


def test_an_export_does_not_overwrite_a_run(trained, tmp_path):
    run_lib.prepare_workdir(tmp_path, trained.run)
    with pytest.raises(UserError, match="holds something else than an earlier export"):
        encoder_lib.save(encoder_lib.from_trained(trained), tmp_path)
    assert run_lib.read(tmp_path).config.batch_size == 16
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_an_export_does_not_join_other_files(trained, tmp_path):
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(UserError, match="holds something else than an earlier export"):
        encoder_lib.save(encoder_lib.from_trained(trained), tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "mine"


def test_an_earlier_export_is_replaced(trained, copy):
    model = encoder_lib.from_trained(trained)
    model.config["training"]["step"] = 4
    encoder_lib.save(model, copy)
    assert byol_jax.load(copy).config["training"]["step"] == 4
    assert sorted(path.name for path in copy.iterdir()) == ["config.json", "model.safetensors"]


def test_a_failure_leaves_the_earlier_export(trained, copy, monkeypatch):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    def fail(arrays, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(UserError, match=r"cannot be written \(No space left"):
        encoder_lib.save(encoder_lib.from_trained(trained), copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_named(trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder"):
        encoder_lib.save(encoder_lib.from_trained(trained), tmp_path / "file" / "below")


def test_an_export_without_weights_is_named(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"is not an exported encoder \(no model.safetensors\)"):
        byol_jax.load(copy)


def test_damaged_weights_are_refused(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        byol_jax.load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "has format 'other'"),
        (
            {"channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3},
            "does not fit its config.json: params/conv1/kernel is",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_refused(copy, change, message):
    record = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(record | change))
    with pytest.raises(UserError, match=message):
        byol_jax.load(copy)
