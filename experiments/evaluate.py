"""`byol-jax evaluate`, from a checkout."""

import runpy

runpy.run_module("byol_jax.cli.evaluate", run_name="__main__", alter_sys=True)
