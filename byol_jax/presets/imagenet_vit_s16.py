"""ImageNet with ViT-S/16: MoCo v3's recipe for ViTs with BYOL's loss, 300 epochs.

    byol-jax pretrain --config=imagenet_vit_s16 --workdir=DIR \
        [--config.data.dir=TFDS_DIR] [--config.data.source=folder:PATH]

From the command for ViT-Small in CONFIG.md of MoCo v3's code (arXiv 2104.02057): AdamW, base
learning rate 1.5e-4 for a batch of 256, weight decay .1, batch 4096, 40 epochs of warm-up, tau .99
rising to 1, twelve heads of attention, fixed positions, a random patch embedding that stays frozen,
and a projector of three layers. As there, views are BYOL's. Unlike there, biases and norms are not
decayed, and neither head ends in a batch norm.

For BYOL with ViT-S/16 after 300 epochs, MoCo v3's paper reports 71.0% linear top-1 and DINO's
(arXiv 2104.14294) 71.4%, with settings for BYOL that may differ from these; MoCo v3 itself has
73.2% with the command above. Not run here. --config.accum_steps=8 needs an eighth of the memory for
activations (batch norm of the heads then sees an eighth of the batch), and
--config.encoder.remat=True keeps fewer of them.
"""

from ml_collections import ConfigDict

from byol_jax.runs import config as config_lib


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = config_lib.default()
    config.epochs = 300
    config.batch_size = 4096
    config.dtype = "bfloat16"
    config.data.source = "tfds:imagenet2012"
    config.data.test_split = "validation"

    config.encoder.name = "vit_s"
    config.encoder.heads = 12
    config.encoder.freeze_patch_embedding = True
    config.heads.projector_layers = 3
    config.target.tau_base = 0.99
    config.optimizer.name = "adamw"
    config.optimizer.base_learning_rate = 1.5e-4
    config.optimizer.weight_decay = 0.1
    config.optimizer.warmup_epochs = 40.0
    return config
