"""`byol-jax pretrain`, from a checkout."""

import runpy

runpy.run_module("byol_jax.cli.pretrain", run_name="__main__", alter_sys=True)
