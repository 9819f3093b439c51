"""BYOL-A (arXiv 2103.06695): your own folder of sounds, with the paper's encoder and views.

    byol-jax pretrain --config=byol_a --workdir=DIR --config.data.source=folder:PATH

The paper pre-trains on AudioSet's 1,963,807 sounds for 100 epochs in batches of 256 with Adam at
3e-4 and tau .99 (section IV-A). Version 2 (arXiv 2204.07402) has
--config.encoder.convolutions=2 --config.encoder.features=3072 --config.encoder.stack=True, the
fader (fader_gain=1 of both --config.views.view1 and view2) and mixup_ratio=0.2, where the first has
0.4. AdamW without weight decay is Adam. Unlike the authors', the learning rate follows a cosine to
0, and the second normalisation is of each batch of views, not of both. Not run on AudioSet.
"""

from ml_collections import ConfigDict

from byol_jax.runs import config as config_lib


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = config_lib.default("audio")
    config.epochs = 100
    config.batch_size = 256
    for view in (config.views.view1, config.views.view2):
        view.mixup_ratio = 0.4
    config.encoder.name = "audio_ntt"
    config.heads.hidden_size = 4096
    config.heads.output_size = 256
    config.target.tau_base = 0.99
    config.target.tau_schedule = "constant"
    config.optimizer.name = "adamw"
    config.optimizer.base_learning_rate = 3e-4
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup_epochs = 0.0
    return config
