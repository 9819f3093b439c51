"""ImageNet with ResNet-50: the paper's main setting (section 3.3) and its shorter ones.

    python -m experiments.pretrain --config=experiments/configs/imagenet.py:EPOCHS --workdir=DIR \
        [--config.data.dir=TFDS_DIR] [--config.data.source=folder:PATH]

EPOCHS is 40, 100, 300 or 1000 (the default), for which the authors give a base learning rate, a
weight decay and a target decay; for another number these are interpolated, and that is said. Batch
4096; with --config.accum_steps=8 the same update fits into an eighth of the memory.

The paper reports 74.3% linear top-1 after 1000 epochs and 72.5% after 300. Not run here: the
authors used 512 TPU v3 cores for about 8 hours. `tfds build imagenet2012` prepares the data; a
folder with train/ and validation/, each of one folder per class, works as well. The authors'
convolutions pad otherwise than torchvision's, our default: --config.encoder.padding=same pads as
theirs.
"""

import sys

import numpy as np
from ml_collections import ConfigDict

from byol_jax import config as config_lib
from byol_jax.errors import UserError

# Appendix F.1 and the authors' code: epochs -> base learning rate, weight decay, target decay.
PRESETS = {
    40: (0.45, 1e-6, 0.97),
    100: (0.45, 1e-6, 0.99),
    300: (0.3, 1e-6, 0.99),
    1000: (0.2, 1.5e-6, 0.996),
}


def get_config(epochs: str = "1000") -> ConfigDict:
    """The settings for a number of epochs."""
    if not epochs.isdecimal() or int(epochs) < 1:
        raise UserError(f"imagenet.py:{epochs} must end in a number of epochs, such as :100.")
    config = config_lib.default()
    config.epochs = int(epochs)
    rate, weight_decay, tau = settings(config.epochs)
    config.optimizer.base_learning_rate = rate
    config.optimizer.weight_decay = weight_decay
    config.tau_base = tau
    config.dtype = "bfloat16"
    config.data.source = "tfds:imagenet2012"
    config.data.test_split = "validation"
    return config


def settings(epochs: int) -> tuple[float, float, float]:
    """Base learning rate, weight decay and target decay; between presets linear in log(epochs)."""
    if epochs in PRESETS:
        return PRESETS[epochs]
    rates, weight_decays, taus = np.array(list(PRESETS.values())).T

    def between(values: np.ndarray) -> float:
        return float(f"{np.interp(np.log(epochs), np.log(list(PRESETS)), values):.3g}")

    rate, weight_decay = between(rates), between(weight_decays)
    tau = 1 - between(1 - taus)
    print(
        f"imagenet.py: the authors give no settings for {epochs} epochs, only for "
        f"{', '.join(map(str, PRESETS))}; interpolated (beyond them: the nearest): base learning "
        f"rate {rate:g}, weight decay {weight_decay:g}, tau {tau:g}.",
        file=sys.stderr,
    )
    return rate, weight_decay, tau
