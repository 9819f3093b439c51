"""Presets, one file each: `byol-jax pretrain --config=NAME` runs the one in NAME.py.

Its docstring gives the command, the source of the settings, what accuracy to expect, and whether
that was measured here. `get_config()` returns a ConfigDict made from `runs.config.default()`.
Presets hold settings only: no code of the training, and no data.
"""
