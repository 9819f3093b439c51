"""`byol-jax finetune`, from a checkout."""

import runpy

runpy.run_module("byol_jax.cli.finetune", run_name="__main__", alter_sys=True)
