"""ImageNet with ResNet-50: the paper's main setting (section 3.3), 1000 epochs at batch 4096.

    python -m experiments.pretrain --config=experiments/configs/imagenet.py --workdir=DIR \
        [--config.data.dir=TFDS_DIR] [--config.data.source=folder:PATH]

The paper reports 74.3% linear top-1. Not run here: the authors used 512 TPU v3 cores for about 8
hours, and this program trains on the devices of one host so far. `tfds build imagenet2012` prepares
the data; a folder with train/ and validation/, each of one folder per class, works as well.
"""

from ml_collections import ConfigDict

from byol_jax import config as config_lib


def get_config() -> ConfigDict:
    """The settings: those of `byol_jax.config.default`, which are the paper's."""
    config = config_lib.default()
    config.epochs = 1000
    config.dtype = "bfloat16"
    config.data.source = "tfds:imagenet2012"
    config.data.test_split = "validation"
    return config
