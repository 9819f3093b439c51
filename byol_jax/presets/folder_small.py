"""Your own folder of images on a CPU: ResNet-10 of a quarter of the width at 64 pixels, 3000 steps.

    byol-jax pretrain --config=folder_small --workdir=DIR \
        --config.data.source=folder:PATH

As folder.py, for a machine without a GPU. Not the paper's setting: a run of thousands of steps
needs AdamW (LARS starts slowly), small batches for many steps, crops of at least a fifth of the
image, and a target that follows soon enough: a constant decay that replaces it 200 times, as often
as in the paper's runs (docs/ablations.md, "Short runs"). For another length set
--config.target.tau_base to 1 - 200 / steps.
"""

from ml_collections import ConfigDict

from byol_jax.runs import config as config_lib


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = config_lib.default()
    config.steps = 3000
    config.batch_size = 128
    config.data.image_size = 64
    config.crop.area_min = 0.2
    config.encoder.name = "resnet10"
    config.encoder.width_multiplier = 0.25
    config.heads.hidden_size = 512
    config.heads.output_size = 128
    config.target.tau_base = 0.93
    config.target.tau_schedule = "constant"
    config.optimizer.name = "adamw"
    config.optimizer.base_learning_rate = 4e-3
    config.optimizer.warmup_epochs = 1.0

    config.log_every_steps = 50
    config.checkpoint.every_steps = 500
    config.evaluation.every_steps = 500
    config.evaluation.train_examples = 5_000
    config.evaluation.test_examples = 2_000
    return config
