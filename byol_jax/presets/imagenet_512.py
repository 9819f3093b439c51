"""ImageNet with ResNet-50 at batch 512: the authors' setting for small batches, 1000 epochs.

    byol-jax pretrain --config=imagenet_512 --workdir=DIR \
        [--config.data.dir=TFDS_DIR] [--config.data.source=folder:PATH]

Learning rate and target decay are the authors' for this batch size (appendix F); the rest is as
in imagenet.py. The paper reports that BYOL keeps its accuracy down to batches of 256 (figure 3a).
Not run here.
"""

from ml_collections import ConfigDict

from byol_jax.presets import imagenet


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = imagenet.get_config()
    config.batch_size = 512
    config.optimizer.base_learning_rate = 0.4
    config.optimizer.weight_decay = 1.5e-6
    config.target.tau_base = 0.9995
    return config
