"""The commands of `byol-jax`: flags, messages and exit codes.

`python -m byol_jax.cli NAME` is the same program. One file for each command, which defines its
flags and calls the rooms below; `app.py` is how each of them starts, `config_flag.py` is --config,
and `shared_flags.py` has flags of several commands. No command imports another, and none imports
JAX before its flags are read.
"""
