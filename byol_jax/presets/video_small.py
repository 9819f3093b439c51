"""Video for a CPU: a small ResNet on each of 4 frames, and 300 steps of 32 videos at 48 pixels.

    byol-jax pretrain --config=video_small --workdir=DIR --config.data.source=folder:PATH

Not the paper's setting: see rho_byol.py. As in folder_small.py, a short run needs a higher learning
rate, and a target that is replaced often (docs/ablations.md, "Short runs"): for another length set
--config.target.tau_base to 1 - 200 / steps, but to 0.5 at least. Let --config.data.seconds cover
what is to be told apart; where a camera looks down, add
--config.views.view1.quarter_turn_prob=0.75 and the same for view2.
"""

from ml_collections import ConfigDict

from byol_jax.presets import rho_byol


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = rho_byol.get_config()
    config.epochs = 0
    config.steps = 300
    config.batch_size = 32
    config.data.frames = 4
    config.data.seconds = 2.0
    config.data.decode_size = 64
    config.data.image_size = 48
    config.crop.area_min = 0.4
    config.crop.area_max = 1.0
    config.encoder.name = "resnet8"
    config.encoder.stem = "strided"
    config.encoder.width_multiplier = 1.5
    config.heads.hidden_size = 512
    config.heads.output_size = 128
    config.target.tau_base = 0.5
    config.target.tau_schedule = "constant"
    config.optimizer.name = "adamw"
    config.optimizer.base_learning_rate = 4e-3
    config.optimizer.weight_decay = 1e-2
    config.optimizer.warmup_epochs = 0.0

    config.log_every_steps = 20
    config.checkpoint.every_steps = 150
    config.evaluation.every_steps = 150
    return config
