"""Pages that show what a run has learned: one HTML file each, which opens without a network.

A page is made of what a run left in its folder (config, metrics, evaluations), and of features that
its encoder computes. Drawing is left to a library in the page; this room computes what is drawn. It
trains nothing and has no flags.
"""

from byol_jax.report.write import write

__all__ = ["write"]
