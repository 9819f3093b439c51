"""BUIR-NB: as buir.py, and embeddings are averaged over neighbours, which a training step draws.

    byol-jax pretrain --config=buir_nb --workdir=DIR --config.data.source=csv:FILE \
        --config.data.columns=USER,ITEM,TIME

The average is LightGCN's, with two layers (arXiv 2002.02126). The authors draw edges of the graph,
the same for the whole batch; here each example has neighbours of its own.
"""

from ml_collections import ConfigDict

from byol_jax.presets import buir


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = buir.get_config()
    config.data.walks = 8
    config.data.walk_length = 2
    return config
