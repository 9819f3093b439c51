"""Imagenette with ResNet-18 at 128 pixels: the authors' setup for fast iteration, 1000 epochs.

    byol-jax pretrain --config=imagenette --workdir=DIR \
        [--config.data.dir=TFDS_DIR] [--config.data.source=folder:PATH]

Ten classes of ImageNet, 9,469 training images at 160 pixels (`tfds build imagenette/160px-v2`). The
authors' README reports about 92.3% for their online probe after roughly 4 hours on a V100, without
tuning. Not run here. Their ResNet-18 pads differently from torchvision's, which is our default, and
projects one more shortcut: --config.encoder.padding=same --config.encoder.first_shortcut=True gives
the same network.
"""

from ml_collections import ConfigDict

from byol_jax.runs import config as config_lib


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = config_lib.default()
    config.epochs = 1000
    config.batch_size = 256
    config.data.source = "tfds:imagenette/160px-v2"
    config.data.test_split = "validation"
    config.data.image_size = 128
    config.encoder.name = "resnet18"
    config.target.tau_base = 0.996
    config.optimizer.base_learning_rate = 2.0
    config.optimizer.weight_decay = 1e-6
    return config
