"""Pages that show what runs have learned: one HTML file each, which opens without a network.

`write` makes the page of one run, of what it left in its folder (config, metrics, evaluations) and
of features that its encoder computes; `compare` puts several runs side by side, by their folders
alone. Drawing is left to a library in the page; this room computes what is drawn. It trains nothing
and has no flags.
"""

from byol_jax.report.compare import compare
from byol_jax.report.write import write

__all__ = ["compare", "write"]
