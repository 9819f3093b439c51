"""`byol-jax import-reference`, from a checkout."""

import runpy

runpy.run_module("byol_jax.cli.import_reference", run_name="__main__", alter_sys=True)
