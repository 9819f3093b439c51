"""Features of a data set: NumPy and pyarrow read the embeddings that the encoder computes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from absl import flags
from commands import imported
from encoders import random_encoder, tiny_convnext, tiny_vit
from PIL import Image

import byol_jax
from byol_jax import data
from byol_jax.data import textures
from byol_jax.errors import DataError, UserError
from byol_jax.export import features
from byol_jax.runs import encoder as encoder_lib


@pytest.fixture(scope="module")
def encoder():
    return random_encoder("resnet8", image_size=32, stem="strided")


@pytest.fixture(scope="module")
def gray():
    return random_encoder("resnet8", image_size=32, stem="strided", channels=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of two classes, and its names and 32 x 32 images in the order of the source."""
    folder = tmp_path_factory.mktemp("images")
    arrays = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    names = ["cat/1.png", "cat/10.png", "cat/more/ä b.png", "dog/0.png", "dog/2.PNG"]
    for name, array in zip(names, arrays, strict=True):
        path = folder / "val" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path, format="PNG")
    return folder, names, arrays


def read(directory):
    arrays = np.load(directory / "features.npz", allow_pickle=False)
    return arrays, pyarrow.parquet.read_table(directory / "features.parquet")


def assert_close(got, want):
    assert got.dtype == np.float32 and got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def embeddings_in(table):
    return np.array(table["embedding"].to_pylist(), np.float32)


def test_a_folder_of_images(encoder, images, tmp_path, monkeypatch):
    folder, names, arrays = images
    source = data.open_source(f"folder:{folder}", "val")
    monkeypatch.setattr(features, "BATCH_SIZE", 2)  # the last batch is smaller
    features.save(encoder, tmp_path, source, crop_fraction=1.0)
    found, table = read(tmp_path)
    assert set(found) == {"embeddings", "labels", "names"}
    assert_close(found["embeddings"], encoder.embed(arrays))
    assert found["names"].tolist() == names
    assert found["labels"].dtype == np.int32 and found["labels"].tolist() == [0, 0, 0, 1, 1]
    assert table.column_names == ["name", "label", "embedding"]
    size = found["embeddings"].shape[1]
    assert table.schema.field("embedding").type == pyarrow.list_(pyarrow.float32(), size)
    assert table.schema.field("label").type == pyarrow.int32()
    np.testing.assert_array_equal(embeddings_in(table), found["embeddings"])
    assert table["name"].to_pylist() == names and table["label"].to_pylist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("make", [tiny_vit, tiny_convnext])
def test_other_encoders(make, images, tmp_path):
    folder, _, arrays = images
    encoder = make(image_size=32)
    source = data.open_source(f"folder:{folder}", "val")
    features.save(encoder, tmp_path, source, crop_fraction=1.0)
    found, table = read(tmp_path)
    assert_close(found["embeddings"], encoder.embed(arrays))
    np.testing.assert_array_equal(embeddings_in(table), found["embeddings"])


def test_images_without_labels(encoder, images, tmp_path):
    folder, _, arrays = images
    source = data.open_source(f"folder:{folder / 'val' / 'cat'}", "train")
    features.save(encoder, tmp_path, source, crop_fraction=1.0)
    found, table = read(tmp_path)
    assert set(found) == {"embeddings", "names"}
    assert table.column_names == ["name", "embedding"]
    # Those at the top come before those below.
    assert found["names"].tolist() == ["1.png", "10.png", "more/ä b.png"]
    assert_close(found["embeddings"], encoder.embed(arrays[:3]))


def test_the_lines_of_config_load_both_files(encoder, images, tmp_path, monkeypatch):
    source = data.open_source(f"folder:{images[0]}", "val")
    features.save(encoder, tmp_path, source, crop_fraction=1.0)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["format"] == "byol_jax.features.1" and record["data"] == source.name
    assert record["class_names"] == ["cat", "dog"] and record["num_examples"] == 5
    assert "\n".join(record["load"]) + "\n" == features.LOAD
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(features.LOAD, names)
    np.testing.assert_array_equal(names["arrays"]["embeddings"], embeddings_in(names["table"]))


def test_images_are_cropped_as_in_evaluation(gray, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (3, 64, 48, 1), np.uint8)
    source = data.from_arrays(pixels)
    features.save(gray, tmp_path, source, crop_fraction=0.875)
    ((views, _),) = data.eval_batches(source, batch_size=3, image_size=32, crop_fraction=0.875)
    found, _ = read(tmp_path)
    assert_close(found["embeddings"], gray.embed(views))
    assert found["names"].tolist() == ["0", "1", "2"]


DAMAGED = [1, 2, 4]


@pytest.fixture
def damaged(images, tmp_path):
    """A copy of the folder of images with three damaged files."""
    folder, names, _ = images
    folder = Path(shutil.copytree(folder, tmp_path / "images"))
    for index in DAMAGED:
        (folder / "val" / names[index]).write_bytes(b"no image")
    return folder


def test_a_damaged_image_is_refused(encoder, damaged, tmp_path):
    source = data.open_source(f"folder:{damaged}", "val")
    with pytest.raises(
        DataError, match=r"cat/10\.png cannot be decoded.*\(of evaluate and export\)"
    ):
        features.save(encoder, tmp_path / "out", source, crop_fraction=1.0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("batch_size", [2, 256])
def test_damaged_images_can_be_left_out(
    encoder, images, damaged, tmp_path, monkeypatch, batch_size
):
    _, names, arrays = images
    source = data.open_source(f"folder:{damaged}", "val")
    monkeypatch.setattr(features, "BATCH_SIZE", batch_size)
    messages = []
    features.save(
        encoder, tmp_path / "out", source, crop_fraction=1.0, on_decode_error=messages.append
    )
    kept = [i for i in range(len(names)) if i not in DAMAGED]
    found, table = read(tmp_path / "out")
    assert found["names"].tolist() == table["name"].to_pylist() == [names[i] for i in kept]
    assert found["labels"].tolist() == table["label"].to_pylist() == [0, 1]
    assert_close(found["embeddings"], encoder.embed(arrays[kept]))
    np.testing.assert_array_equal(embeddings_in(table), found["embeddings"])
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert record["num_examples"] == 2 and record["left_out"] == messages
    assert len(messages) == len(DAMAGED)
    for index, message in zip(DAMAGED, messages, strict=True):
        assert f"{names[index]}: it is not a JPEG" in message


def test_a_folder_of_damaged_images_is_refused(encoder, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(b"no image")
    source = data.open_source(f"folder:{tmp_path / 'images'}", "train")
    with pytest.raises(DataError, match="holds no image that can be decoded"):
        features.save(
            encoder, tmp_path / "out", source, crop_fraction=1.0, on_decode_error=lambda _: None
        )
    assert not (tmp_path / "out").exists()


def test_an_encoder_is_not_overwritten(encoder, images, tmp_path):
    encoder_lib.save(encoder, tmp_path)
    source = data.open_source(f"folder:{images[0]}", "val")
    with pytest.raises(UserError, match="holds something else"):
        features.save(encoder, tmp_path, source, crop_fraction=1.0)
    assert not (tmp_path / "features.npz").exists()


def call(*given):
    """Runs the command in this process."""
    with imported("export") as command:
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["export", "--what=features", *map(str, given)])
        command.main()


def export_trained_on(encoder, tmp_path, data, test_fraction):
    config = {"data": data, "crop": {"test_fraction": test_fraction}}
    training = encoder.config["training"] | {"config": config}
    encoder_lib.save(
        encoder_lib.Encoder(encoder.config | {"training": training}, encoder.variables), tmp_path
    )
    return tmp_path


def test_the_training_data_are_the_default(gray, tmp_path, capsys):
    data = {"source": "embedded", "dir": "", "train_split": "test"}
    export = export_trained_on(gray, tmp_path / "encoder", data, test_fraction=1.0)
    out = tmp_path / "out"
    call(f"--checkpoint={export}", f"--output={out}")
    files = "config.json, features.npz, features.parquet"
    assert capsys.readouterr().out == f"{out}: {files}: features of resnet8, step 0\n"
    pixels, labels = textures.load("test")
    found, table = read(out)
    assert_close(found["embeddings"], byol_jax.load(export).embed(pixels))
    np.testing.assert_array_equal(found["labels"], labels)
    assert found["names"][-1] == "1999" and table.num_rows == 2000


def test_other_data_by_flags(encoder, images, tmp_path):
    folder, names, arrays = images
    data = {"source": "embedded", "dir": "", "train_split": "test"}
    export = export_trained_on(encoder, tmp_path / "encoder", data, test_fraction=1.0)
    out = tmp_path / "out"
    call(f"--checkpoint={export}", f"--output={out}", f"--data=folder:{folder}", "--split=val")
    found, _ = read(out)
    assert_close(found["embeddings"], encoder.embed(arrays))
    assert found["names"].tolist() == names


def test_damaged_images_are_left_out_from_the_command_line(encoder, damaged, tmp_path, capsys):
    encoder_lib.save(encoder, tmp_path / "encoder")
    command = (
        *(f"--checkpoint={tmp_path / 'encoder'}", f"--output={tmp_path / 'out'}"),
        *(f"--data=folder:{damaged}", "--split=val"),
    )
    with pytest.raises(DataError, match=r"--on_decode_error=skip \(of evaluate and export\)"):
        call(*command)
    call(*command, "--on_decode_error=skip")
    assert capsys.readouterr().out.count("left out: ") == len(DAMAGED)
    assert read(tmp_path / "out")[0]["names"].tolist() == ["cat/1.png", "dog/0.png"]


def test_an_encoder_without_named_training_data(encoder, tmp_path):
    encoder_lib.save(encoder, tmp_path / "encoder")
    with pytest.raises(UserError, match=r"name images with --data\."):
        call(f"--checkpoint={tmp_path / 'encoder'}", f"--output={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()
