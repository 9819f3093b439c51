"""ImageNet with ResNet-50: the paper's main setting (section 3.3) and its shorter ones.

    python -m byol_jax.cli.pretrain --config=byol_jax/presets/imagenet.py:EPOCHS --workdir=DIR \
        [--config.data.dir=TFDS_DIR] [--config.data.source=folder:PATH]

EPOCHS is 40, 100, 300 or 1000 (the default), for which the authors give a base learning rate, a
weight decay and a target decay; for another number these are interpolated, and that is said. Batch
4096; with --config.accum_steps=8 an update needs the activations of an eighth of it at a time (and
batch norm sees an eighth at a time).

An epoch here is 312 full batches of the 1,281,167 images, so that 1000 epochs are 312,000 steps.
The authors' code takes 312,784: the images of all epochs together, divided by 4096.
--config.epochs=0 --config.steps=312784 takes as many.

The paper reports 74.3% linear top-1 after 1000 epochs and 72.5% after 300. Not run here: the
authors used 512 TPU v3 cores for about 8 hours. `tfds build imagenet2012` prepares the data; a
folder with train/ and validation/, each of one folder per class, works as well. The authors'
convolutions pad otherwise than torchvision's, our default: --config.encoder.padding=same pads as
theirs.
"""

import sys

import numpy as np
from ml_collections import ConfigDict

from byol_jax.errors import UserError
from byol_jax.runs import config as config_lib


def get_config(epochs: str = "1000") -> ConfigDict:
    """The settings for a number of epochs."""
    if not epochs.isdecimal() or int(epochs) < 1:
        raise UserError(f"imagenet.py:{epochs} must end in a number of epochs, such as :100.")
    config = config_lib.default()
    config.epochs = int(epochs)
    recipe = recipe_of(config.epochs)
    config.optimizer.base_learning_rate = recipe.base_learning_rate
    config.optimizer.weight_decay = recipe.weight_decay
    config.tau_base = recipe.tau_base
    config.dtype = "bfloat16"
    config.data.source = "tfds:imagenet2012"
    config.data.test_split = "validation"
    return config


def recipe_of(epochs: int) -> config_lib.Recipe:
    """The authors' settings for a length; between theirs, linear in log(epochs)."""
    if epochs in config_lib.IMAGENET_RECIPES:
        return config_lib.IMAGENET_RECIPES[epochs]
    rates, weight_decays, taus = np.array(list(config_lib.IMAGENET_RECIPES.values())).T

    def between(values: np.ndarray) -> float:
        return float(
            f"{np.interp(np.log(epochs), np.log(list(config_lib.IMAGENET_RECIPES)), values):.3g}"
        )

    recipe = config_lib.Recipe(between(rates), between(weight_decays), 1 - between(1 - taus))
    print(
        f"imagenet.py: the authors give no settings for {epochs} epochs, only for "
        f"{', '.join(map(str, config_lib.IMAGENET_RECIPES))}; interpolated (beyond them: the "
        f"nearest): base learning rate {recipe.base_learning_rate:g}, weight decay "
        f"{recipe.weight_decay:g}, tau {recipe.tau_base:g}.",
        file=sys.stderr,
    )
    return recipe
