"""byol_jax: Bootstrap your own latent (Grill et al. 2020, arXiv 2006.07733) in JAX and Flax.

Read `byol_jax/byol.py` for the algorithm. `byol_jax.pretrain` trains an encoder on images, and
`byol_jax.load` opens a trained run or an exported encoder.
"""

__version__ = "0.5.0"
__all__ = ["load", "pretrain"]


def __getattr__(name: str):
    # Late, so that importing the package stays fast.
    if name == "load":
        from byol_jax.runs.encoder import load

        return load
    if name == "pretrain":
        from byol_jax.train.pretrain import pretrain

        return pretrain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
