"""A function of the user's own in a file outside of the package, and every mistake in it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import toy
from tiny import tiny_config

from byol_jax.errors import ConfigError
from byol_jax.runs import run as run_lib
from byol_jax.runs import user_code
from byol_jax.runs.resolve import resolve
from byol_jax.train import loop

ROOT = Path(__file__).parents[2]
CODE = """
import jax
import jax.numpy as jnp

number = 3


def half(key, image):
    return image / 2 + jax.random.uniform(key, image.shape) / 1e6


def rows(key, image):
    return image[:-1]


def whole(key, image):
    return (image > 0.5).astype(jnp.int32)


def pair(key, image):
    return image, image


def traced(key, image):
    return image if image.mean() > 0 else 1 - image


def names(image):
    return image
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_views.py").write_text(CODE)
    (folder / "own_broken.py").write_text("import package_that_is_not_there\n")
    return folder


@pytest.fixture
def in_folder(folder, monkeypatch):
    """As in a command that starts there: the package and its tests are elsewhere on the path."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])


def config_with(name):
    config = tiny_config()
    config.augment.function = name
    return resolve(config)[0]


def load_augmentation(name):
    return user_code.load_augmentation(config_with(name), [(16, 16, 1)])


def test_without_a_name_there_is_no_function():
    assert load_augmentation("") is None


def test_a_file_in_the_current_folder_is_found(in_folder):
    function = load_augmentation("own_views:half")
    out = function(jax.random.key(0), jnp.full((16, 16, 1), 0.5))
    np.testing.assert_allclose(out, 0.25, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_views", r" must be MODULE:FUNCTION, such as config.augment.function=my_views:"),
        ("own_views.half", r" must be MODULE:FUNCTION"),
        ("a:b:c", r" must be MODULE:FUNCTION"),
        (":half", r" cannot be imported \(.*a file in the current folder"),
        ("own-views:half", r" cannot be imported \(ValueError"),
        ("own_nothing:half", r" cannot be imported \(ModuleNotFoundError: No module named 'own_n"),
        ("own_broken:half", r" cannot be imported \(ModuleNotFoundError: .*package_that_is_not"),
        ("own_views:quarter", r" cannot be imported \(AttributeError: .* no attribute 'quarter'"),
        ("own_views:number", r" is not a function but of type int"),
        ("own_views:", r" is not a function but of type module"),
        ("own_views:rows", r" must return a view, float32 \(16, 16, 1\), not float32 \(15, 16, 1"),
        ("own_views:whole", r" must return a view, float32 \(16, 16, 1\), not int32 \(16, 16, 1\)"),
        ("own_views:pair", r" must return a view, float32 \(16, 16, 1\), not tuple"),
        ("own_views:traced", r" cannot be traced by jax.vmap .*\(TracerBoolConversionError"),
        ("own_views:names", r" cannot be traced by jax.vmap .*\(TypeError: names\(\) takes 1"),
    ],
)
def test_a_mistake_is_one_line_with_the_key(in_folder, name, message):
    with pytest.raises(ConfigError, match=f"^config.augment.function={name}{message}") as caught:
        load_augmentation(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_run_of_the_command_has_it(folder, in_folder, tmp_path):
    """It trains, is recorded, resumes, and is loaded and evaluated without the function."""
    settings = {"steps": 2, "evaluation.every_steps": 0, "checkpoint.every_steps": 1}
    settings["data.placement"] = "device"  # without TensorFlow it starts sooner
    settings["augment.function"] = "own_views:half"
    command = [sys.executable, "-c", "from byol_jax.cli.__main__ import main; main()"]
    command += ["pretrain", f"--config={ROOT}/tests/faults/toy.py:convnet"]
    command += [f"--workdir={tmp_path / 'run'}", "--noreport"]
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["config"]["augment"]["function"] == "own_views:half"

    state = run_lib.restore(tmp_path / "run").state
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    config = toy.get_config("convnet")
    config.update_from_flattened_dict(settings)
    assert loop.train(config, tmp_path / "run")
    for a, b in zip(
        *map(jax.tree.leaves, (state, run_lib.restore(tmp_path / "run").state)), strict=True
    ):
        np.testing.assert_array_equal(a, b)

    # Importing it would execute whatever a config.json that came from elsewhere names.
    record["config"]["augment"]["function"] = "own_nothing:half"
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    trained = run_lib.restore(tmp_path / "run")
    assert trained.run.config.augment.function == "own_nothing:half"
    assert trained.learner.augment.function is None and int(trained.state.step) == 2


def test_only_training_has_it(in_folder):
    run = run_lib.Run(config_with("own_views:half"), {"num_classes": None}, steps_per_epoch=9)
    assert run.learner(for_training=True).augment.function.__name__ == "half"
    assert run.learner(for_training=True) is run.learner(for_training=True)
    assert run.learner().augment.function is None
