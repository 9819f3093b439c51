"""CIFAR-10 with ResNet-18, for one data-centre GPU.

    byol-jax pretrain --config=cifar10 --workdir=DIR \
        [--config.epochs=200] [--config.data.dir=TFDS_DIR]

The settings that solo-learn publishes for small images: the CIFAR stem (3x3, stride 1, no
max-pool), no blur, batch 256, LARS that clips, tau .99. Its table has 92.6% linear accuracy after
1000 epochs. Not trained to the end here.
"""

from ml_collections import ConfigDict

from byol_jax.augment import image as image_augment
from byol_jax.runs import config as config_lib
from byol_jax.runs.kinds import image_settings


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = config_lib.default()
    config.epochs = 1000
    config.batch_size = 256
    config.dtype = "bfloat16"
    config.data.source = "tfds:cifar10"
    config.data.test_split = "test"
    config.data.image_size = 32
    config.crop.fit = "retry"
    config.crop.test_fraction = 1.0
    image_settings.set_policy(config, image_augment.CIFAR10)

    config.encoder.name = "resnet18"
    config.encoder.stem = "cifar"
    config.target.tau_base = 0.99
    config.optimizer.base_learning_rate = 1.0
    config.optimizer.weight_decay = 1e-5
    config.optimizer.trust_coefficient = 0.02
    config.optimizer.clip = True

    config.checkpoint.every_steps = 2000
    config.evaluation.every_steps = 2000
    return config
