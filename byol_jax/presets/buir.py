"""Users and items, for recommendations: BUIR-id (Lee et al. 2021, arXiv 2105.06323).

    byol-jax pretrain --config=buir --workdir=DIR --config.data.source=csv:FILE \
        --config.data.columns=USER,ITEM,TIME
    byol-jax recommend --checkpoint=DIR

A user and an item are the two views of an interaction, and each has an embedding. As in the paper:
no projector, a linear predictor, tau .995, batch 1024, Adam. Ours: 64 features, the learning rate
with its cosine, and the length.
"""

from ml_collections import ConfigDict

from byol_jax.runs import config as config_lib


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = config_lib.default("interactions")
    config.epochs = 200
    config.batch_size = 1024
    config.encoder.name = "lightgcn"
    config.encoder.features = 64
    config.heads.projector_layers = 0
    config.heads.predictor_layers = 1
    config.target.tau_base = 0.995
    config.target.tau_schedule = "constant"
    config.optimizer.name = "adamw"
    config.optimizer.base_learning_rate = 2.5e-4  # of the batch: 1e-3
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup_epochs = 0.0

    config.log_every_steps = 500
    config.checkpoint.every_steps = 5000
    config.evaluation.every_steps = 0
    return config
