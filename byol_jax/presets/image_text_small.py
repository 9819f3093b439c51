"""Your own images with texts on a CPU: a small ResNet at 32 pixels, one block for texts.

    byol-jax pretrain --config=image_text_small --workdir=DIR --config.data.source=image_text:PATH

Not a published recipe: see image_text.py. As in folder_small.py, a short run needs a higher
learning rate, and a target that is replaced 200 times (docs/ablations.md, "Short runs"): for
another length set --config.target.tau_base to 1 - 200 / steps, but to 0.5 at least.
"""

from ml_collections import ConfigDict

from byol_jax.presets import image_text


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = image_text.get_config()
    config.epochs = 0
    config.steps = 300
    config.batch_size = 100
    config.data.decode_size = 40
    config.data.image_size = 32
    config.data.length = 48
    config.data.vocabulary_size = 4000
    config.encoder.name = "resnet8"
    config.encoder.stem = "strided"
    config.encoder.width_multiplier = 0.25
    config.text_encoder.width = 64
    config.text_encoder.depth = 1
    config.embedding_size = 256
    config.heads.hidden_size = 256
    config.heads.output_size = 64
    config.target.tau_base = 0.5
    config.target.tau_schedule = "constant"
    config.optimizer.base_learning_rate = 4e-3
    config.optimizer.warmup_epochs = 0.0

    config.log_every_steps = 50
    config.checkpoint.every_steps = 300
    config.evaluation.every_steps = 300
    return config
