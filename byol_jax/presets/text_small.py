"""Your own sentences on a CPU: one block of width 128, and 400 steps of 128 texts.

    byol-jax pretrain --config=text_small --workdir=DIR --config.data.source=text:PATH

Not a published recipe: see text.py. As in folder_small.py, a short run needs a higher learning
rate, and a target that is replaced 200 times (docs/ablations.md, "Short runs"): for another length
set --config.target.tau_base to 1 - 200 / steps.
"""

from ml_collections import ConfigDict

from byol_jax.presets import text


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = text.get_config()
    config.epochs = 0
    config.steps = 400
    config.batch_size = 128
    config.data.length = 32
    config.data.vocabulary_size = 4000
    config.encoder.width = 128
    config.encoder.depth = 1
    config.heads.hidden_size = 256
    config.heads.output_size = 64
    config.target.tau_base = 0.5
    config.target.tau_schedule = "constant"
    config.optimizer.base_learning_rate = 2e-3
    config.optimizer.warmup_epochs = 0.0

    config.log_every_steps = 50
    config.checkpoint.every_steps = 200
    config.evaluation.every_steps = 200
    return config
