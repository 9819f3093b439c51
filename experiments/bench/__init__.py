"""Speed and memory of byol_jax on this machine, next to other implementations and to its limits.

`byol-jax bench PART` runs `run` of the module PART and writes its `report.Report`; `peers` holds
the other implementations, which are not dependencies. docs/performance.md shows the results.
"""
