"""BYOL-A for a CPU: a narrow encoder and 400 steps of 64 sounds, for clips of a second at 8 kHz.

    byol-jax pretrain --config=byol_a_small --workdir=DIR --config.data.source=folder:PATH

Not the paper's setting: see byol_a.py. As in folder_small.py, a short run needs a higher learning
rate, and a target that is replaced 200 times (docs/ablations.md, "Short runs"): for another length
set --config.target.tau_base to 1 - 200 / steps. For sounds at 16 kHz set
--config.data.sample_rate=16000, with n_fft=1024, hop_length=160 and fmax=7800 of config.data.
"""

from ml_collections import ConfigDict

from byol_jax.presets import byol_a


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = byol_a.get_config()
    config.epochs = 0
    config.steps = 400
    config.batch_size = 64
    config.data.sample_rate = 8000
    config.data.n_fft = 512
    config.data.hop_length = 80
    config.data.fmax = 3800.0
    config.encoder.width = 32
    config.encoder.hidden = 512
    config.encoder.features = 512
    config.heads.hidden_size = 512
    config.heads.output_size = 128
    config.target.tau_base = 0.5
    config.optimizer.base_learning_rate = 4e-3

    config.log_every_steps = 20
    config.checkpoint.every_steps = 200
    config.evaluation.every_steps = 200
    return config
