"""Training from Python: `byol_jax.pretrain(images, "runs/mine")`."""

import hashlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from byol_jax import data
from byol_jax.data.signals import SignalSource
from byol_jax.errors import ConfigError
from byol_jax.runs import config as config_lib
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import inputs, paths, tree
from byol_jax.train import loop

SPECS = ("tfds:", "npz:", "folder:", "pairs:", "csv:", "text:", "image_text:", "embedded")
SMALL = 64  # pixels up to which arrays get the settings of CIFAR-10,
SMALL_EPOCHS = 200  # with this length


def pretrain(
    source: str | Path | np.ndarray | dict[str, np.ndarray] | data.Source,
    workdir: str | paths.AnyPath,
    *,
    test_source: data.Source | None = None,
    config: str | ConfigDict | None = None,
    **settings: Any,
) -> encoder_lib.Encoder:
    """Trains an encoder with BYOL. Called again, it resumes from the last checkpoint.

        encoder = byol_jax.pretrain("photos", "runs/photos", encoder={"name": "resnet18"})
        encoder = byol_jax.pretrain(images, "runs/trial", steps=100, batch_size=64)

    Args:
      source: a folder of images, or a name such as "tfds:NAME" or "npz:PATH"; a uint8 array (n,
        height, width, channels); a dictionary of one or two arrays of signals (docs/modalities.md);
        or a source, such as `data.from_arrays(images, labels)`.
      workdir: the folder of the run.
      test_source: held-out images with labels, for kNN and the probe during training, if `source`
        is a source with labels too.
      config: a preset, such as "folder" or "imagenet:300", or a complete config. By default
        "folder", or for arrays of up to 64 pixels "cifar10" with 200 epochs; "signals" for a
        dictionary.
      **settings: changes to the config, such as steps=100 or optimizer={"name": "adamw"}; see
        runs/config.py. A preset is adapted further: size, channels, mean and standard deviation
        are those of the array, a batch is at most the data, and the warm-up a tenth of the run.

    Returns:
      The trained encoder, like `byol_jax.load(workdir)`; after a stop by a signal, the encoder of
      the checkpoint that was saved then.

    Raises:
      UserError: as `loop.train`.
    """
    if isinstance(source, np.ndarray):
        source = data.from_arrays(source, fingerprint=_digest(source))
    if isinstance(source, dict):
        arrays = {name: np.asarray(array) for name, array in source.items()}
        digest = " ".join(f"{name}:{_digest(array)}" for name, array in arrays.items())
        source, config = SignalSource("arrays", arrays, fingerprint=digest), config or "signals"
    spec = ""
    if not isinstance(source, data.Source):
        spec, source = str(source), None
        spec = spec if spec.startswith(SPECS) else f"folder:{spec}"
    settings = tree.flat(settings) | ({"data.source": spec} if spec else {})
    if isinstance(config, ConfigDict):
        config = _changed(config, settings)
    else:
        config = _adapted_preset(config, source, settings)
    loop.train(config, workdir, source, test_source)
    return encoder_lib.load(workdir)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def _changed(config: ConfigDict, settings: dict[str, Any]) -> ConfigDict:
    """A copy with other values at dotted keys."""
    config = config.copy_and_resolve_references()
    config_lib.use_own_encoders(config, settings)
    preset = config.copy_and_resolve_references()
    try:
        config.update_from_flattened_dict(settings)
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise ConfigError(f"the settings {settings} cannot be used: {reason[:300]}") from error
    config_lib.use_other_encoder(config, preset)
    return config


def _adapted_preset(
    name: str | None, source: data.Source | None, settings: dict[str, Any]
) -> ConfigDict:
    """A preset with `settings`, and where they leave it open, with values that fit the data."""
    images = source.images if isinstance(source, data.ArraySource) else None
    defaults = {"data.test_split": ""}  # the preset's is of its own data
    if name is None:
        is_small = images is not None and max(images.shape[1:3]) <= SMALL
        name = "cifar10" if is_small else "folder"
        defaults |= {"epochs": SMALL_EPOCHS} if is_small else {}
    if "steps" in settings or "epochs" in settings:
        defaults |= {"epochs": 0, "steps": 0}
    config = _preset(name)
    if images is not None:
        size = min(images.shape[1:3])
        sample = images[:: max(1, images.size // 2**24)] / np.float32(255)
        defaults |= {
            "data.channels": images.shape[-1],
            "data.image_size": size if size <= SMALL else min(size, config.data.image_size),
            "views.mean": tuple(round(float(x), 3) for x in sample.mean((0, 1, 2))),
            "views.std": tuple(max(0.001, round(float(x), 3)) for x in sample.std((0, 1, 2))),
        }
    config = _changed(config, defaults | settings)
    if source is None:
        source = inputs.open_split(config, config.data.train_split)
    if "batch_size" not in settings:
        largest = 2 ** int(np.log2(source.num_examples))
        config.batch_size = min(config.batch_size, largest)
    if "optimizer.warmup_epochs" not in settings:
        steps_per_epoch = max(1, source.num_examples // config.batch_size)
        epochs = config.epochs or config.steps / steps_per_epoch
        config.optimizer.warmup_epochs = min(config.optimizer.warmup_epochs, epochs / 10)
    return config


def _preset(name: str) -> ConfigDict:
    name, *argument = name.split(":", 1)
    try:
        # Late and by name, because presets come after this room in the order of imports.
        module = importlib.import_module(f"byol_jax.presets.{name}")
        return module.get_config(*argument)
    except (ModuleNotFoundError, TypeError) as error:
        raise ConfigError(f"config={name!r} is not the name of a preset ({error}).") from error
