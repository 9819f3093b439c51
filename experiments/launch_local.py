"""`byol-jax launch-local`, from a checkout."""

import runpy

runpy.run_module("byol_jax.cli.launch_local", run_name="__main__", alter_sys=True)
