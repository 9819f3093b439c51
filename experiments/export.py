"""`byol-jax export`, from a checkout."""

import runpy

runpy.run_module("byol_jax.cli.export", run_name="__main__", alter_sys=True)
