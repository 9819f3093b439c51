"""Your own table: rows of numbers, views by masking single ones, as in SCARF (arXiv 2106.15147).

    byol-jax pretrain --config=tables --workdir=DIR --config.data.source=npz:PATH

`PATH/train.npz` as numpy.savez(FILE, rows=ROWS, labels=LABELS) writes it, with ROWS (examples,
numbers). As signals.py otherwise.
"""

from ml_collections import ConfigDict

from byol_jax.presets import signals
from byol_jax.runs import config as config_lib


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = signals.get_config()
    config_lib.use_encoder(config, "dense")
    for view in (config.views.view1, config.views.view2):
        view.window_min = 1.0
        view.scale_std = 0.0
        view.mask_share = 0.0
        view.drop_share = 0.4
    return config
