"""Your own sentences on a CPU.

byol-jax pretrain --config=text_small --workdir=DIR --config.data.source=text:PATH
"""

from ml_collections import ConfigDict

from byol_jax.presets import text


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = text.get_config()
    config.epochs = 0
    config.steps = 1000
    config.batch_size = 128
    config.data.length = 40
    config.data.vocabulary_size = 4000
    config.encoder.width = 128
    config.encoder.depth = 2
    config.heads.hidden_size = 256
    config.heads.output_size = 64
    config.target.tau_base = 0.8
    config.target.tau_schedule = "constant"
    config.optimizer.base_learning_rate = 2e-3
    config.optimizer.warmup_epochs = 0.0

    config.log_every_steps = 50
    config.checkpoint.every_steps = 500
    config.evaluation.every_steps = 250
    return config
