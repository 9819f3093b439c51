"""`byol-jax data-service`, from a checkout."""

import runpy

runpy.run_module("byol_jax.cli.data_service", run_name="__main__", alter_sys=True)
