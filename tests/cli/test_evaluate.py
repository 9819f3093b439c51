"""`byol-jax evaluate`: what it computes once, its baselines, its report and its errors."""

import contextlib
import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pytest
from absl import flags
from commands import Stopping, imported
from encoders import random_encoder
from PIL import Image
from tiny import tiny_config

from byol_jax import byol, data, parallel
from byol_jax.augment import image as image_augment
from byol_jax.cli import encoders
from byol_jax.errors import ConfigError, DataError, UserError
from byol_jax.evaluate import knn, label_free
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import inputs
from byol_jax.runs import run as run_lib
from byol_jax.runs.resolve import resolve
from byol_jax.train import signals

CLASSES = 3
EXAMPLES = {"train": 90, "test": 40}  # several batches, the last one partial
ALL = ["byol", "random", "pixels"]


@pytest.fixture(scope="module")
def command():
    with imported("evaluate") as module:
        yield module


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
    """Runs that were never trained, by image size; weights are not those of random."""

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
    return {(path, path.stat().st_mtime_ns) for path in folder.glob("*") if path.is_file()}


@pytest.fixture
def evaluate(command, trained, tmp_path, monkeypatch):
    """Runs the command on such a run; returns its last report."""

    def evaluate(*arguments, image_size=16):
        monkeypatch.setattr(run_lib, "restore", lambda workdir, step: trained(image_size))
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["evaluate", f"--checkpoint={tmp_path}", *arguments])
        before = written(tmp_path / "eval")
        command.main()
        new = [path for path, _ in written(tmp_path / "eval") - before]
        if not new:  # a dry run, or one that was stopped
            return None
        assert len(new) == len(command.PROTOCOL.value)
        return json.loads(max(new, key=lambda path: path.stat().st_mtime_ns).read_text())

    return evaluate


@pytest.fixture
def passes(monkeypatch):
    """The image sizes of every pass over a split, in order."""
    sizes, original = [], data.eval_views

    def counted(source, views, **options):
        sizes.extend(view.image_size for view in views)
        return original(source, views, **options)

    monkeypatch.setattr(data, "eval_views", counted)
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
        (["--baselines=random"], 40, [40, 40], ALL[:2]),
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
    assert together["details"]["byol"] != together["details"]["random"]
    for name in ("random", "pixels"):
        alone = evaluate("--protocol=knn", f"--baselines={name}")
        assert alone["details"] == {key: together["details"][key] for key in ("byol", name)}


def test_linear_trains_heads_of_all_encoders_and_writes_its_report(evaluate, capsys):
    report = evaluate("--protocol=knn,linear", "--linear_epochs=3")
    assert report["protocol"] == "linear" and list(report["details"]) == ALL[:2]
    for name, found in report["details"].items():
        assert report["top1"][name] == found["top1"]
        assert found["steps"] == 3  # 81 images: a batch is an epoch
        assert set(found["validation_top1"]) == {"0.4", "0.3", "0.2", "0.1", "0.05"}
    out, _ = capsys.readouterr()
    assert out.index("knn on") < out.index("linear on")  # written before linear starts


@pytest.fixture
def stop_after(monkeypatch):
    """Makes the command stop, as on a signal, after so many steps of linear and finetune."""

    @contextlib.contextmanager
    def stop_after(steps):
        with monkeypatch.context() as patched:
            request = contextlib.nullcontext(Stopping(steps - 1))
            patched.setattr(signals, "stop_requests", lambda: request)
            yield

    return stop_after


def test_a_stopped_linear_resumes_and_ends_the_same(evaluate, stop_after, tmp_path, capsys):
    """With encoders of two sizes; another evaluation in between leaves its state alone."""
    other = random_encoder("convnet", image_size=24, channels=1, features=8)
    encoder_lib.save(other, tmp_path / "other")
    arguments = ["--protocol=linear", "--linear_epochs=4", f"--against={tmp_path / 'other'}"]
    whole = evaluate(*arguments)
    folder = tmp_path / "eval" / "linear"
    assert list(whole["details"]) == [*ALL[:2], str(tmp_path / "other")]
    assert not list(folder.iterdir())  # the checkpoints
    with stop_after(6):  # the second step of the second size
        assert evaluate(*arguments) is None
    assert "Stopped and saved at step 2; the same command resumes." in capsys.readouterr().err
    evaluate("--protocol=linear", "--linear_epochs=2", "--baselines=none")
    assert len(list(folder.iterdir())) == 2
    assert evaluate(*arguments) == whole
    err = capsys.readouterr().err
    assert "linear: resumed at step 4." in err and "linear: resumed at step 2." in err


def test_a_damaged_checkpoint_of_linear_starts_anew(evaluate, stop_after, tmp_path, capsys):
    arguments = ["--protocol=linear", "--linear_epochs=2", "--baselines=none"]
    whole = evaluate(*arguments)
    with stop_after(1):
        assert evaluate(*arguments) is None
    for path in (tmp_path / "eval" / "linear").glob("*/checkpoints/1/manifest/*"):
        path.write_bytes(b"")
    assert evaluate(*arguments) == whole
    assert "starts from the beginning, as its checkpoint cannot be" in capsys.readouterr().err


def test_linear_is_the_same_again_and_with_fewer_encoders(evaluate):
    first = evaluate("--protocol=linear", "--linear_epochs=2", "--baselines=random")
    alone = evaluate("--protocol=linear", "--linear_epochs=2", "--baselines=none")
    assert alone["details"] == {"byol": first["details"]["byol"]}


FINETUNE = ["--finetune_learning_rates=0.1", "--finetune_epochs=1", "--finetune_batch_size=40"]


def test_finetune_trains_each_encoder_and_resumes(evaluate, passes, stop_after, tmp_path, capsys):
    with stop_after(3):  # the first step of the second encoder
        assert evaluate("--protocol=finetune", *FINETUNE) is None
    assert "Stopped and saved at step 1 of rate0.1_epochs1" in capsys.readouterr().err
    report = evaluate("--protocol=finetune", *FINETUNE)
    assert "resumed at step 1 of 2" in capsys.readouterr().err
    assert report["protocol"] == "finetune" and list(report["details"]) == ALL[:2]
    name = "finetune-learning_rates0.1-epochs1-batch_size40.json"
    assert (tmp_path / "eval" / name).exists()
    assert passes == []  # no features
    for name, found in report["details"].items():
        assert found["choice"]["learning_rate"] == 0.1 and found["choice"]["epochs"] == 1
        assert (found["train_examples"], found["test_examples"]) == (81, EXAMPLES["test"])
        assert found["folder"].startswith(f"{tmp_path}/eval/finetune/{name}-")
        classifier = encoder_lib.load(f"{found['folder']}/classifier")
        assert isinstance(classifier, encoder_lib.Classifier)


def test_flags_of_finetune_are_read_before_anything_is_computed(evaluate, passes):
    with pytest.raises(ConfigError, match="epochs must be at least 1"):
        evaluate("--protocol=knn,finetune", "--finetune_epochs=0")
    with pytest.raises(ConfigError, match="--finetune_epochs is for --protocol=finetune"):
        evaluate("--protocol=knn", "--finetune_epochs=3")
    assert passes == []


def test_linear_and_probe_compute_no_features_of_training_images(evaluate, passes):
    evaluate("--protocol=linear,probe", "--linear_epochs=1", "--baselines=none")
    assert passes == [16, 16]  # of the test images, and of those that are held out


def test_the_probe_is_evaluated_on_the_test_split(evaluate, trained):
    report = evaluate("--protocol=probe")
    state = trained(16).state
    assert list(report["top1"]) == ["byol"]
    learner = trained(16).learner
    source = data.open_source(trained(16).run.config.data.source, "test", channels=1)
    (images, labels), *rest = data.eval_batches(source, batch_size=40, image_size=16)
    assert not rest
    logits = jax.jit(functools.partial(byol.infer, learner))(state, images).logits
    assert report["top1"]["byol"] == (np.asarray(logits).argmax(axis=1) == labels).mean()


def test_a_probe_of_other_classes_is_an_error(evaluate, tmp_path):
    labels = np.arange(30) % 2
    for split in ("train", "test"):
        images = np.zeros((30, 40, 40, 1), np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=labels)
    with pytest.raises(DataError, match="the probe knows the classes of npz"):
        evaluate("--protocol=probe", f"--data=npz:{tmp_path}", "--baselines=none")


def test_logistic_report_and_table(evaluate, capsys):
    report = evaluate("--protocol=logistic")
    assert report["protocol"] == "logistic" and report["left_out"] == []
    assert (report["train_examples"], report["test_examples"]) == tuple(EXAMPLES.values())
    out, err = capsys.readouterr()
    for name, top1 in report["top1"].items():
        assert re.search(f"  {name:12s} +{100 * top1:.1f}%", out)
        low, high = report["details"][name]["interval"]
        assert low <= top1 <= high and f"{100 * low:.1f} to {100 * high:.1f}" in out
    assert "/eval/logistic.json" in out
    # Without a terminal: a line for each part of the work, and no progress bar.
    lines = err.splitlines()
    assert len(lines) == 5 and lines[0].startswith("computed by 4 cpu devices (")
    assert "byol, random, pixels at 16 pixels" in lines[1]
    assert lines[2].startswith("logistic: 90 x ") and lines[2].endswith("features of byol")


def test_an_image_that_cannot_be_decoded_is_reported_once(evaluate, monkeypatch, capsys, tmp_path):
    callbacks, original = [], data.eval_views

    def without_the_first(source, views, *, on_decode_error, **options):
        callbacks.append(on_decode_error)
        for number, ((images,), labels) in enumerate(original(source, views, **options)):
            if on_decode_error is not None and not number:
                on_decode_error(0, f"{source.name} 0: it is empty")
                images, labels = images[1:], labels[1:]
            yield (images,), labels

    monkeypatch.setattr(data, "eval_views", without_the_first)
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
        ("svm", "--protocol=svm is not one of knn, logistic"),
        ("knn,,logistic", "--protocol= is not one of"),
        ("", "--protocol is empty: name one or several of knn, "),
    ],
)
def test_unknown_protocols_raise_one_line(evaluate, protocol, message):
    with pytest.raises(ConfigError, match=message) as error:
        evaluate(f"--protocol={protocol}")
    assert "\n" not in str(error.value)


def test_unknown_baselines_are_a_wrong_flag(evaluate):
    with pytest.raises(flags.IllegalFlagValueError, match=r"name random, pixels \(or raw"):
        evaluate("--protocol=knn", "--baselines=pixel")


def test_several_protocols_share_the_features(evaluate, passes, capsys, tmp_path):
    protocols = ["knn", "few_shot", "cluster", "retrieval", "label_free"]
    evaluate(f"--protocol={','.join(protocols)}", "--baselines=none")
    assert passes == [16, 16]
    out = capsys.readouterr().out
    for protocol in protocols:
        report = json.loads((tmp_path / "eval" / f"{protocol}.json").read_text())
        assert report["protocol"] == protocol and list(report["details"]) == ["byol"]
        assert f"{protocol} on {report.get('data', report['train_data'])}: " in out
    for title in (
        "k = 20",
        "1 per class",
        "NMI",
        "recall@10",
        "mAP",
        "RankMe",
        "LiDAR",
        "alignment",
    ):
        assert title in out
    measures = report["details"]["byol"]
    assert measures["images"] == EXAMPLES["train"]
    assert 1 < measures["lidar"] <= 16 and 0 < measures["alignment"] < 4


def test_views_of_images_are_those_of_the_run(trained):
    """Without augmentation, all views of an image are its central view."""
    run, learner, state = trained(16)
    config = run.config.copy_and_resolve_references()
    config.crop.area_min = config.crop.area_max = config.crop.ratio_min = config.crop.ratio_max = 1
    config.crop.flip_prob, config.crop.test_fraction = 0, 1
    nothing = image_augment.View(jitter_prob=0, gray_prob=0, blur_prob=0)
    policy = image_augment.Policy(nothing, nothing, mean=(0.5,), std=(0.25,))
    plain = run_lib.Trained(
        run._replace(config=config), dataclasses.replace(learner, augment=policy), state
    )
    rows = encoders.of_run(plain, ["random"])
    source = inputs.open_split(config, "train")
    found = encoders.views(rows, policy, config, source, {})
    central, _ = encoders.features(rows, config, source, {})
    for name in rows:
        assert found[name].shape == (50, label_free.VIEWS, 16)  # a batch of the 90 images
        np.testing.assert_array_equal(found[name], found[name][:, :1].repeat(label_free.VIEWS, 1))
        distances = np.abs(found[name][:, :1] - central[name]).max(axis=2)
        assert distances.min(axis=1).max() < 1e-4
        assert len(np.unique(distances.argmin(axis=1))) == 50


def test_the_flag_for_broken_images_counts_for_views_too(evaluate, tmp_path):
    """Defect: views were read as the run's own setting says."""
    folder = tmp_path / "flat" / "train"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(12):
        image = Image.fromarray(rng.integers(0, 256, (20, 20), np.uint8))
        image.save(folder / f"{i:02}.png")
    (folder / "05.png").write_bytes(b"broken")
    flags = [f"--data=folder:{tmp_path / 'flat'}", "--baselines=none"]
    report = evaluate("--protocol=label_free", "--on_decode_error=skip", *flags)
    assert report["train_examples"] == 11 and len(report["left_out"]) == 1


def test_features_in_files_give_the_same_and_are_removed(evaluate, tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    in_files = evaluate("--protocol=knn", f"--features_dir={folder}")
    assert list(folder.iterdir()) == []
    assert evaluate("--protocol=knn") == in_files
    rounded = evaluate(
        "--protocol=knn,label_free", f"--features_dir={folder}", "--features_dtype=bfloat16"
    )
    exact = evaluate("--protocol=label_free")
    for name in ALL:
        a, b = (report["details"][name]["rankme"] for report in (rounded, exact))
        assert a == pytest.approx(b, rel=2e-2) and a != b
    with pytest.raises(ConfigError, match="name a folder for them with --features_dir"):
        evaluate("--protocol=knn", "--features_dtype=bfloat16")
    with pytest.raises(DataError, match="nowhere cannot be used"):
        evaluate("--protocol=knn", f"--features_dir={tmp_path / 'nowhere'}")


def test_a_dry_run_writes_nothing(command, evaluate, capsys, tmp_path):
    assert evaluate("--protocol=knn,linear,finetune", "--dry_run") is None
    out = capsys.readouterr().out
    # Two encoders, five rates, 30 and 50 epochs of the 80 images that divide among four devices.
    assert f"finetune, {2 * 5 * 80 * 80} images in all updates: about " in out
    assert "130 images at " in out and "linear, 80 epochs: " in out
    # 16 features of two encoders and 1024 pixels of the third, 4 bytes each.
    assert command._estimate(10, {"byol": 2000, "random": 2000}, [900_000, 100_000], 24_000) == [
        "1000000 images at 10 images/s: 1666.7 minutes for the features",
        "features: 16.00 GB, and 16.00 GB in memory for copies of the largest while it is "
        "evaluated",
        "linear, 80 epochs: 120000.0 minutes",
        "finetune, 24000 images in all updates: about 60.0 minutes",
    ]
    assert not (tmp_path / "eval").exists()


def test_images_without_labels_have_the_measures_that_need_none(evaluate, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 1), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", images=images)
    report = evaluate("--protocol=label_free", f"--data=npz:{tmp_path}")
    assert list(report["details"]) == ALL and "data" not in report
    assert all(1 < result["rankme"] <= 30 for result in report["details"].values())
    with pytest.raises(DataError, match=r"has no labels to evaluate on: .* --protocol=label_free"):
        evaluate("--protocol=label_free,knn", f"--data=npz:{tmp_path}")


def test_other_encoders_are_rows_with_images_of_their_own_size(evaluate, passes, tmp_path):
    other = random_encoder(
        "resnet8", image_size=24, stem="strided", width_multiplier=0.25, channels=1
    )
    encoder_lib.save(other, tmp_path / "other")
    report = evaluate("--protocol=knn", "--baselines=none", f"--against={tmp_path / 'other'}")
    assert passes == [16, 24, 16, 24]
    assert list(report["top1"]) == ["byol", str(tmp_path / "other")]
    train, test = (
        data.open_source(report[key].rpartition("/")[0], split, channels=1)
        for key, split in (("train_data", "train"), ("data", "test"))
    )
    ((images, labels),), ((queries, wanted),) = (
        data.eval_batches(source, batch_size=99, image_size=24) for source in (train, test)
    )
    splits = (other.embed(images), labels, other.embed(queries), wanted)
    expected = knn(*splits, num_classes=CLASSES)
    assert report["details"][str(tmp_path / "other")]["top1"] == expected["top1"]


def test_other_encoders_compute_the_same_on_several_devices(trained, tmp_path):
    other = random_encoder("convnet", image_size=16, channels=1, features=8)
    encoder_lib.save(other, tmp_path / "other")
    row = encoders.of_path(str(tmp_path / "other"), trained(16).run.config)
    images = np.random.default_rng(0).integers(0, 256, (37, 16, 16, 1), np.uint8)
    np.testing.assert_allclose(row.embed(images), other.embed(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing", "nothing is not a file"), ("coloured", "takes images of 3 channels")],
)
def test_other_encoders_that_do_not_fit_are_one_line(evaluate, tmp_path, name, message):
    coloured = random_encoder("resnet8", image_size=16, stem="strided", width_multiplier=0.25)
    encoder_lib.save(coloured, tmp_path / "coloured")
    with pytest.raises(UserError, match=f"--against=.*{message}") as error:
        evaluate("--protocol=knn", f"--against={tmp_path / name}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("paths", ["random", "a,,b"])
def test_other_encoders_have_paths_of_their_own(evaluate, paths):
    with pytest.raises(ConfigError, match=r"--against=(random)? is not a path of its own"):
        evaluate("--protocol=knn", f"--against={paths}")


def test_a_protocol_that_cannot_be_computed_keeps_no_other_from_its_result(evaluate, tmp_path):
    rng = np.random.default_rng(0)
    for split, labels in {"train": [0, 1, 2] * 9, "test": [0, 1, 2]}.items():
        images = rng.integers(0, 256, (len(labels), 16, 16, 1), dtype=np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=labels)
    message = "retrieval cannot be computed: retrieval needs a class with two test images or more"
    with pytest.raises(DataError, match=message) as error:
        evaluate("--protocol=retrieval,knn", f"--data=npz:{tmp_path}")
    assert "\n" not in str(error.value)
    (path,) = (tmp_path / "eval").iterdir()
    assert path.name.startswith("knn-")
