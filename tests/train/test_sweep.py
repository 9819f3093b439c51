"""A sweep of tiny classifiers: its choice, its files, its resume, and its mistakes."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from commands import Stopping
from encoders import random_encoder, tiny_vit

import byol_jax
from byol_jax import data
from byol_jax.errors import CheckpointError, ConfigError, DataError, UserError
from byol_jax.runs import encoder as encoder_lib
from byol_jax.train.finetune import sweep as sweep_lib
from byol_jax.train.finetune.choices import SEMI_SUPERVISED, TRANSFER, Choice
from byol_jax.train.signals import StopRequest

CLASSES = ("dark", "bright")
GOOD = Choice(0.5, 6)
USELESS = Choice(1e-6, 1)


def images(count, seed):
    """Gray images whose brightness says the class."""
    labels = np.arange(count) % 2
    noise = np.random.default_rng(seed).integers(0, 100, (count, 16, 16, 1))
    pixels = (noise + 100 * labels[:, None, None, None]).astype(np.uint8)
    return data.from_arrays(pixels, labels, f"images {seed}", CLASSES)


@pytest.fixture(scope="module")
def sweep():
    encoder = random_encoder("convnet", image_size=16, channels=1, features=16)
    return sweep_lib.Sweep(
        encoder, images(48, 1), images(20, 2), images(30, 3), data.Crop(), (USELESS, GOOD), 16
    )


def run(sweep, workdir, stop=None):
    lines = []
    report = sweep_lib.run(sweep, workdir, stop or StopRequest(), lines.append)
    return report, lines


@pytest.fixture(scope="module")
def finished(sweep, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, *run(sweep, workdir)


def test_the_best_on_held_out_images_is_tested(finished, sweep):
    workdir, report, lines = finished
    results = json.loads((workdir / "results.json").read_text())
    assert results["left_out"] == []
    choices = {name: result["top1"] for name, result in results["choices"].items()}
    assert list(choices) == [str(USELESS), str(GOOD)] and report["validation_top1"] == choices
    assert choices[str(GOOD)] > 0.9 > choices[str(USELESS)]
    assert report["choice"] == GOOD._asdict() and report["top1"] > 0.9
    assert (report["train_examples"], report["test_examples"]) == (48, 30)
    written = json.loads((workdir / "finetune.json").read_text())
    assert written | {"interval": tuple(written["interval"])} == report
    assert any(line.startswith(f"{GOOD}: step 18/18  loss") for line in lines)


def test_only_the_best_keeps_its_checkpoint(finished):
    folders = {path.name for path in finished[0].iterdir() if path.is_dir()}
    assert folders == {str(GOOD), "classifier"}


def test_the_classifier_predicts_names(finished, sweep):
    classifier = byol_jax.load(finished[0] / "classifier")
    assert isinstance(classifier, encoder_lib.Classifier)
    source = sweep.test
    (found, labels), *_ = data.eval_batches(
        source, batch_size=30, image_size=16, crop_fraction=classifier.crop_fraction
    )
    names = classifier.predict(found)
    right = [name == CLASSES[label] for name, label in zip(names, labels, strict=True)]
    assert np.mean(right) == finished[1]["top1"]
    probabilities = classifier.probabilities(found)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    # Its encoder is an encoder like others, and no longer the one it started from.
    assert classifier.embed(found).shape == (30, 16)
    assert np.any(classifier.embed(found) != sweep.encoder.embed(found))
    assert classifier.embed_dense(found).ndim == 4
    assert classifier.config["training"]["finetune"]["examples"] == 48


def test_a_second_start_trains_no_further(finished, sweep, monkeypatch):
    workdir, report, _ = finished
    monkeypatch.setattr(sweep_lib.tuner_lib, "update", None)
    assert run(sweep, workdir)[0] == report


def test_a_stopped_sweep_ends_as_one_that_was_not(finished, sweep, tmp_path, monkeypatch):
    report, lines = run(sweep, tmp_path, Stopping(12))
    assert report is None and lines[-1].startswith("Stopped and saved at step ")
    report, lines = run(sweep, tmp_path)
    assert any("resumed at step" in line for line in lines)
    assert report == finished[1]
    files = [folder / "classifier" / "model.safetensors" for folder in (finished[0], tmp_path)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_choices_can_be_added_later(finished, sweep, tmp_path):
    """And one alone: the best is that of all which were ever tried in the folder."""
    shutil.copytree(finished[0], tmp_path / "more")
    other = Choice(1e-5, 1)
    report, _ = run(dataclasses.replace(sweep, choices=(other,)), tmp_path / "more")
    assert list(report["validation_top1"]) == [str(USELESS), str(GOOD), str(other)]
    assert report["choice"] == GOOD._asdict() and report["top1"] == finished[1]["top1"]


def test_all_choices_share_one_compiled_update(sweep, tmp_path, monkeypatch):
    traced, update = [], sweep_lib.tuner_lib.update
    counted = lambda *args: traced.append(1) or update(*args)  # noqa: E731
    monkeypatch.setattr(sweep_lib.tuner_lib, "update", counted)
    choices = (USELESS, Choice(1e-6, 0, steps=2, weight_decay=0.1))
    assert run(dataclasses.replace(sweep, choices=choices), tmp_path)[0]
    assert len(traced) == 1


def test_other_settings_are_refused_by_name(finished, sweep):
    with pytest.raises(ConfigError, match=r"with other settings \(batch_size, seed\)"):
        run(dataclasses.replace(sweep, batch_size=8, seed=1), finished[0])


def test_training_from_scratch_starts_elsewhere(sweep, tmp_path):
    scratch = dataclasses.replace(sweep, from_scratch=True, choices=(USELESS,))
    report, _ = run(scratch, tmp_path)
    assert report["from_scratch"]
    found = byol_jax.load(tmp_path / "classifier").variables["params"]["encoder"]
    given = sweep.encoder.variables["params"]
    same = jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-2), found, given)
    assert not all(jax.tree.leaves(same))


def test_choices_that_diverge_are_left_out(sweep, tmp_path):
    too_fast = Choice(9e5, 2, weight_decay=9e5)
    with pytest.raises(UserError, match="name smaller learning rates"):
        run(dataclasses.replace(sweep, choices=(too_fast,)), tmp_path)
    report, _ = run(dataclasses.replace(sweep, choices=(too_fast, USELESS)), tmp_path)
    assert report["validation_top1"][str(too_fast)] is None
    assert report["choice"] == USELESS._asdict() and report["top1"] >= 0


def test_a_run_on_the_device_is_not_donated(sweep, tmp_path):
    """Defect: the second choice found the encoder's arrays deleted."""
    variables = jax.device_put(sweep.encoder.variables)
    encoder = encoder_lib.Encoder(sweep.encoder.config, variables)
    choices = (USELESS, Choice(1e-6, 1, weight_decay=0.1))
    run(dataclasses.replace(sweep, encoder=encoder, choices=choices), tmp_path)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(variables))


def test_an_encoder_without_batch_norm(sweep, tmp_path):
    vit = tiny_vit(channels=1, image_size=16, patch_size=4)
    encoder = encoder_lib.Encoder(vit.config, {"params": vit.variables["params"]})
    report, _ = run(dataclasses.replace(sweep, encoder=encoder, choices=(USELESS,)), tmp_path)
    classifier = byol_jax.load(tmp_path / "classifier")
    assert report["top1"] >= 0 and classifier.predict(np.zeros((1, 16, 16, 1), np.uint8))
    with pytest.raises(DataError, match="patch_size"):
        classifier.predict(np.zeros((1, 7, 7, 1), np.uint8))


def test_a_folder_of_something_else_is_refused(finished, sweep, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a pre-training run or an export"):
        run(sweep, tmp_path)
    damaged = {"settings.json": ["not JSON", "[]"]}
    damaged["results.json"] = [*damaged["settings.json"], '{"choices": {"x": {}}}']
    for name, texts in damaged.items():
        for text in texts:
            shutil.copytree(finished[0], tmp_path / "copy")
            (tmp_path / "copy" / name).write_text(text)
            with pytest.raises(CheckpointError, match=f"{name}.*move it away"):
                run(sweep, tmp_path / "copy")
            shutil.rmtree(tmp_path / "copy")


def test_other_weights_of_the_same_architecture_are_refused(finished, sweep):
    other = jax.tree.map(lambda x: x + 1, sweep.encoder.variables)
    encoder = encoder_lib.Encoder(sweep.encoder.config, other)
    with pytest.raises(ConfigError, match=r"with other settings \(weights\)"):
        run(dataclasses.replace(sweep, encoder=encoder), finished[0])


def test_another_number_of_devices_is_reported(finished, sweep, tmp_path):
    shutil.copytree(finished[0], tmp_path / "copy")
    settings = json.loads((tmp_path / "copy" / "settings.json").read_text())
    settings["computed_by"]["devices"] = 1
    (tmp_path / "copy" / "settings.json").write_text(json.dumps(settings))
    _, lines = run(sweep, tmp_path / "copy")
    assert any("will not be the same to the bit" in line for line in lines)


def test_choices_are_all_combinations():
    recipe = SEMI_SUPERVISED._replace(
        learning_rates=(0.1, 0.2), epochs=(3,), weight_decays=(0.0, 1e-4)
    )
    assert [str(choice) for choice in recipe.choices()] == [
        "rate0.1_epochs3_decay0",
        "rate0.1_epochs3_decay0.0001",
        "rate0.2_epochs3_decay0",
        "rate0.2_epochs3_decay0.0001",
    ]


def test_the_papers_choices():
    found = SEMI_SUPERVISED.choices()
    assert [(choice.learning_rate, choice.epochs) for choice in found] == [
        (rate, epochs) for rate in (0.005, 0.01, 0.02, 0.05, 0.1) for epochs in (30, 50)
    ]
    found = TRANSFER.choices()
    assert len(found) == 56 and {(choice.epochs, choice.steps) for choice in found} == {(0, 20_000)}
    rates = sorted({choice.learning_rate for choice in found})
    np.testing.assert_allclose(np.diff(np.log10(rates)), 0.5)
    np.testing.assert_allclose([rates[0], rates[-1]], [1e-4, 0.1])
    # A rate times its decay is one of the paper's values.
    products = {float(f"{choice.learning_rate * choice.weight_decay:.6g}") for choice in found}
    want = {0.0, *(float(f"{10 ** (-6 + i / 2):.6g}") for i in range(7))}
    assert products == want
    decays = [TRANSFER.batch_norm_decay(steps) for steps in (10, 100, 1000)]
    np.testing.assert_allclose(decays, [0.9, 0.9, 0.99])
    assert SEMI_SUPERVISED.batch_norm_decay(1000) == 0.9


def test_the_best_is_trained_again_on_all_images(finished, sweep, tmp_path):
    """And equals what those images alone would have given."""
    everything = images(68, 4)
    again = dataclasses.replace(sweep, all_train=everything)
    report, lines = run(again, tmp_path)
    assert report["validation_top1"] == finished[1]["validation_top1"]
    assert (report["train_data"], report["train_examples"]) == ("images 4", 68)
    assert any(line.startswith(f"{GOOD}: step 24/24  loss") for line in lines)
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert folders == {f"{GOOD}_all", "classifier"}
    alone = dataclasses.replace(sweep, train=everything, choices=(GOOD,))
    run(alone, tmp_path / "alone")
    files = [
        folder / "classifier" / "model.safetensors" for folder in (tmp_path, tmp_path / "alone")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert run(again, tmp_path)[0] == report


@pytest.mark.parametrize(
    "changed",
    [
        {"learning_rates": ()},
        {"learning_rates": (0.0,)},
        {"epochs": (0,)},
        {"weight_decays": (-1.0,)},
    ],
)
def test_impossible_choices_are_one_line(changed):
    with pytest.raises(ConfigError):
        SEMI_SUPERVISED._replace(**changed).choices()


def test_the_batch_divides_among_the_devices():
    assert sweep_lib.largest_batch(images(50, 0), 1024) == 48
    assert sweep_lib.largest_batch(images(50, 0), 30) == 28
    with pytest.raises(DataError, match="has 2 images for 4 devices"):
        sweep_lib.largest_batch(images(2, 0), 1024)
