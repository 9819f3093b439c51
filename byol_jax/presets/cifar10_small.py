"""CIFAR-10 on two CPU cores: ResNet-8 of width 24 with a strided stem, half an hour.

    byol-jax pretrain --config=cifar10_small --workdir=DIR \
        [--config.data.dir=TFDS_DIR]

Measured once, on images that were re-encoded as JPEG (docs/results/cifar10_small): 53.9% test
accuracy of a logistic regression on the features, against 36.1% for the same encoder before
training and 41.4% for raw pixels; 30 minutes without oneDNN. Twice as many epochs: 60.8%, in 17
minutes with it.

Not the paper's setting but one that a small network learns from in half an hour: AdamW instead of
LARS, small batches for many steps, crops of at least a fifth of the image.
"""

from ml_collections import ConfigDict

from byol_jax.augment import image as image_augment
from byol_jax.runs import config as config_lib
from byol_jax.runs.kinds import image_settings


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = config_lib.default()
    config.epochs = 13
    config.batch_size = 128
    config.data.source = "tfds:cifar10"
    config.data.test_split = "test"
    config.data.image_size = 32
    config.crop.area_min = 0.2
    config.crop.fit = "retry"
    config.crop.test_fraction = 1.0
    image_settings.set_policy(config, image_augment.CIFAR10)

    config.encoder.name = "resnet8"
    config.encoder.stem = "strided"
    config.encoder.width_multiplier = 1.5
    config.heads.hidden_size = 512
    config.heads.output_size = 128
    config.target.tau_base = 0.98
    config.optimizer.name = "adamw"
    config.optimizer.base_learning_rate = 4e-3
    config.optimizer.warmup_epochs = 0.5

    config.log_every_steps = 100
    config.checkpoint.every_steps = 500
    config.evaluation.every_steps = 500
    config.evaluation.train_examples = 5_000
    config.evaluation.test_examples = 2_000
    return config
