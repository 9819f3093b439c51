"""byol_jax.load: runs open with their heads, exports without, and the rest is refused in words."""

from byol_jax.runs.checkpoint import RetentionPolicy
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from encoders import random_trained

import byol_jax
from byol_jax import byol
from byol_jax.errors import UserError
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import run as run_lib
from byol_jax.runs.checkpoint import Checkpoints

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
    """What the run's network makes of the images, by step."""
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


def test_a_step_is_chosen(workdir, outputs):
    model = byol_jax.load(str(workdir), step=3)
    assert model.config["training"]["step"] == 3
    np.testing.assert_allclose(model.predict(IMAGES), outputs[3].prediction, rtol=1e-5, atol=1e-6)
    assert np.abs(outputs[3].prediction - outputs[6].prediction).max() > 1e-3


def test_a_run_and_its_export_embed_alike(model, tmp_path):
    encoder_lib.save(model, tmp_path / "export")
    exported = byol_jax.load(tmp_path / "export")
    assert type(exported) is encoder_lib.Encoder and not hasattr(exported, "project")
    assert exported.config == model.config
    np.testing.assert_array_equal(exported.embed(IMAGES), model.embed(IMAGES))


@pytest.mark.parametrize("method", ["embed", "project", "predict"])
def test_other_images_are_refused(model, method):
    call = getattr(model, method)
    with pytest.raises(UserError, match=rf"{method} takes uint8 images .*, not float32"):
        call(IMAGES.astype(np.float32))
    with pytest.raises(UserError, match=rf"{method} takes uint8 images \(n, height, width, 1\)"):
        call(IMAGES[0])
    with pytest.raises(UserError, match=f"{method} was given images of several sizes"):
        call([IMAGES[0], IMAGES[0, :8]])
    with pytest.raises(UserError, match=f"{method} was given 0 images"):
        call(IMAGES[:0])
    with pytest.raises(UserError, match="batch_size=0: both must be at least 1"):
        call(IMAGES, batch_size=0)


def test_a_run_without_predictor_says_so():
    model = encoder_lib.from_trained(random_trained(0, predictor_layers=0))
    assert model.project(IMAGES).shape == (7, 4)
    with pytest.raises(UserError, match=r"trained without a predictor .*: use project"):
        model.predict(IMAGES)


def test_a_step_without_checkpoint_is_named(workdir):
    with pytest.raises(UserError, match=r"has no checkpoint of step 4; it has \[3, 6\]"):
        byol_jax.load(workdir, step=4)


def test_a_run_without_checkpoint_is_named(workdir, tmp_path):
    run_lib.prepare_workdir(tmp_path, run_lib.read(workdir))
    with pytest.raises(UserError, match="no checkpoint yet"):
        byol_jax.load(tmp_path)


def test_an_export_has_no_steps(model, tmp_path):
    encoder_lib.save(model, tmp_path)
    with pytest.raises(UserError, match=r"is an exported encoder, which has no steps .*step=3"):
        byol_jax.load(tmp_path, step=3)


def test_a_folder_that_is_neither_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="is neither a pre-training run nor an exported"):
            byol_jax.load(folder)


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"config": 1', '{"format": "other"}'])
def test_a_config_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="is not an exported encoder"):
        byol_jax.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"has format|cannot be read"):
        byol_jax.load(tmp_path)


def test_a_run_with_a_damaged_config_is_named(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for text in ("{", '{"config": 1}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config.json is not a config of this program"):
            byol_jax.load(tmp_path)


def test_a_run_of_another_version_is_named(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    record = {"config": {"seed": 0}, "versions": {"byol_jax": "0.1.0"}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"byol_jax 0.1.0, which had no config.accum_steps"):
        byol_jax.load(tmp_path)


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
