"""`byol-jax evaluate`: what it computes once, its baselines, its report and its errors."""

import functools
import importlib
import json
import sys

import jax
import numpy as np
import pytest
from absl import flags
from tiny import tiny_config

from byol_jax import data, parallel
from byol_jax.errors import ConfigError
from byol_jax.runs import inputs
from byol_jax.runs import run as run_lib
from byol_jax.runs.resolve import resolve

CLASSES = 3
EXAMPLES = {"train": 90, "test": 40}  # several batches, the last one partial
ALL = ["byol", "random_init", "pixels"]


@pytest.fixture(scope="module")
def command():
    """The command's module; its flags, which other commands share, are removed afterwards."""
    before = set(flags.FLAGS)
    module = importlib.import_module("byol_jax.cli.evaluate")
    yield module
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
    del sys.modules[module.__name__]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of 40 pixels in two npz files; the brightness of a class differs."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in EXAMPLES.items():
        labels = np.arange(count) % CLASSES
        noise = rng.integers(0, 100, (count, 40, 40, 1))
        images = (noise + 50 * labels[:, None, None, None]).astype(np.uint8)
        np.savez(folder / f"{split}.npz", images=images, labels=labels)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """Runs that were never trained, by image size; weights are not those of random_init."""

    @functools.cache
    def trained(image_size):
        config = tiny_config()
        config.data.source, config.data.image_size = f"npz:{folder}", image_size
        config, _ = resolve(config)
        run = run_lib.make_run(config, inputs.open_split(config, "train"))
        learner = run.learner()
        state = run_lib.initial_state(learner, config)
        params = jax.tree.map(lambda x: x + 0.1, state.online_params)
        return run_lib.Trained(run, learner, state._replace(online_params=params))

    jax.config.update("jax_disable_most_optimizations", True)  # compiles in half the time
    yield trained
    jax.config.update("jax_disable_most_optimizations", False)


def written(folder):
    """The files of a folder, each with the time at which it was written."""
    return {(path, path.stat().st_mtime_ns) for path in folder.glob("*")}


@pytest.fixture
def evaluate(command, trained, tmp_path, monkeypatch):
    """Runs the command on such a run; returns its report."""

    def evaluate(*arguments, image_size=16):
        monkeypatch.setattr(run_lib, "restore", lambda workdir, step: trained(image_size))
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["evaluate", f"--checkpoint={tmp_path}", *arguments])
        before = written(tmp_path / "eval")
        command.main()
        ((path, _),) = written(tmp_path / "eval") - before  # exactly one file
        return json.loads(path.read_text())

    return evaluate


@pytest.fixture
def passes(monkeypatch):
    """The image size of every pass over a split, in order."""
    sizes, original = [], data.eval_batches

    def counted(source, *, image_size, **options):
        sizes.append(image_size)
        return original(source, image_size=image_size, **options)

    monkeypatch.setattr(data, "eval_batches", counted, raising=False)
    return sizes


def test_the_state_is_copied_to_the_devices_once_per_encoder(evaluate, monkeypatch):
    """Defect: it was copied for every batch."""
    copies, replicate = [], parallel.replicate
    monkeypatch.setattr(parallel, "replicate", lambda tree: copies.append(1) or replicate(tree))
    evaluate("--protocol=knn")
    assert len(copies) == 2


@pytest.mark.parametrize(
    ("arguments", "image_size", "expected", "names"),
    [
        ([], 16, [16, 16], ALL),
        ([], 40, [40, 40], ALL),
        (["--baselines=random_init"], 40, [40, 40], ALL[:2]),
        (["--baselines=pixels"], 16, [16, 16], ["byol", "pixels"]),
        (["--baselines="], 16, [16, 16], ["byol"]),
    ],
)
def test_images_are_decoded_once_for_all_encoders(
    evaluate, passes, arguments, image_size, expected, names
):
    """Defect: they were decoded for each kind of features, and no flag left one out."""
    report = evaluate("--protocol=knn", *arguments, image_size=image_size)
    assert passes == expected
    assert list(report["top1"]) == list(report["details"]) == names


def test_features_of_a_common_pass_equal_those_of_separate_passes(evaluate):
    together = evaluate("--protocol=knn")
    assert together["details"]["byol"] != together["details"]["random_init"]
    for name in ("random_init", "pixels"):
        alone = evaluate("--protocol=knn", f"--baselines={name}")
        assert alone["details"] == {key: together["details"][key] for key in ("byol", name)}


def test_logistic_report_and_table(evaluate, capsys):
    report = evaluate("--protocol=logistic")
    assert report["protocol"] == "logistic" and report["left_out"] == []
    assert (report["train_examples"], report["test_examples"]) == tuple(EXAMPLES.values())
    out, err = capsys.readouterr()
    for name, top1 in report["top1"].items():
        assert f"  {name:12s}{100 * top1:8.1f}%" in out
    assert "/eval/logistic.json" in out
    # Without a terminal: a line for each part of the work, and no progress bar.
    lines = err.splitlines()
    assert len(lines) == 5 and lines[0].startswith("computed by 4 cpu devices (")
    assert "byol, random_init, pixels at 16 pixels" in lines[1]
    assert lines[2].startswith("logistic: 90 x ") and lines[2].endswith("features of byol")


def test_an_image_that_cannot_be_decoded_is_reported_once(evaluate, monkeypatch, capsys, tmp_path):
    callbacks, original = [], data.eval_batches

    def without_the_first(source, *, on_decode_error, **options):
        callbacks.append(on_decode_error)
        for number, (images, labels) in enumerate(original(source, **options)):
            if on_decode_error is not None and not number:
                on_decode_error(0, f"{source.name} 0: it is empty")
                images, labels = images[1:], labels[1:]
            yield images, labels

    monkeypatch.setattr(data, "eval_batches", without_the_first, raising=False)
    report = evaluate("--protocol=knn", "--on_decode_error=skip", image_size=40)
    assert len(callbacks) == len(report["left_out"]) == 2  # one of each split
    out, err = capsys.readouterr()
    assert out.count("left out: ") == 2 and "knn: 89 x " in err
    evaluate("--protocol=knn", "--baselines=")
    assert callbacks[2:] == [None, None]
    names = {path.name for path in (tmp_path / "eval").iterdir()}
    assert names == {"knn.json", "knn-skip.json"}  # the complete result is not overwritten
    assert (report["train_examples"], report["test_examples"]) == (89, 39)


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("linear", "--protocol=logistic, and the paper's linear protocol"),
        ("svm", "--protocol=svm is not one of knn, logistic"),
    ],
)
def test_unknown_protocols_raise_one_line(evaluate, protocol, message):
    with pytest.raises(ConfigError, match=message) as error:
        evaluate(f"--protocol={protocol}")
    assert "\n" not in str(error.value)


def test_unknown_baselines_are_a_wrong_flag(evaluate):
    with pytest.raises(flags.IllegalFlagValueError, match="name random_init, pixels, both or"):
        evaluate("--protocol=knn", "--baselines=pixel")
