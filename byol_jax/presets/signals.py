"""Your own signals, such as those of sensors: two views of one array, or one view of each of two.

    byol-jax pretrain --config=signals --workdir=DIR --config.data.source=npz:PATH \
        [--config.data.arrays=NAME1,NAME2]

`PATH/train.npz` (and `PATH/test.npz`, with --config.data.test_split=test) as numpy.savez writes
them: an array (examples, time, channels), or two whose examples belong together, and `labels` if
there are any. Not the paper's setting: a small network, AdamW, and a target that is replaced 200
times (docs/ablations.md, "Short runs"); for another length set --config.target.tau_base to
1 - 200 / steps.
"""

from ml_collections import ConfigDict

from byol_jax.runs import config as config_lib


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = config_lib.default("signals")
    config.steps = 1000
    config.batch_size = 128
    for view in (config.views.view1, config.views.view2):
        view.window_min = 0.7
        view.scale_std = 0.2
        view.jitter_std = 0.1
        view.mask_share = 0.2
    config.encoder.name = "conv1d"
    config.encoder.channels = (64, 128, 128)
    config.encoder.strides = (2, 2, 2)
    config.heads.hidden_size = 256
    config.heads.output_size = 64
    config.target.tau_base = 0.8
    config.target.tau_schedule = "constant"
    config.optimizer.name = "adamw"
    config.optimizer.base_learning_rate = 2e-3
    config.optimizer.warmup_epochs = 0.0

    config.log_every_steps = 50
    config.checkpoint.every_steps = 500
    config.evaluation.every_steps = 250
    config.evaluation.train_examples = 5_000
    config.evaluation.test_examples = 2_000
    return config
