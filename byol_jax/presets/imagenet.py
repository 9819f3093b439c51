"""ImageNet with ResNet-50: the paper's main setting (section 3.3) and its shorter ones.

    byol-jax pretrain --config=imagenet:EPOCHS --workdir=DIR \
        [--config.data.dir=TFDS_DIR] [--config.data.source=folder:PATH]

EPOCHS is 40, 100, 300 or 1000 (the default), for which the authors give a base learning rate, a
weight decay and a target decay; for other numbers these are interpolated, with a message. Batch
4096; --config.accum_steps=8 splits it into micro-batches of an eighth, which need an eighth of the
memory for activations (batch norm then sees an eighth, too).

An epoch is 312 full batches of the 1,281,167 images: 1000 epochs are 312,000 steps. The authors'
code divides the images of all epochs by 4096: 312,784, as --config.epochs=0 --config.steps=312784.

The paper reports 74.3% linear top-1 after 1000 epochs and 72.5% after 300. Not run here: the
authors used 512 TPU v3 cores for about 8 hours. `tfds build imagenet2012` prepares the data; a
folder with train/ and validation/, each with one folder per class, works as well. The authors'
convolutions pad differently from torchvision's, which are our default:
--config.encoder.padding=same pads like theirs.
"""

import sys

import numpy as np
from ml_collections import ConfigDict

from byol_jax.errors import ConfigError
from byol_jax.runs import config as config_lib


def get_config(epochs: str = "1000") -> ConfigDict:
    """Returns the settings for a number of epochs."""
    if not epochs.isdecimal() or int(epochs) < 1:
        raise ConfigError(
            f"imagenet:{epochs} must end in a number of epochs, such as imagenet:100."
        )
    config = config_lib.default()
    config.epochs = int(epochs)
    recipe = interpolated_recipe(config.epochs)
    config.optimizer.base_learning_rate = recipe.base_learning_rate
    config.optimizer.weight_decay = recipe.weight_decay
    config.target.tau_base = recipe.tau_base
    config.dtype = "bfloat16"
    config.data.source = "tfds:imagenet2012"
    config.data.test_split = "validation"
    return config


def interpolated_recipe(epochs: int) -> config_lib.Recipe:
    """The authors' settings for a number of epochs; between theirs, linear in log(epochs)."""
    if epochs in config_lib.IMAGENET_RECIPES:
        return config_lib.IMAGENET_RECIPES[epochs]
    rates, weight_decays, taus = np.array(list(config_lib.IMAGENET_RECIPES.values())).T

    def between(values: np.ndarray) -> float:
        return float(
            f"{np.interp(np.log(epochs), np.log(list(config_lib.IMAGENET_RECIPES)), values):.3g}"
        )

    recipe = config_lib.Recipe(between(rates), between(weight_decays), 1 - between(1 - taus))
    print(
        f"imagenet: the authors give no settings for {epochs} epochs, only for "
        f"{', '.join(map(str, config_lib.IMAGENET_RECIPES))}. Interpolated (beyond them, the "
        f"nearest): base learning rate {recipe.base_learning_rate:g}, weight decay "
        f"{recipe.weight_decay:g}, tau {recipe.tau_base:g}.",
        file=sys.stderr,
    )
    return recipe
