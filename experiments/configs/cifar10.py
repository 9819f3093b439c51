"""CIFAR-10 with ResNet-18, for one data-centre GPU.

    python -m experiments.pretrain --config=experiments/configs/cifar10.py --workdir=DIR \
        [--config.epochs=200] [--config.data.dir=TFDS_DIR]

The CIFAR stem (3x3, stride 1, no max-pool), no blur, batch 512 and smaller heads, as is usual for
this data set. Peers publish 92.6% linear accuracy for BYOL after 1000 epochs of such a recipe
(solo-learn's table). This preset has not been run to its end here; see README for what was.
"""

from ml_collections import ConfigDict

from byol_jax import config as config_lib
from byol_jax import views


def get_config() -> ConfigDict:
    """The settings."""
    config = config_lib.default()
    config.epochs = 1000
    config.batch_size = 512
    config.dtype = "bfloat16"
    config.data.source = "tfds:cifar10"
    config.data.test_split = "test"
    config.data.image_size = 32
    config.crop.test_fraction = 1.0
    config_lib.set_policy(config, views.CIFAR10)

    config.encoder.name = "resnet18"
    config.encoder.stem = "cifar"
    config.heads.hidden_size = 4096
    config.heads.output_size = 256
    config.tau_base = 0.99
    config.optimizer.base_learning_rate = 1.0
    config.optimizer.weight_decay = 1e-5

    config.checkpoint.every_steps = 2000
    config.knn.every_steps = 1000
    return config
