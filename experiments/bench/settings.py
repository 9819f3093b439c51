"""The networks that are measured, as configs."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from byol_jax import byol

STEPS_PER_EPOCH, EPOCHS = 1000, 100  # any length: schedules cost the same

CIFAR_RESNET18 = {"encoder.name": "resnet18", "encoder.stem": "cifar", "data.image_size": 32}
NETWORKS = {  # changes of the default config, which has the paper's heads
    "small": CIFAR_RESNET18  # for two CPU cores
    | {"encoder.width_multiplier": 0.25, "heads.hidden_size": 512, "heads.output_size": 128},
    "quickstart": {  # that of the preset, with the heads of `small`
        **{"encoder.name": "resnet8", "encoder.width_multiplier": 1.5, "encoder.stem": "strided"},
        **{"heads.hidden_size": 512, "heads.output_size": 128, "data.image_size": 32},
    },
    "resnet10": {
        **{"encoder.name": "resnet10", "encoder.width_multiplier": 0.5, "encoder.stem": "strided"},
        **{"heads.hidden_size": 512, "heads.output_size": 128, "data.image_size": 32},
    },
    "resnet18_cifar": CIFAR_RESNET18,
    "resnet50": {"encoder.name": "resnet50", "data.image_size": 224},
}
DTYPES = ("float32", "bfloat16")


class Case(NamedTuple):
    """One measured configuration."""

    network: str  # of NETWORKS
    batch_size: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.network}, batch {self.batch_size}, {self.dtype}"


def config(case: Case, remat: bool = False, cpu_convolution: str = "auto") -> "ConfigDict":
    """The resolved config of a case, with LARS and the augmentations of the paper or of CIFAR.

    Args:
      case: network, batch size and dtype.
      remat: whether the backward pass recomputes blocks.
      cpu_convolution: as in the config; "xla" if XLA is to count the FLOPs, oneDNN's it cannot.

    Raises:
      UserError: the batch size is not valid.
    """
    # Imported here, so that wrong flags are answered at once.
    from byol_jax.augment import image as image_augment
    from byol_jax.runs import config as config_lib
    from byol_jax.runs.kinds import image_settings
    from byol_jax.runs.resolve import resolve

    config = config_lib.default()
    config.epochs = EPOCHS
    config.batch_size = case.batch_size
    config.dtype = case.dtype
    config.data.source = config_lib.UNKNOWN_SOURCE
    config.encoder.remat = remat
    config.cpu_convolution = cpu_convolution
    config.update_from_flattened_dict(NETWORKS[case.network])
    if config.data.image_size == 32:
        image_settings.set_policy(config, image_augment.CIFAR10)
    return resolve(config)[0]


def learner(config: "ConfigDict", axis_name: str | None) -> "byol.Learner":
    """The learner of a config as in `pretrain`, without labels."""
    from byol_jax.runs import build

    schedule = build.learning_rate(config, STEPS_PER_EPOCH)
    return build.make_learner(config, schedule, EPOCHS * STEPS_PER_EPOCH, None, axis_name)
