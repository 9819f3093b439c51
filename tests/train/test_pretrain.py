"""byol_jax.pretrain: arrays, folders, presets and settings, and calls from other threads."""

import sys
import threading

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

import byol_jax
from byol_jax import data
from byol_jax.data import open as open_lib
from byol_jax.errors import ConfigError
from byol_jax.runs import kinds
from byol_jax.runs import run as run_lib
from byol_jax.train import pretrain as pretrain_lib

# Of a network that compiles fast.
SMALL = {
    "encoder": {"name": "convnet", "channels": (4, 8), "features": 16},
    "heads": {"hidden_size": 8, "output_size": 4},
    "views": {view: {"jitter_prob": 0.0, "blur_prob": 0.0} for view in ("view1", "view2")},
    "dtype": "float32",
}


def test_names_of_sources_of_every_kind_are_no_folders():
    modules = [sys.modules[type(kind).__module__] for kind in kinds.KINDS.values()]
    prefixes = {module.PREFIX for module in modules if hasattr(module, "PREFIX")}
    assert {"image_text:", "npz:"} <= prefixes <= set(open_lib.PREFIXES)


@pytest.fixture(scope="module")
def images():
    """40 images whose channels have the means .2, .4 and .2."""
    noise = np.random.default_rng(0).integers(-51, 52, (40, 16, 20, 3))
    return (np.array([51, 102, 51]) + noise).astype(np.uint8)


def test_an_array_in_three_lines(images, tmp_path):
    encoder = byol_jax.pretrain(images, str(tmp_path / "run"), steps=2, batch_size=8, **SMALL)
    features = encoder.embed(images[:, :, :16])
    assert features.shape == (40, 16) and np.isfinite(features).all()
    run = run_lib.read(tmp_path / "run")
    assert (run.total_steps, run.warmup_steps, run.config.batch_size) == (2, 0, 8)
    # Called again, the run is complete; other images are refused.
    again = byol_jax.pretrain(images, str(tmp_path / "run"), steps=2, batch_size=8, **SMALL)
    np.testing.assert_array_equal(
        again.embed(images[:1, :, :16]), encoder.embed(images[:1, :, :16])
    )
    with pytest.raises(byol_jax.errors.DataError, match="not those that the run"):
        byol_jax.pretrain(images[::-1], str(tmp_path / "run"), steps=2, batch_size=8, **SMALL)


def test_a_folder_in_another_thread(images, tmp_path):
    """Signals can be handled in the main thread only."""
    for i, image in enumerate(images[:16]):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    encoders = []

    def run():
        settings = SMALL | {"data": {"image_size": 16}}
        encoders.append(byol_jax.pretrain(str(tmp_path), tmp_path / ".run", steps=1, **settings))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    (encoder,) = encoders
    assert encoder.config["training"]["step"] == 1
    config = run_lib.read(tmp_path / ".run").config
    assert config.data.source == f"folder:{tmp_path}" and config.batch_size == 16


def test_a_config_is_used_as_it_is(images, tmp_path):
    source = data.from_arrays(images[..., :1], np.arange(40) % 2)
    config = tiny_config()
    encoder = byol_jax.pretrain(
        source, tmp_path, config=config, steps=1, evaluation={"every_steps": 0}
    )
    assert config.steps == 6
    trained = run_lib.read(tmp_path).config
    assert trained.steps == 1 and trained.batch_size == 16
    assert encoder.config["mean"] == [0.5]


def test_a_preset_is_fitted_to_an_array(images):
    config = pretrain_lib._fitted("cifar10", data.from_arrays(images), {})
    assert (config.encoder.name, config.encoder.stem) == ("resnet18", "cifar")
    assert (config.data.image_size, config.data.channels, config.data.test_split) == (16, 3, "")
    assert (config.epochs, config.batch_size) == (1000, 32)
    np.testing.assert_allclose(config.views.mean, (0.2, 0.4, 0.2), atol=0.01)
    np.testing.assert_allclose(config.views.std, 3 * (0.2 / 3**0.5,), atol=0.01)
    gray = np.zeros((300, 100, 80, 1), np.uint8)
    config = pretrain_lib._fitted("folder", data.from_arrays(gray), {"steps": 100})
    assert config.encoder.name == "resnet50"
    assert (config.data.image_size, config.data.channels) == (64, 1)
    assert (config.epochs, config.steps, config.batch_size) == (0, 100, 256)
    assert config.optimizer.warmup_epochs == 10.0
    assert config.views.std == (0.001,)


@pytest.mark.parametrize(
    "settings",
    [{"config": "nothing"}, {"config": "cifar10:9"}, {"bach_size": 4}, {"steps": "many"}],
)
def test_what_is_not_a_setting_is_refused(images, tmp_path, settings):
    with pytest.raises(ConfigError, match=r"nothing|cifar10|bach_size|many"):
        byol_jax.pretrain(images, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()
