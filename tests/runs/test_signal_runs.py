"""Signals through a run's whole life: training, resuming, evaluation, export, and mistakes."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import resuming
from absl import flags
from commands import imported

import byol_jax
from byol_jax import models
from byol_jax.data.signals import SignalSource
from byol_jax.errors import CheckpointError, ConfigError, DataError
from byol_jax.export import stablehlo
from byol_jax.runs import config as config_lib
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import kinds
from byol_jax.runs.resolve import resolve
from byol_jax.train import loop

STEPS = 4


def config_for(folder, arrays):
    config = config_lib.default("signals")
    config.steps = STEPS
    config.batch_size = 8
    config.data.source = f"npz:{folder}"
    config.data.test_split = "test"
    config.data.arrays = arrays
    config.views.view1.window_min = config.views.view2.window_min = 0.5
    config.views.view2.mask_share = 0.5
    config.encoder.name = "conv1d"
    config.encoder.channels = config.encoder.kernel_sizes = (4, 4)
    config.encoder.strides = (1, 2)
    config.heads.hidden_size = 8
    config.heads.output_size = 4
    config.optimizer.name = "adamw"
    config.optimizer.warmup_epochs = 0.0
    config.log_every_steps = 2
    config.checkpoint.every_steps = 2
    config.evaluation.every_steps = STEPS
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes that differ by their frequency."""
    folder, rng = tmp_path_factory.mktemp("signals"), np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 12)):
        labels = np.arange(count) % 2
        time = np.arange(16)[None, :, None] * (1 + labels[:, None, None])
        acc = 5 + np.sin(time + rng.normal(size=(count, 1, 3)))
        gyro = 0.1 * np.cos(time[:, :10] + rng.normal(size=(count, 1, 2)))
        np.savez(folder / f"{split}.npz", acc=acc, gyro=gyro, labels=labels)
    return folder


@pytest.fixture(scope="module", params=["acc", "acc,gyro"])
def run(request, folder, tmp_path_factory):
    """Config, folder and model of a complete run."""
    config, workdir = config_for(folder, request.param), tmp_path_factory.mktemp("run")
    assert loop.train(config, workdir)
    return config, workdir, byol_jax.load(workdir)


def signals(folder, model):
    with np.load(folder / "test.npz") as archive:
        arrays = {name: archive[name] for name in model.config["arrays"]}
    return arrays if len(arrays) > 1 else arrays["acc"]


def test_means_are_those_of_the_data(run, folder):
    _, workdir, model = run
    saved = json.loads((workdir / "config.json").read_text())["config"]
    with np.load(folder / "train.npz") as archive:
        for name, record in model.config["arrays"].items():
            array = archive[name].astype(np.float32)
            np.testing.assert_allclose(record["mean"], array.mean((0, 1)), rtol=1e-3)
            np.testing.assert_allclose(record["std"], array.std((0, 1)), rtol=1e-3)
            assert record["shape"] == list(array.shape[1:])
    assert saved["data"]["kind"] == "signals" and saved["data"]["shapes"].startswith("16x3")


def test_a_run_resumes_to_the_bit(run, tmp_path, capsys):
    resuming.check(run, tmp_path, capsys, last_step=STEPS)


def test_features_are_those_of_the_module(run, folder):
    _, _, model = run
    given = signals(folder, model)
    arrays = given if isinstance(given, dict) else {"acc": given}
    normalized = {
        name: (array - np.array(record["mean"])) / np.array(record["std"])
        for (name, record), array in zip(
            model.config["arrays"].items(), arrays.values(), strict=True
        )
    }
    single = models.make_encoder(**model.config["encoder"])
    found = []
    for name, array in normalized.items():
        variables = model.variables
        if len(arrays) > 1:
            variables = {kind: tree[f"encoders_{name}"] for kind, tree in variables.items()}
        found.append(single.apply(variables, jnp.float32(array), train=False))
    np.testing.assert_allclose(model.embed(given, batch_size=5), np.mean(found, 0), atol=1e-5)
    if len(arrays) > 1:
        alone = model.embed({"gyro": arrays["gyro"]})
        np.testing.assert_allclose(alone, found[1], atol=1e-5)


def test_projections_and_predictions(run, folder):
    _, _, model = run
    given = signals(folder, model)
    assert model.project(given).shape == model.predict(given).shape == (12, 4)


def test_an_export_has_the_same_features(run, folder, tmp_path, monkeypatch):
    _, _, model = run
    given = signals(folder, model)
    encoder_lib.save(model, tmp_path / "own")
    opened = byol_jax.load(tmp_path / "own")
    np.testing.assert_array_equal(opened.embed(given), model.embed(given))
    if isinstance(given, dict):
        with pytest.raises(CheckpointError, match=r"takes several arrays \(acc, gyro\)"):
            stablehlo.save(model, tmp_path / "hlo")
        return
    stablehlo.save(model, tmp_path / "hlo")
    record = json.loads((tmp_path / "hlo" / "config.json").read_text())
    assert record["input"]["name"] == "signals" and record["input"]["shape"] == ["n", 16, 3]
    monkeypatch.chdir(tmp_path / "hlo")
    names = {"signals": given.astype(np.float32)}
    exec("\n".join(record["load"]), names)
    np.testing.assert_allclose(names["features"], model.embed(given), atol=1e-5)


def evaluate(workdir, *arguments):
    with imported("evaluate") as command:
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["evaluate", f"--checkpoint={workdir}", *arguments])
        command.main()


def test_the_command_evaluates_it(run, capsys):
    config, workdir, _ = run
    evaluate(workdir, "--protocol=knn,logistic,retrieval,label_free,probe")
    out = capsys.readouterr().out
    assert "knn on npz:" in out and "12 signals" in out
    found = json.loads((workdir / "eval" / "logistic.json").read_text())["top1"]
    evaluate(workdir, "--protocol=knn", f"--against={workdir}")
    compared = json.loads((workdir / "eval" / "knn.json").read_text())["top1"]
    assert compared[str(workdir)] == compared["byol"]
    parts = ["byol, acc", "byol, gyro"] if "," in config.data.arrays else []
    assert {"byol", "random", "raw", *parts} <= found.keys()
    if parts:
        evaluate(workdir, "--protocol=cross_modal", "--baselines=none")
        ways = json.loads((workdir / "eval" / "cross_modal.json").read_text())["top1"]
        assert {*ways} == {"byol, acc -> gyro", "byol, gyro -> acc", "chance"}
        assert {"raw, acc", "raw, gyro"} <= found.keys()
    else:
        with pytest.raises(ConfigError, match="cross_modal is for examples of two parts"):
            evaluate(workdir, "--protocol=cross_modal")
    lidar = json.loads((workdir / "eval" / "label_free.json").read_text())["details"]
    assert lidar["byol"]["lidar"] > 1
    with pytest.raises(ConfigError, match="--protocol=linear is for images"):
        evaluate(workdir, "--protocol=linear")
    with pytest.raises(ConfigError, match="--data_dir is for tfds:NAME"):
        evaluate(workdir, "--protocol=knn", "--data_dir=/x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.source": "folder:x"}, "config.data.source=folder:x must be npz:PATH"),
        ({"data.arrays": "acc,gyro,mag"}, "must name one array, or two"),
        ({"data.arrays": "mag"}, "holds no array 'mag'; it has acc, gyro"),
        ({"data.arrays": ""}, "holds the arrays acc, gyro: choose one"),
        ({"data.shapes": "4y4"}, "is no list of shapes"),
        ({"views.mean": (0.0,)}, "config.views.mean has 1 numbers: give 3"),
        (
            {"views.view1.mask_share": 1.5},
            "config.views.view1.mask_share=1.5 must be at least 0 and at",
        ),
        (
            {"views.view1.window_max": 0.1},
            "window_max=0.1 must be at least config.views.view1.window_min",
        ),
        ({"encoder.kernel_sizes": (3,)}, r"kernel_sizes=\(3,\) must be as many as channels"),
        ({"views.std": (1.0, 0.0, 1.0)}, r"config.views.std=\(1.0, 0.0, 1.0\) must be finite numb"),
        (
            {"data.kind": "images"},
            "config.data.kind=images needs config.* which this config lacks: choose",
        ),
        ({"encoder.name": "resnet8"}, "cannot take the array acc of shape"),
        ({"batch_size": 32}, "has 24 examples, fewer than a batch of 32"),
    ],
)
def test_a_mistake_is_one_line(folder, tmp_path, changes, message):
    config = config_for(folder, "acc")
    if "encoder.name" in changes:
        config.encoder.channels = config.encoder.kernel_sizes = config.encoder.strides = None
    config.update_from_flattened_dict(changes)
    with pytest.raises((ConfigError, DataError), match=message) as raised:
        loop.train(config, tmp_path)
    assert "\n" not in str(raised.value)


def test_other_data_than_the_run_has_is_one_line(folder, tmp_path):
    with np.load(folder / "test.npz") as archive:
        np.savez(tmp_path / "train.npz", acc=archive["acc"], labels=archive["labels"])
        np.savez(tmp_path / "test.npz", acc=archive["acc"][..., :1], labels=archive["labels"])
    config = config_for(tmp_path, "")
    with pytest.raises(
        DataError, match=r"has the arrays acc of the shapes 16x1, and the run's are"
    ):
        loop.train(config, tmp_path / "run")
    with pytest.raises(DataError, match=r"holds no signals, as config.data.kind says"):
        images = byol_jax.data.from_arrays(np.zeros((8, 4, 4, 1), np.uint8))
        loop.train(config, tmp_path / "run", images)


def test_means_are_rounded_by_the_spread():
    pressure = 101_325 + 5 * np.random.default_rng(0).normal(size=(50, 20, 1))
    constant = np.full((50, 20, 1), 3.0)
    source = SignalSource("mine", {"a": np.concatenate([pressure, constant], axis=2)})
    config = config_for("x", "")
    kinds.of(config).fit_to(config, source)
    np.testing.assert_allclose(config.views.mean, [pressure.mean(), 3], atol=0.005)
    np.testing.assert_allclose(config.views.std, [pressure.std(), 1], rtol=1e-3)


def test_a_table_is_trained_on(tmp_path):
    rng = np.random.default_rng(0)
    rows, heads = rng.normal(size=(8, 5)), {"hidden_size": 4, "output_size": 4}
    settings = {"steps": 1, "encoder": {"widths": (8,)}, "heads": heads}
    model = byol_jax.pretrain({"rows": rows}, tmp_path, config="tables", **settings)
    assert model.embed(rng.normal(size=(3, 5))).shape == (3, 8)
    again = byol_jax.pretrain({"rows": rows}, tmp_path, config="tables", **settings)
    np.testing.assert_array_equal(again.embed(rows), model.embed(rows))
    with pytest.raises(DataError, match="are not those that the run"):
        byol_jax.pretrain({"rows": rows[::-1]}, tmp_path, config="tables", **settings)


def test_the_kind_has_to_exist():
    with pytest.raises(ConfigError, match="is not one of images, signals"):
        config_lib.default("smells")
    config = config_lib.default("signals")
    assert "image_size" not in config.data and "crop" not in config
    config.data.source, config.steps, config.encoder.name = "npz:x", 1, "conv1d"
    assert resolve(config)[0].encoder.channels == (128, 256, 128)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 16)), r"embed: acc must have a shape like \(n, 16, 3\), not \(2, 16\)"),
        (np.zeros((2, 16, 4)), "must have a shape like"),
        ([np.zeros((16, 3)), np.zeros((15, 3))], "must be numbers of shape"),
        (np.full((1, 16, 3), np.nan), "has NaN or infinity"),
        (np.zeros((0, 16, 3)), "was given 0 signals"),
        ({"mag": np.zeros((2, 16, 3))}, "was given mag: give acc"),
    ],
)
def test_unusable_inputs_are_one_line(folder, given, message):
    record = {"shape": [16, 3], "mean": [0.0] * 3, "std": [1.0] * 3}
    config = {"kind": "signals", "arrays": {"acc": record}, "dtype": "float32", "training": {}}
    config["encoder"] = {"name": "conv1d", "channels": (2,), "kernel_sizes": (1,), "strides": (1,)}
    with pytest.raises(DataError, match=message):
        encoder_lib.Encoder(config, {}).embed(given)
