"""CIFAR-10 with ViT-Ti and patches of 4 pixels, for one data-centre GPU.

    byol-jax pretrain --config=cifar10_vit --workdir=DIR \
        [--config.epochs=200] [--config.data.dir=TFDS_DIR]

Data, views, batch and length of cifar10.py; optimizer and frozen patch embedding after MoCo v3's
recipe for ViTs (see imagenet_vit_s16.py), with our choice of a higher learning rate for a smaller
batch. No accuracy is published for these settings. Not run here.
"""

from ml_collections import ConfigDict

from byol_jax.presets import cifar10


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = cifar10.get_config()
    config.encoder.stem = None
    config.encoder.name = "vit_ti"
    config.encoder.patch_size = 4
    config.encoder.freeze_patch_embedding = True
    config.optimizer.name = "adamw"
    config.optimizer.base_learning_rate = 5e-4
    config.optimizer.weight_decay = 0.1
    config.optimizer.warmup_epochs = 40.0
    config.optimizer.clip = False
    return config
