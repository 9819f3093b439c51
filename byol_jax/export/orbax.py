"""Orbax: the encoder's variables as a checkpoint, for other JAX programs to start from.

variables/    {'params': ..., 'batch_stats': ...}, float32, as an Orbax StandardCheckpointer
              writes them
config.json   architecture, mean and std, how to load, and how the encoder was trained
"""

from pathlib import Path
from typing import TYPE_CHECKING

from byol_jax.runs import paths

if TYPE_CHECKING:
    from byol_jax.runs.encoder import Encoder

FORMAT = "byol_jax.orbax.1"
LOAD = """\
import orbax.checkpoint as ocp
from pathlib import Path

variables = ocp.StandardCheckpointer().restore(Path("variables").absolute())
"""


def save(encoder: "Encoder", directory: Path) -> None:
    """Writes the encoder's variables; the folder must be named by an absolute path to be read.

    Args:
      encoder: what to export.
      directory: made if need be; an earlier export of this kind is replaced.

    Raises:
      UserError: the folder cannot be written, or holds something else.
    """
    from byol_jax.runs import checkpoint  # the one file that knows Orbax

    record = {"format": FORMAT, "load": LOAD.splitlines(), **encoder.config}
    with paths.write_folder(directory, record) as new:
        checkpoint.save_tree(new / "variables", encoder.variables)
