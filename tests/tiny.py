"""A config small enough to train within a test."""

from byol_jax.augment import image as image_augment
from byol_jax.runs import config as config_lib
from byol_jax.runs.kinds import image_settings


def tiny_config():
    """Six steps of sixteen embedded images at 16 pixels on two convolutions."""
    config = config_lib.default()
    config.steps = 6
    config.batch_size = 16
    config.data.source = "embedded"
    config.data.test_split = "test"
    config.data.image_size = 16
    config.data.channels = 1
    plain = image_augment.View(jitter_prob=0.0, blur_prob=0.0)  # jitter takes seconds to compile
    image_settings.set_policy(config, image_augment.Policy(plain, plain, mean=(0.5,), std=(0.25,)))
    config.encoder.name = "convnet"
    config.encoder.channels = (4, 8)
    config.encoder.features = 16
    config.heads.hidden_size = 8
    config.heads.output_size = 4
    config.optimizer.name = "adamw"
    config.optimizer.base_learning_rate = 0.01
    config.optimizer.warmup_epochs = 0.0
    config.log_every_steps = 2
    config.checkpoint.every_steps = 3
    config.evaluation.every_steps = 3
    config.evaluation.train_examples = 60
    config.evaluation.test_examples = 30
    return config


def tiny_resnet_config():
    """The same on a narrow ResNet-8, which takes longer to compile."""
    config = tiny_config()
    config.encoder.update({"name": "resnet8", "stem": "strided", "width_multiplier": 0.25})
    config.encoder.update({"channels": None, "features": None})
    return config
