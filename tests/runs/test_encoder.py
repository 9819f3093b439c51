"""byol_jax.load opens runs with their heads and exports without, and names what is wrong else."""

import json
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
from encoders import random_encoder, random_trained

import byol_jax
from byol_jax import byol
from byol_jax.errors import CheckpointError, ConfigError, DataError
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import run as run_lib
from byol_jax.runs.checkpoint import Checkpoints, RetentionPolicy

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 1), np.uint8)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    run_lib.prepare_workdir(workdir, random_trained(0).run)
    with Checkpoints(workdir / "checkpoints", RetentionPolicy(newest=2)) as checkpoints:
        for step in (3, 6):
            checkpoints.save(step, random_trained(step).state)
    return workdir


@pytest.fixture(scope="module")
def model(workdir):
    return byol_jax.load(workdir)


@pytest.fixture(scope="module")
def outputs():
    """Outputs of the run's network for the images, by step."""
    trained = {step: random_trained(step) for step in (3, 6)}
    infer = jax.jit(lambda state: byol.infer(trained[3].learner, state, IMAGES))
    return {step: infer(found.state) for step, found in trained.items()}


@pytest.mark.parametrize(
    ("method", "output"),
    [("embed", "embedding"), ("project", "projection"), ("predict", "prediction")],
)
def test_a_run_embeds_projects_and_predicts(model, outputs, method, output):
    got, want = getattr(model, method)(IMAGES, batch_size=3), getattr(outputs[6], output)
    assert isinstance(got, np.ndarray) and got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(getattr(model, method)(IMAGES), want, rtol=1e-5, atol=1e-6)


def test_load_opens_the_requested_step(workdir, outputs):
    model = byol_jax.load(str(workdir), step=3)
    assert model.config["training"]["step"] == 3
    np.testing.assert_allclose(model.predict(IMAGES), outputs[3].prediction, rtol=1e-5, atol=1e-6)
    assert np.abs(outputs[3].prediction - outputs[6].prediction).max() > 1e-3


def test_a_run_and_its_export_give_equal_embeddings(model, tmp_path):
    encoder_lib.save(model, tmp_path / "export")
    exported = byol_jax.load(tmp_path / "export")
    assert type(exported) is encoder_lib.Encoder and not hasattr(exported, "project")
    assert exported.config == model.config
    np.testing.assert_array_equal(exported.embed(IMAGES), model.embed(IMAGES))


@pytest.mark.parametrize("method", ["embed", "project", "predict"])
def test_wrong_images_are_refused(model, method):
    call = getattr(model, method)
    with pytest.raises(DataError, match=rf"{method} takes uint8 images .*, not float32"):
        call(IMAGES.astype(np.float32))
    with pytest.raises(DataError, match=rf"{method} takes uint8 images \(n, height, width, 1\)"):
        call(IMAGES[0])
    with pytest.raises(DataError, match=f"{method} was given images of several sizes"):
        call([IMAGES[0], IMAGES[0, :8]])
    with pytest.raises(DataError, match=f"{method} was given 0 images"):
        call(IMAGES[:0])
    with pytest.raises(DataError, match="batch_size=0: both must be at least 1"):
        call(IMAGES, batch_size=0)


def test_predict_without_a_predictor_is_refused():
    model = encoder_lib.Model(random_trained(0, predictor_layers=0))
    assert model.project(IMAGES).shape == (7, 4)
    with pytest.raises(ConfigError, match=r"trained without a predictor .*: use project"):
        model.predict(IMAGES)


def test_a_step_without_checkpoint_is_refused(workdir):
    with pytest.raises(CheckpointError, match=r"has no checkpoint of step 4; it has \[3, 6\]"):
        byol_jax.load(workdir, step=4)


def test_a_run_without_checkpoint_is_refused(workdir, tmp_path):
    run_lib.prepare_workdir(tmp_path, run_lib.read(workdir))
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        byol_jax.load(tmp_path)


def test_an_export_has_no_steps(model, tmp_path):
    encoder_lib.save(model, tmp_path)
    with pytest.raises(
        CheckpointError, match=r"is an exported encoder, which has no steps .*step=3"
    ):
        byol_jax.load(tmp_path, step=3)


def test_a_folder_that_is_neither_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match="is neither a pre-training run nor an exported"):
            byol_jax.load(folder)


@pytest.mark.parametrize("text", ["{}", '{"format": "other"}'])
def test_a_config_of_another_program_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="is not an exported encoder"):
        byol_jax.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="has format"):
        byol_jax.load(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", '{"config": 1'])
def test_a_config_that_cannot_be_parsed_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        byol_jax.load(tmp_path)


def test_a_run_with_a_damaged_config_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for text in ("{", '{"config": 1}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config.json is not a config of this program"):
            byol_jax.load(tmp_path)


def test_few_batch_sizes_are_compiled():
    encoder = random_encoder("resnet8", image_size=16, stem="strided", channels=1)
    compiled, images = [], np.concatenate([IMAGES] * 10)

    def count(call, args, kwargs, context):
        if context.method_name == "__call__" and isinstance(context.module, type(encoder.module)):
            compiled.append(len(args[0]))
        return call(*args, **kwargs)

    with nn.intercept_methods(count):
        together = encoder.embed(images, batch_size=20)
        for n in range(1, 50):
            got = encoder.embed(images[:n], batch_size=20)
            np.testing.assert_allclose(got, together[:n], rtol=1e-5, atol=1e-6)
    assert sorted(compiled) == [1, 2, 4, 8, 16, 20]


@pytest.mark.parametrize("precision", ["default", "highest"])
def test_matmul_precision_of_the_run_reaches_the_export(precision, tmp_path):
    trained = random_trained(0)
    trained.run.config.matmul_precision = precision
    encoder_lib.save(encoder_lib.Model(trained), tmp_path)
    encoder = byol_jax.load(tmp_path)
    function = jax.jit(encoder.output_fn(encoder.module))
    text = function.lower(encoder.variables, IMAGES).as_text()
    assert ("HIGHEST" in text) == (precision == "highest")


def test_a_run_opens_without_tensorflow(workdir, outputs):
    code = (
        "import sys; sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"
        "import json, sys, numpy as np, byol_jax\n"
        f"model = byol_jax.load({str(workdir)!r})\n"
        "images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 1), np.uint8)\n"
        "print(json.dumps(model.predict(images).tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(got, outputs[6].prediction, rtol=1e-4, atol=1e-5)


def test_an_export_opens_with_few_packages(tmp_path):
    small = random_encoder("resnet8", image_size=16, stem="strided", channels=1)
    encoder_lib.save(small, tmp_path)
    code = (
        "import sys, numpy as np, byol_jax\n"
        f"encoder = byol_jax.load({str(tmp_path)!r})\n"
        "assert encoder.embed(np.zeros((1, 16, 16, 1), np.uint8)).shape == (1, 64)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    optional = {"tensorflow", "tensorflow_datasets", "orbax", "pyarrow", "tqdm", "tensorstore"}
    optional |= {"matplotlib", "PIL", "pandas", "sklearn", "tensorboard", "torch"}
    assert not optional & set(done.stdout.split())
