"""CIFAR-100 with ResNet-18, for one data-centre GPU: the settings of cifar10.py.

    byol-jax pretrain --config=cifar100 --workdir=DIR \
        [--config.epochs=200] [--config.data.dir=TFDS_DIR]

solo-learn, whose settings these are, publishes 70.5% linear accuracy after 1000 epochs. Not run
here.
"""

from ml_collections import ConfigDict

from byol_jax.presets import cifar10

CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = cifar10.get_config()
    config.data.source = "tfds:cifar100"
    config.views.mean, config.views.std = CIFAR100_MEAN, CIFAR100_STD
    return config
