"""Orbax: the encoder's variables as a checkpoint, for other JAX programs to start from.

variables/    {'params': ..., 'batch_stats': ...}, float32, as an Orbax StandardCheckpointer
              writes them
config.json   architecture, mean and std, how to load it, and how the encoder was trained
"""

from pathlib import Path

from byol_jax.runs import paths
from byol_jax.runs.encoder import Encoder

FORMAT = "byol_jax.orbax.1"
LOAD = """\
import orbax.checkpoint as ocp
from pathlib import Path

variables = ocp.StandardCheckpointer().restore(Path("variables").absolute())
"""


def save(encoder: Encoder, directory: Path) -> None:
    """Writes the encoder's variables. To read them, Orbax needs the absolute path of the folder.

    Args:
      encoder: is exported.
      directory: made if needed; an earlier export of this kind is replaced.

    Raises:
      CheckpointError: the folder cannot be written, or holds something else.
    """
    from byol_jax.runs import checkpoint  # imports Orbax

    record = {"format": FORMAT, "load": LOAD.splitlines(), **encoder.config}
    with paths.write_folder(directory, record) as new:
        checkpoint.save_tree(new / "variables", encoder.variables)
