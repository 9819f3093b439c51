"""Training from Python: `byol_jax.pretrain(images, "runs/mine")`."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from byol_jax import data
from byol_jax.data import open as open_lib
from byol_jax.data.look import look
from byol_jax.data.signals import SignalSource
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import inputs, paths, tree
from byol_jax.train import loop, plan, preset


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
        images get settings that fit them and this machine (train/plan.py), which are printed; and
        a dictionary gets "signals".
      **settings: changes to the config, such as steps=100 or optimizer={"name": "adamw"}; see
        runs/config.py. Of a preset, a batch is at most the data and the warm-up a tenth of the run.

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
        spec, source = open_lib.spec(str(source)), None
    settings = tree.flat(settings) | ({"data.source": spec} if spec else {})
    if config is None:
        config = plan.planned(source, workdir, settings)
    elif isinstance(config, ConfigDict):
        config = preset.changed(config, settings)
    else:
        config = _fitted(config, source, settings)
    loop.train(config, workdir, source, test_source)
    return encoder_lib.load(workdir)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def _fitted(name: str, source: data.Source | None, settings: dict[str, Any]) -> ConfigDict:
    """A preset with `settings`, and where they leave it open, with values that fit the data."""
    defaults = {"data.test_split": ""}  # the preset's is of its own data
    if "steps" in settings or "epochs" in settings:
        defaults |= {"epochs": 0, "steps": 0}
    config = preset.changed(preset.get(name), defaults)
    if isinstance(source, data.ArraySource):
        plan.fit_images(config, look(source), settings)
    config = preset.changed(config, settings)
    if source is None:
        source = inputs.open_split(config, config.data.train_split)
    preset.fit_batch(config, source.num_examples, settings)
    return config
