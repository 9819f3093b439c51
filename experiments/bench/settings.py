"""The networks that are measured, as configs."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from byol_jax import byol

STEPS_PER_EPOCH, EPOCHS = 1000, 100  # any length: schedules cost the same


class Setting(NamedTuple):
    """A network and the size of its images; the default heads are the paper's."""

    encoder: str
    stem: str
    image_size: int
    width_multiplier: float = 1.0
    hidden_size: int = 4096
    output_size: int = 256


NETWORKS = {
    "small": Setting("resnet18", "cifar", 32, 0.25, 512, 128),  # for two CPU cores
    "resnet18_cifar": Setting("resnet18", "cifar", 32),
    "resnet50": Setting("resnet50", "imagenet", 224),
}
DTYPES = ("float32", "bfloat16")


class Case(NamedTuple):
    """One measured configuration."""

    network: str  # of NETWORKS
    batch_size: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.network}, batch {self.batch_size}, {self.dtype}"


def config(case: Case, remat: bool = False) -> "ConfigDict":
    """The resolved config of a case, with LARS and the augmentations of the paper or of CIFAR.

    Args:
      case: network, batch size and dtype.
      remat: whether the backward pass recomputes blocks.

    Raises:
      UserError: the batch size is not valid.
    """
    # Imported here, so that wrong flags are answered at once.
    from byol_jax.augment import image as image_augment
    from byol_jax.runs import config as config_lib

    setting = NETWORKS[case.network]
    config = config_lib.default()
    config.epochs = EPOCHS
    config.batch_size = case.batch_size
    config.dtype = case.dtype
    config.data.source = config_lib.UNKNOWN_SOURCE
    config.data.image_size = setting.image_size
    config.encoder.name = setting.encoder
    config.encoder.stem = setting.stem
    config.encoder.remat = remat
    config.encoder.width_multiplier = setting.width_multiplier
    config.heads.hidden_size = setting.hidden_size
    config.heads.output_size = setting.output_size
    if setting.image_size == 32:
        config_lib.set_policy(config, image_augment.CIFAR10)
    return config_lib.resolve(config)[0]


def learner(config: "ConfigDict", axis_name: str | None) -> "byol.Learner":
    """The learner of a config as in `pretrain`, without labels."""
    from byol_jax.runs import build

    schedule = build.learning_rate(config, STEPS_PER_EPOCH)
    return build.make_learner(config, schedule, EPOCHS * STEPS_PER_EPOCH, None, axis_name)
