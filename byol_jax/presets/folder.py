"""Your own folder of images on one GPU: ResNet-50 at 224 pixels, batch 256, 100 epochs.

    python -m byol_jax.cli.pretrain --config=byol_jax/presets/folder.py --workdir=DIR \
        --config.data.source=folder:PATH

JPEG, PNG, GIF, BMP and WebP files, in any nesting; a folder for each class gives labels.
Labels are never needed; with labels and a folder PATH/test beside PATH/train, add
--config.data.test_split=test to see kNN accuracy while training.

Rate and decay are the paper's for 100 epochs (appendix F); its batch was 4096, and 256 is our
choice for one device. How well it does on your images was not measured by anybody; with fewer than
some 50,000 images take more epochs, or a smaller encoder (--config.encoder.name=resnet18).
"""

from ml_collections import ConfigDict

from byol_jax.runs import config as config_lib


def get_config() -> ConfigDict:
    """The settings."""
    config = config_lib.default()
    config.epochs = 100
    config.batch_size = 256
    config.dtype = "bfloat16"
    config.tau_base = 0.99
    config.optimizer.base_learning_rate = 0.45
    config.optimizer.weight_decay = 1e-6
    return config
