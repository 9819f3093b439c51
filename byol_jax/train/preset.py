"""Presets by name, changed, fitted to data, and written to files."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from byol_jax import models
from byol_jax.errors import ConfigError
from byol_jax.runs import config as config_lib
from byol_jax.runs import paths, tree


def get(name: str) -> ConfigDict:
    """The config of a preset, such as "folder" or "imagenet:300"; raises ConfigError if none."""
    name, *argument = name.split(":", 1)
    try:
        # Late and by name, because presets come after this room in the order of imports.
        module = importlib.import_module(f"byol_jax.presets.{name}")
        return module.get_config(*argument)
    except (ModuleNotFoundError, TypeError) as error:
        raise ConfigError(f"config={name!r} is not the name of a preset ({error}).") from error


def changed(config: ConfigDict, settings: dict[str, Any]) -> ConfigDict:
    """A copy with other values at dotted keys; raises ConfigError."""
    config = config.copy_and_resolve_references()
    config_lib.use_own_encoders(config, settings)
    before = config.copy_and_resolve_references()
    try:
        config.update_from_flattened_dict(settings)
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise ConfigError(f"the settings {settings} cannot be used: {reason[:300]}") from error
    config_lib.use_other_encoder(config, before)
    return config


def fit_batch(config: ConfigDict, num_examples: int, settings: dict[str, Any]) -> None:
    """Makes a batch at most the data, and the warm-up at most a tenth of the run."""
    if "batch_size" not in settings:
        config.batch_size = largest_batch(config.batch_size, num_examples)
    if "optimizer.warmup_epochs" not in settings:
        steps_per_epoch = max(1, num_examples // config.batch_size)
        epochs = config.epochs or config.steps / steps_per_epoch
        config.optimizer.warmup_epochs = min(config.optimizer.warmup_epochs, epochs / 10)


def largest_batch(batch_size: int, num_examples: int) -> int:
    """The batch size, or the largest power of two of the examples if that is smaller."""
    return min(batch_size, 2 ** int(np.log2(num_examples)))


def write(config: ConfigDict, path: Path) -> None:
    """Writes a config as a preset, a Python file to edit, with the settings that are not default.

    Raises:
      ConfigError: the file exists, or its name does not end in .py.
      CheckpointError: it cannot be written.
    """
    if path.suffix != ".py" or path.exists():
        raise ConfigError(f"{path} exists or does not end in .py: name a new file that does.")
    kind = config.data.kind
    lines = [
        f'"""Settings to edit, for byol-jax pretrain --config={path.name}."""',
        "",
        "from byol_jax.runs import config as config_lib",
        "",
        "",
        "def get_config():",
        f"    config = config_lib.default({kind!r})",
    ]
    usual = config_lib.default(kind)
    for section in config_lib.encoder_sections(config):
        name = tree.get(config, section).name
        if models.is_own(name):
            lines.append(f"    config_lib.use_encoder(config, {name!r}, {section!r})")
            config_lib.open_encoder(usual, section, name)
    before = tree.flat(usual)
    for key, value in tree.flat(config).items():
        if before.get(key) != value:
            lines.append(f"    config.{key} = {value!r}")
    lines += ["    return config", ""]
    with paths.translate_write_errors(path.parent):
        paths.write_atomically(path, "\n".join(lines).encode())
