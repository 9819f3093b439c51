"""`byol-jax transfer`: what it evaluates, what it names as missing, and its report."""

import json
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import flags
from commands import imported
from encoders import random_trained

from byol_jax import data, evaluate, parallel
from byol_jax.errors import ConfigError, DataError
from byol_jax.evaluate import benchmarks
from byol_jax.runs import run as run_lib


@pytest.fixture(scope="module")
def command():
    with imported("transfer") as module:
        yield module


@pytest.fixture(scope="module")
def trained():
    return random_trained(step=5)


@pytest.fixture
def transfer(command, trained, tmp_path, monkeypatch):
    """Runs the command on such a run; returns its report."""
    monkeypatch.setattr(run_lib, "restore", lambda workdir, step: trained)

    def transfer(*arguments):
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["transfer", f"--checkpoint={tmp_path}", *arguments])
        command.main()
        name = f"transfer{'-finetune' * (command.PROTOCOL.value == 'finetune')}.json"
        return json.loads((tmp_path / "eval" / name).read_text())

    return transfer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in {"train": 60, "test": 30}.items():
        labels = np.arange(count) % 3
        noise = rng.integers(0, 100, (count, 24, 24, 1))
        images = (noise + 50 * labels[:, None, None, None]).astype(np.uint8)
        np.savez(folder / f"{split}.npz", images=images, labels=labels)
    return folder


def test_what_is_there_is_evaluated_and_the_rest_is_named(transfer, folder, tmp_path, capsys):
    source = f"npz:{folder}"
    report = transfer(f"--datasets=dtd,{source},aircraft", f"--data_dir={tmp_path}")
    assert list(report["data_sets"]) == [source] and report["step"] == 5
    found = report["data_sets"][source]
    assert (found["train_examples"], found["test_examples"]) == (60, 30)
    assert list(found["details"]) == ["byol", "random"] and found["published"] is None
    out = capsys.readouterr().out
    top1 = found["details"]["byol"]["top1"]
    assert f"{100 * top1:.1f}%" in out
    assert "dtd: the dataset tfds:dtd is not prepared" in out
    assert "aircraft: TFDS does not have it" in out


def test_it_is_logistic_regression_of_central_squares(transfer, folder, trained):
    """Of the complete shorter side, unlike `evaluate`, whose crop is that of the run."""
    source = f"npz:{folder}"
    found = transfer(f"--datasets={source}", "--baselines=none")["data_sets"][source]["details"]
    arrays = []
    for split in ("train", "test"):
        opened = data.open_source(source, split, channels=1)
        batches = data.eval_batches(opened, batch_size=60, image_size=16, crop_fraction=1.0)
        ((images, labels),) = batches
        arrays += [embed(trained, images), labels]
    want = evaluate.logistic(*arrays, num_classes=3)
    assert found["byol"]["top1"] == want["top1"] and found["byol"]["l2"] == want["l2"]


def embed(trained, images):
    return parallel.embedder(trained.learner)(trained.state)(images, 16)


def test_results_of_an_earlier_call_are_kept(transfer, folder, tmp_path):
    source, other = f"npz:{folder}", f"npz:{folder}/"
    first = transfer(f"--datasets={source}", "--baselines=none")
    both = transfer(f"--datasets={other}", "--baselines=none")
    assert list(both["data_sets"]) == [source, other]
    assert both["data_sets"][source] == first["data_sets"][source]
    path = tmp_path / "eval" / "transfer.json"
    path.write_text(json.dumps(both | {"step": 4}))  # of another checkpoint
    again = transfer(f"--datasets={other}", "--baselines=none")
    assert list(again["data_sets"]) == [other] and again["step"] == 5


def test_fine_tuning_has_the_papers_recipe_and_figures(
    transfer, folder, tmp_path, capsys, monkeypatch
):
    source = f"npz:{folder}"
    benchmark = benchmarks.Benchmark("own", source, "train", "test", "top1", 12.3, 45.6)
    monkeypatch.setitem(benchmarks.BENCHMARKS, "own", benchmark)
    flags = ["--protocol=finetune", "--baselines=none", "--finetune_batch_size=16"]
    flags += ["--finetune_learning_rates=0.1", "--finetune_epochs=1"]
    flags += ["--finetune_weight_decays=0.001"]
    report = transfer("--datasets=own,dtd", f"--data_dir={tmp_path}", *flags)
    found = report["data_sets"]["own"]["details"]["byol"]
    # The decay is divided by the rate, and the best is trained on the held-out images too.
    assert list(found["validation_top1"]) == ["rate0.1_epochs1_decay0.01"]
    assert (found["train_examples"], found["test_examples"]) == (60, 30)
    row = rf"own +top-1 +{100 * found['top1']:.1f}% +45.6%"
    assert re.search(row, capsys.readouterr().out)
    with pytest.raises(ConfigError, match="--finetune_epochs is for --protocol=finetune"):
        transfer("--datasets=dtd", "--finetune_epochs=3")


class Several(tfds.core.GeneratorBasedBuilder):
    """Gray images, brighter where they have the class "bright"."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        names = ["bright", "any", "seldom"]
        labels = tfds.features.Sequence(tfds.features.ClassLabel(names=names))
        image = tfds.features.Image(shape=(None, None, 1))
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"image": image, "labels": labels})
        )

    def _split_generators(self, manager):
        return {"train": self._generate_examples(60), "test": self._generate_examples(30)}

    def _generate_examples(self, count):
        rng = np.random.default_rng(count)
        for i in range(count):
            bright = i % 2
            image = rng.integers(0, 100, (20, 20, 1)) + 100 * bright
            classes = [0] * bright + [1] * rng.integers(2) + [2] * (i % 7 == 0)
            yield i, {"image": image.astype(np.uint8), "labels": classes}


def test_images_with_several_labels_have_a_mean_average_precision(
    transfer, tmp_path, monkeypatch, capsys
):
    Several(data_dir=tmp_path).download_and_prepare()
    benchmark = benchmarks.Benchmark("voc2007", "tfds:several", "train", "test", "map", 82.5, 85.4)
    monkeypatch.setitem(benchmarks.BENCHMARKS, "voc2007", benchmark)
    given = ["--datasets=voc2007", f"--data_dir={tmp_path}", "--baselines=none"]
    found = transfer(*given)["data_sets"]["voc2007"]
    assert (found["train_examples"], found["test_examples"]) == (60, 30)
    bright, anything, seldom = found["details"]["byol"]["per_class"]
    assert bright > 0.99 > anything and found["published"] == 82.5
    mean = 100 * found["details"]["byol"]["map"]
    assert re.search(rf"voc2007 +mAP +{mean:.1f}% +82.5%", capsys.readouterr().out)
    assert mean == pytest.approx(100 * np.mean([bright, anything, seldom]))
    with pytest.raises(DataError, match="none of the data sets"):
        transfer(*given, "--protocol=finetune")
    assert "voc2007: its images have several labels each" in capsys.readouterr().out


def test_nothing_to_evaluate_is_one_line(transfer, tmp_path):
    with pytest.raises(DataError, match="none of the data sets"):
        transfer("--datasets=dtd,birdsnap", f"--data_dir={tmp_path}")
    with pytest.raises(ConfigError, match="--datasets=cifar11 is neither one of food101, cifar10"):
        transfer("--datasets=cifar11")


def test_the_benchmarks_are_the_papers_twelve():
    assert len(benchmarks.BENCHMARKS) == 12
    for found in benchmarks.BENCHMARKS.values():
        assert bool(found.source) != bool(found.why_not)
        assert 57 <= found.linear <= found.finetuned + 1 < 100
        if found.source:
            assert found.metric in ("top1", "mean_per_class", "map")
