"""What the authors change with the length of the training on ImageNet.

Appendix F.1 of the paper and the authors' configs/byol.py: batches of 4096, 10 epochs of warm-up,
and the values below.
"""

from typing import NamedTuple


class Recipe(NamedTuple):
    """The settings of one length."""

    base_learning_rate: float  # for a batch of 256
    weight_decay: float
    tau_base: float


IMAGENET = {  # by epochs
    40: Recipe(0.45, 1e-6, 0.97),
    100: Recipe(0.45, 1e-6, 0.99),
    300: Recipe(0.3, 1e-6, 0.99),
    1000: Recipe(0.2, 1.5e-6, 0.996),
}
