"""`byol-jax finetune`: its flags, what it trains on, and its files."""

import json

import numpy as np
import pytest
from absl import flags
from commands import imported
from encoders import random_encoder
from PIL import Image

import byol_jax
from byol_jax.errors import ConfigError, DataError
from byol_jax.runs import encoder as encoder_lib


@pytest.fixture(scope="module")
def command():
    with imported("finetune") as module:
        yield module


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    tiny = random_encoder("convnet", image_size=16, channels=1, features=16)
    encoder_lib.save(tiny, folder / "export")
    return folder / "export"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """PNG files of two classes in two splits, 40 and 20 of each."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in {"train": 40, "test": 20}.items():
        for label, name in enumerate(("dark", "bright")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (16, 16), np.uint8) + np.uint8(100 * label)
                Image.fromarray(pixels).save(root / split / name / f"{name} {i:02}.png")
    return root


@pytest.fixture
def finetune(command, encoder, images, tmp_path):
    """Runs the command for an epoch; returns what it wrote."""

    def finetune(*arguments, data=images, epochs="1"):
        flags.FLAGS.unparse_flags()
        given = [
            f"--checkpoint={encoder}",
            f"--workdir={tmp_path / 'out'}",
            f"--data=folder:{data}",
        ]
        given += [f"--epochs={epochs}", "--learning_rates=0.1"]
        flags.FLAGS(["finetune", *given, *arguments])
        assert command.main() == 0
        return json.loads((tmp_path / "out" / "finetune.json").read_text())

    return finetune


def test_it_trains_and_exports_a_classifier(finetune, tmp_path, capsys):
    report = finetune("--labels=0.5", "--batch_size=16", "--weight_decays=0,1e-4")
    # 72 images are left to fit, of which half of each class.
    assert 34 <= report["train_examples"] <= 38 and report["test_examples"] == 40
    assert len(report["validation_top1"]) == 2
    out = capsys.readouterr().out
    assert "2 choices, " in out and f"top-1 {100 * report['top1']:.1f}%" in out
    classifier = byol_jax.load(tmp_path / "out" / "classifier")
    assert set(classifier.predict(np.zeros((2, 16, 16, 1), np.uint8))) <= {"dark", "bright"}


def test_a_list_names_the_images_to_train_on(finetune, tmp_path, capsys):
    names = [f"dark {i:02}.png" for i in range(8)] + [f"bright/bright {i:02}.png" for i in range(8)]
    (tmp_path / "list").write_text("\n".join([*names, "unknown.png"]) + "\n\n")
    report = finetune(f"--label_list={tmp_path / 'list'}", "--batch_size=8")
    assert report["train_examples"] == 16
    assert "16 images of 17 names" in capsys.readouterr().out


def test_images_that_cannot_be_decoded_are_left_out(finetune, images, tmp_path, capsys):
    copy = tmp_path / "copy"
    for path in images.rglob("*.png"):
        target = copy / path.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    for broken in ("train/dark/dark 03.png", "test/dark/dark 04.png"):
        (copy / broken).write_bytes(b"broken")
    with pytest.raises(DataError, match="dark 0"):
        finetune("--batch_size=16", data=copy)
    report = finetune("--batch_size=16", "--on_decode_error=skip", data=copy)
    assert report["test_examples"] == 39
    out = capsys.readouterr().out
    assert out.count("dark 03.png") == 1 and out.count("dark 04.png") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rates=fast"], "is not a list of numbers such as 0.01,0.1"),
        (["--epochs=0"], "epochs must be at least 1"),
        (["--labels=0"], "a share of the labels"),
        (["--label_list=nowhere"], "--label_list=nowhere cannot be read"),
        (["--test_split=nowhere"], "has no split 'nowhere'"),
    ],
)
def test_a_mistake_is_one_line(finetune, arguments, message):
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        finetune(*arguments, epochs="1")
    assert "\n" not in str(caught.value)


def test_data_without_labels_or_with_one_class_is_one_line(finetune, tmp_path):
    np.savez(tmp_path / "train.npz", images=np.zeros((8, 16, 16, 1), np.uint8))
    with pytest.raises(DataError, match="has no labels"):
        finetune(f"--data=npz:{tmp_path}")
    labels = np.zeros(8, np.int32)
    for split in ("train", "test"):
        images = np.zeros((8, 16, 16, 1), np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=labels)
    with pytest.raises(DataError, match="has one class"):
        finetune(f"--data=npz:{tmp_path}")
