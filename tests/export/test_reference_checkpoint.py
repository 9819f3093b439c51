"""Checkpoints of the authors' code become runs with the same numbers, which train further."""

import collections
import copy
import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import flax
import jax
import numpy as np
import optax
import pytest

import byol_jax
from byol_jax import byol
from byol_jax.augment import image as image_augment
from byol_jax.errors import UserError
from byol_jax.export.convert import reference, reference_checkpoint
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import run as run_lib

ROOT = Path(__file__).parents[2]


def call(*flags):
    command = [sys.executable, "-m", "byol_jax.cli", "import-reference", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


# The authors' own checkpoint, of a tiny network.


@pytest.fixture(scope="module")
def imported(reference_data, tmp_path_factory):
    """The folder that the command makes of it."""
    output = tmp_path_factory.mktemp("import") / "run"
    path = reference_data / "pretrain_tiny.pkl"
    done = call(f"--checkpoint={path}", f"--output={output}", "--image_size=32")
    assert done.returncode == 0, done.stderr
    assert "a run of resnet10 (width 1) at step 5 of 312784" in done.stdout
    assert "published by the authors are licensed CC BY-NC 4.0" in done.stdout
    assert [path.name for path in output.parent.iterdir()] == ["run"]
    return output


@pytest.fixture(scope="module")
def values(reference_data):
    with np.load(reference_data / "trajectory.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def trained(imported):
    return run_lib.restore(imported)


def group(values, name):
    """One group of arrays in the file, by the authors' modules."""
    modules = collections.defaultdict(dict)
    for key, array in values.items():
        if key.startswith(f"{name}|"):
            module, _, leaf = key.removeprefix(f"{name}|").removeprefix("1/mu/").rpartition("/")
            modules[module][leaf] = array
    return modules


def assert_equal(got, want, parts=("encoder", "projector", "predictor", "probe")):
    """Every leaf of `got` equals that of `want` exactly."""
    want = {part: want[part] for part in parts if part in want}
    got, want = (flax.traverse_util.flatten_dict(t, sep="/") for t in (got, want))
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(np.asarray(got[name]), array, err_msg=name)


def test_outputs_equal_the_authors(imported, values):
    model, images = byol_jax.load(imported), values["views"][0, 0]
    logits = jax.jit(lambda s, x: byol.infer(model.learner, s, x).logits)(model.state, images)
    outputs = {
        "projection": model.project(images),
        "prediction": model.predict(images),
        "logits": logits,
    }
    for name, got in outputs.items():
        want = values[f"eval|{name}"]
        assert np.abs(got - want).max() < 2e-5 * np.abs(want).max(), name


def test_every_array_of_the_file_is_imported(trained, values):
    state, target = trained.state, ("encoder", "projector")
    assert_equal(state.online_params, reference.params(group(values, "final|online_params")))
    assert_equal(
        state.target_params, reference.params(group(values, "final|target_params")), target
    )
    assert_equal(state.online_stats, reference.batch_stats(group(values, "final|online_state")))
    assert_equal(
        state.target_stats, reference.batch_stats(group(values, "final|target_state")), target
    )
    momentum = optax.tree.get(state.opt_state, "trace")
    assert_equal(momentum, reference.params(group(values, "final|opt_state")))
    assert state.step == 5 and optax.tree.get(state.opt_state, "count") == 5
    assert state.online_stats["encoder"]["bn1"]["count"] == 10  # two views a step


def test_the_config_has_what_is_known(trained):
    config, data = trained.run.config, trained.run.data
    assert (config.encoder.name, config.encoder.padding) == ("resnet10", "same")
    assert config.encoder.stem_channels == 64 and config.encoder.stage_channels == (8, 8, 8, 8)
    assert config.encoder.first_shortcut
    assert (config.heads.hidden_size, config.heads.output_size) == (32, 16)
    assert config.optimizer.name == "lars" and config.steps == 312784
    assert data["name"] == "unknown" and data["num_classes"] == 5
    assert "CC BY-NC 4.0" in data["license"]


def test_the_license_is_in_the_record_of_an_export(imported, tmp_path):
    encoder_lib.save(byol_jax.load(imported), tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    assert "CC BY-NC 4.0" in record["training"]["data"]["license"]


def test_training_continues(trained, values):
    plain = image_augment.View(jitter_prob=0.0, gray_prob=0.0, blur_prob=0.0, solarize_prob=0.0)
    policy = image_augment.Policy(
        plain, plain, image_augment.IMAGENET_MEAN, image_augment.IMAGENET_STD
    )
    learner = dataclasses.replace(trained.learner, augment=policy)
    views = values["views"][0].swapaxes(0, 1)
    batch = byol.Batch(views, values["labels"][0], np.arange(16, dtype=np.int32))
    update = jax.jit(functools.partial(byol.update, learner))
    state, metrics = update(trained.state, batch)
    assert state.step == 6 and optax.tree.get(state.opt_state, "count") == 6
    assert state.online_stats["encoder"]["bn1"]["count"] == 12
    # The first step of a new run would have a rate of 0; this one has the rate of step 5.
    rate = trained.run.learning_rate()(5)
    # Base .2 at a batch of 256, after 10 epochs of 1,281,167 images in batches of 4096.
    assert rate == pytest.approx(0.2 * 4096 / 256 * 5 / 3127, rel=1e-5)
    moved = jax.tree.map(lambda a, b: a - b, state.online_params, trained.state.online_params)
    momentum = optax.tree.get(state.opt_state, "trace")
    for name, delta in flax.traverse_util.flatten_dict(moved, sep="/").items():
        want = -rate * flax.traverse_util.flatten_dict(momentum, sep="/")[name]
        np.testing.assert_allclose(delta, want, atol=2e-7, err_msg=name)
    # The momentum is the file's, not zero.
    fresh = trained.state._replace(
        opt_state=optax.tree.set(
            trained.state.opt_state,
            trace=jax.tree.map(lambda m: 0 * m, optax.tree.get(trained.state.opt_state, "trace")),
        )
    )
    old = optax.tree.get(trained.state.opt_state, "trace")
    other = optax.tree.get(update(fresh, batch)[0].opt_state, "trace")
    jax.tree.map(
        lambda a, b, m: np.testing.assert_allclose(a - b, 0.9 * m, rtol=1e-4, atol=1e-6),
        momentum,
        other,
        old,
    )
    assert np.isfinite(metrics["loss"])


# Checkpoints made here, with the authors' names.

State = collections.namedtuple("State", reference_checkpoint.FIELDS)
Lars = collections.namedtuple("Lars", "mu")
NOTHING = collections.namedtuple("AddWeightDecayState", "")()


def norm(channels, axes):
    shape = (*(1,) * axes, channels)
    return {"scale": shape, "offset": shape}


def shapes(encoder, blocks, channels, *, bottleneck, width=1, hidden=8, size=4, classes=3):
    """Shapes of the parameters of one of the authors' encoders and its heads, by module."""
    modules = {
        f"{encoder}/~/initial_conv": {"w": (7, 7, 3, 64 * width)},
        f"{encoder}/~/initial_batchnorm": norm(64 * width, 3),
    }
    inputs = 64 * width
    for group, (number, outputs) in enumerate(zip(blocks, channels, strict=True)):
        outputs *= width
        inner = outputs // 4 if bottleneck else outputs
        for block in range(number):
            prefix = f"{encoder}/~/block_group_{group}/~/block_{block}/~"
            convs = [(3, inputs, outputs), (3, outputs, outputs)]
            if bottleneck:
                convs = [(1, inputs, inner), (3, inner, inner), (1, inner, outputs)]
            for index, (kernel, before, after) in enumerate(convs):
                modules[f"{prefix}/conv_{index}"] = {"w": (kernel, kernel, before, after)}
                modules[f"{prefix}/batchnorm_{index}"] = norm(after, 3)
            if block == 0:
                modules[f"{prefix}/shortcut_conv"] = {"w": (1, 1, inputs, outputs)}
                modules[f"{prefix}/shortcut_batchnorm"] = norm(outputs, 3)
            inputs = outputs
    for head, features in (("projector", inputs), ("predictor", size)):
        modules[f"{head}/linear"] = {"w": (features, hidden), "b": (hidden,)}
        modules[f"{head}/batch_norm"] = norm(hidden, 1)
        modules[f"{head}/linear_1"] = {"w": (hidden, size)}
    modules["classifier"] = {"w": (inputs, classes), "b": (classes,)}
    return modules


def checkpoint(modules, step=7):
    """A checkpoint of these parameters, with arrays that take no memory."""

    def full(value, shape):
        return np.broadcast_to(np.float32(value), shape)

    params = {
        name: {leaf: full(0.5, s) for leaf, s in leaves.items()} for name, leaves in modules.items()
    }
    state = {}
    for name, leaves in modules.items():
        if "norm" in name:
            for moment, value in (("mean", 0.25), ("var", 2.0)):
                average = full(value, leaves["scale"])
                state[f"{name}/~/{moment}_ema"] = {
                    "hidden": average,
                    "average": average,
                    "counter": np.asarray(2 * step, np.int32),
                }
    held = State(params, params, state, state, (NOTHING, Lars(params), NOTHING))
    return {"experiment_state": held, "step": step, "rng": np.zeros(2, np.uint32)}


TINY = {"blocks": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "bottleneck": False}
BOTTLENECKS = {"channels": (256, 512, 1024, 2048), "bottleneck": True}


@pytest.fixture
def read(monkeypatch):
    """A function from the contents of a file to the imported run."""

    def read(held, **known):
        monkeypatch.setattr(reference_checkpoint.pickles, "load", lambda path: held)
        return reference_checkpoint.read(Path("FILE.pkl"), **{"image_size": 32} | known)

    return read


@pytest.mark.parametrize(
    ("name", "width", "sizes"),
    [
        ("resnet18", 2, {"blocks": (2, 2, 2, 2), "channels": (64, 128, 256, 512)}),
        ("resnet50", 1, {"blocks": (3, 4, 6, 3), **BOTTLENECKS}),
        ("resnet50", 4, {"blocks": (3, 4, 6, 3), **BOTTLENECKS}),
        ("resnet200", 2, {"blocks": (3, 24, 36, 3), **BOTTLENECKS}),
    ],
)
def test_every_leaf_of_the_released_networks_is_imported(read, name, width, sizes):
    modules = shapes("some_net", width=width, **{"bottleneck": False} | sizes)
    trained = read(checkpoint(modules))  # checks every shape
    encoder = trained.run.config.encoder
    assert (encoder.name, encoder.width_multiplier) == (name, width)
    assert (encoder.stem_channels, encoder.stage_channels) == (64, (64, 128, 256, 512))
    state = trained.state
    assert len(jax.tree.leaves(state.online_params)) == sum(map(len, modules.values()))


def test_the_authors_manifest_is_imported(read, reference_data):
    manifest = json.loads((reference_data / "resnet18_manifest.json").read_text())
    modules = {
        name: {leaf: tuple(shape) for leaf, (shape, _) in leaves.items()}
        for name, leaves in manifest["params"].items()
    }
    sizes = {"hidden": 4096, "size": 256, "classes": 1000}
    channels = (64, 128, 256, 512)
    ours = shapes("res_net18", (2, 2, 2, 2), channels, bottleneck=False, **sizes)
    assert ours == modules  # the names made in this file are the authors'
    assert set(checkpoint(ours)["experiment_state"].online_state) == set(manifest["state"])
    trained = read(checkpoint(modules))
    assert trained.run.config.encoder.name == "resnet18"
    assert trained.run.config.heads.hidden_size == 4096
    assert trained.run.data["num_classes"] == 1000


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"epochs": 50}, "--epochs=50 is not one of 40, 100, 300, 1000"),
        ({"batch_size": 2}, "--batch_size=2 must be between 4 and 1281167"),
        ({"image_size": 0}, "config.data.image_size=0 must be at least 1"),
    ],
)
def test_what_the_file_does_not_contain_is_checked(read, known, message):
    with pytest.raises(UserError, match=message):
        read(checkpoint(shapes("net", **TINY)), **known)


def test_a_step_after_the_end_is_refused(read):
    held = checkpoint(shapes("net", **TINY), step=20_000)
    with pytest.raises(
        UserError, match="of step 20000, but 40 epochs of batches of 4096 are 12511"
    ):
        read(held, epochs=40)
    assert read(held, epochs=40, batch_size=2048).run.total_steps == 25022


def test_the_recipe_is_that_of_the_length(read):
    config = read(checkpoint(shapes("net", **TINY)), epochs=300).run.config
    assert (config.optimizer.base_learning_rate, config.target.tau_base) == (0.3, 0.99)
    assert config.optimizer.weight_decay == 1e-6


def get(held, field):
    return getattr(held["experiment_state"], field)


def replace(held, **fields):
    held["experiment_state"] = held["experiment_state"]._replace(**fields)


CONV = "net/~/block_group_1/~/block_0/~/conv_0"
CHANGES = {
    "no momentum of LARS": lambda h: replace(h, opt_state=(NOTHING,)),
    "has no online_params": lambda h: h.update(experiment_state=None),
    "has no step": lambda h: h.pop("step"),
    "is of step -1": lambda h: h.update(step=-1),
    "online_params are not arrays by module": lambda h: get(h, "online_params").update(x=[1]),
    "target_state are not arrays by module": lambda h: replace(h, target_state=None),
    "'net/~/final_batchnorm' is not in the authors' networks": lambda h: get(
        h, "online_params"
    ).update(
        {"net/~/final_batchnorm": {"scale": np.ones(3, np.float32)}}  # version 2 of a ResNet
    ),
    "target_params/projector/dense2/kernel is absent": lambda h: get(h, "target_params").pop(
        "projector/linear_1"
    ),
    r"layer2_0/conv1/kernel is float32 \(3, 3, 8, 9\) and should be float32 \(3, 3, 8": lambda h: (
        get(h, "target_params").update({CONV: {"w": np.ones((3, 3, 8, 9), np.float32)}})
    ),
    "is float16": lambda h: get(h, "target_params").update(
        {CONV: {"w": np.ones((3, 3, 8, 8), np.float16)}}
    ),
    "trace/encoder/layer2_0/conv1/kernel is absent": lambda h: (
        h["experiment_state"].opt_state[1].mu.pop(CONV)
    ),
    "online_stats/encoder/bn1/var is absent": lambda h: get(h, "online_state").pop(
        "net/~/initial_batchnorm/~/var_ema"
    ),
    "have no probe": lambda h: get(h, "online_params").pop("classifier"),
    "it lacks or garbles 'conv1'": lambda h: get(h, "online_params").pop("net/~/initial_conv"),
    "FILE.pkl cannot be imported": lambda h: get(h, "target_params").clear(),
    "FILE.pkl is not a pre-training checkpoint": lambda h: h.clear(),
}


@pytest.mark.parametrize("message", CHANGES)
def test_other_contents_are_refused(read, message):
    held = copy.deepcopy(checkpoint(shapes("net", **TINY)))
    read(held)
    # A copy of each group, so that a change of one does not change the others.
    state = held["experiment_state"]
    held["experiment_state"] = State(*(copy.deepcopy(group) for group in state))
    CHANGES[message](held)
    with pytest.raises(UserError, match=message):
        read(held)


def test_an_output_with_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = call("--checkpoint=none.pkl", f"--output={tmp_path}")
    assert done.returncode == 1
    assert f"error: --output={tmp_path} holds something already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_missing_file_is_refused(tmp_path):
    done = call("--checkpoint=none.pkl", f"--output={tmp_path / 'out'}")
    assert done.returncode == 1 and "error: none.pkl cannot be read" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_a_failure_leaves_nothing(read, tmp_path, monkeypatch):
    trained = read(checkpoint(shapes("net", **TINY)))

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(reference_checkpoint.Checkpoints, "save", fail)
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
            reference_checkpoint.write(trained, tmp_path / "a" / "run")
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]
    reference_checkpoint.write(trained, tmp_path / "a" / "run")
    restored = run_lib.restore(tmp_path / "a" / "run")
    jax.tree.map(np.testing.assert_array_equal, restored.state, trained.state)
    with pytest.raises(UserError, match="holds something already"):
        reference_checkpoint.write(trained, tmp_path / "a" / "run")


def test_an_empty_output_is_used(read, tmp_path):
    trained = read(checkpoint(shapes("net", **TINY)))
    reference_checkpoint.write(trained, tmp_path)
    assert run_lib.restore(tmp_path).state.step == 7
