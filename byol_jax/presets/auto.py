"""Settings that fit your images and this machine; the default where --config is left out.

    byol-jax pretrain --config=auto FOLDER [--workdir=DIR] [--epochs=N] [--image_size=N] \
        [--encoder=NAME]

By which rules they are chosen: byol_jax/train/plan.py.
"""

from ml_collections import ConfigDict

from byol_jax.runs import config as config_lib


def get_config() -> ConfigDict:
    """Returns the paper's settings, which a plan replaces where no flag changes them."""
    config = config_lib.default()
    config.epochs = 100
    return config
