"""byol_jax: Bootstrap your own latent (Grill et al. 2020, arXiv 2006.07733) in JAX and Flax.

Read `byol_jax/byol.py` for the algorithm. `byol_jax.load` opens a trained run or an exported
encoder.
"""

__version__ = "0.5.0"
__all__ = ["load"]


def __getattr__(name: str):
    # Late, so that importing the package stays fast for those who want one room of it.
    if name == "load":
        from byol_jax.runs.encoder import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
