"""`byol-jax transfer`, from a checkout."""

import runpy

runpy.run_module("byol_jax.cli.transfer", run_name="__main__", alter_sys=True)
