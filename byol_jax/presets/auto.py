"""Settings that fit your images and this machine: the default of `byol-jax pretrain FOLDER`.

    byol-jax pretrain FOLDER [--workdir=DIR] [--epochs=N] [--image_size=N] [--encoder=NAME]

What is chosen, and by which rules: byol_jax/train/plan.py. They rest on docs/small_data.md.
"""

from ml_collections import ConfigDict

from byol_jax.runs import config as config_lib


def get_config() -> ConfigDict:
    """Returns the paper's settings, which the plan of a run replaces."""
    return config_lib.default()
