"""Video for a CPU: a small ResNet on each frame, and 500 steps of 32 videos, for short clips.

byol-jax pretrain --config=video_small --workdir=DIR --config.data.source=folder:PATH
"""

from ml_collections import ConfigDict

from byol_jax.presets import rho_byol


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = rho_byol.get_config()
    config.epochs = 0
    config.steps = 500
    config.batch_size = 32
    config.data.frames = 4
    config.data.seconds = 1.0
    config.data.decode_size = 80
    config.data.image_size = 64
    config.encoder.name = "resnet10"
    config.encoder.stem = "strided"
    config.encoder.width_multiplier = 0.5
    config.heads.hidden_size = 512
    config.heads.output_size = 128
    config.target.tau_base = 0.6
    config.target.tau_schedule = "constant"
    config.optimizer.name = "adamw"
    config.optimizer.base_learning_rate = 4e-3
    config.optimizer.weight_decay = 1e-2
    config.optimizer.warmup_epochs = 0.0

    config.log_every_steps = 20
    config.checkpoint.every_steps = 250
    config.evaluation.every_steps = 250
    return config
