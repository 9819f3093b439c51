"""What needs a checkout: benchmarks, a model of scale, job files.

`python -m experiments.pretrain` (evaluate, export, ...) is `byol-jax pretrain` there. The package
byol_jax imports nothing from here, but for the command `byol-jax bench`, which starts
`experiments.bench`. Nothing here is installed.
"""
