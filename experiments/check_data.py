"""`byol-jax check-data`, from a checkout."""

import runpy

runpy.run_module("byol_jax.cli.check_data", run_name="__main__", alter_sys=True)
