"""Your own folder of images on one GPU: ResNet-50 at 224 pixels, batch 256, 100 epochs.

    byol-jax pretrain --config=folder --workdir=DIR \
        --config.data.source=folder:PATH

JPEG, PNG, GIF, BMP and WebP files, nested in any way. One sub-folder per class gives labels, which
are optional; with labelled folders PATH/train and PATH/test, --config.data.test_split=test adds
kNN accuracy during training.

Learning rate and decay are the paper's for 100 epochs (appendix F). Its batch was 4096; 256 is our
choice for one device. With fewer than about 50,000 images use more epochs or a smaller encoder
(--config.encoder.name=resnet18); the accuracy on your images is not known in advance.
"""

from ml_collections import ConfigDict

from byol_jax.runs import config as config_lib


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = config_lib.default()
    config.epochs = 100
    config.batch_size = 256
    config.dtype = "bfloat16"
    config.target.tau_base = 0.99
    config.optimizer.base_learning_rate = 0.45
    config.optimizer.weight_decay = 1e-6
    return config
