"""Pre-trains an encoder with BYOL.

python -m experiments.pretrain --config=experiments/configs/cifar10.py --workdir=DIR \
    [--config.key=value ...]

Started again with the same command, it goes on from the last checkpoint.
"""

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from byol_jax.errors import UserError
from experiments import cli

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of experiments/configs/, or one like it.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run keeps everything it makes.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Trains as the flags say."""
    if not isinstance(CONFIG.value, ConfigDict):
        # What stands there instead raises, with a traceback, at the first look at it.
        path = flags.FLAGS["config"].config_filename
        raise UserError(f"--config={path} cannot be loaded: is it a file with a get_config()?")
    # Here, so that a wrong flag is answered at once.
    from byol_jax import train

    train.train(CONFIG.value, Path(WORKDIR.value))


if __name__ == "__main__":
    cli.run(main)
