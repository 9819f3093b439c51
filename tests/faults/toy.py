"""The run that the faults disturb: so small that starting it takes longer than training it.

LARS, so that there is momentum to lose; labels, so that there is a probe; kNN now and then.
"""

from ml_collections import ConfigDict

from byol_jax.augment import image as image_augment
from byol_jax.runs import config as config_lib
from byol_jax.runs.kinds import image_settings


def get_config(encoder: str = "resnet8") -> ConfigDict:
    """The settings, with a narrow ResNet-8, or with 'convnet', which compiles and trains faster."""
    config = config_lib.default()
    config.steps = 400
    config.batch_size = 16
    config.data.source = "embedded"
    config.data.test_split = "test"
    config.data.placement = "host"
    config.data.image_size = 8
    config.crop.fit = "retry"  # the trajectory that the bounds of the tests were measured on
    config.data.channels = 1
    # Without jitter and blur, which take seconds to compile.
    plain = image_augment.View(jitter_prob=0.0, blur_prob=0.0)
    image_settings.set_policy(config, image_augment.Policy(plain, plain, mean=(0.5,), std=(0.25,)))
    config.encoder.name = encoder
    if encoder == "convnet":
        config.encoder.update({"channels": (4, 8), "features": 16})
    else:
        config.encoder.update({"stem": "strided", "width_multiplier": 0.25})
    config.heads.hidden_size = 8
    config.heads.output_size = 4
    config.optimizer.name = "lars"
    config.optimizer.warmup_epochs = 0.0
    config.target.tau_base = 0.95
    config.log_every_steps = 3
    config.checkpoint.every_steps = 10
    config.evaluation.every_steps = 50
    config.evaluation.train_examples = 60
    config.evaluation.test_examples = 30
    return config
