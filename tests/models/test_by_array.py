"""An encoder for each part of an example, brought to one width, against NumPy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from byol_jax import models

KEY = jax.random.key(0)


class Affine(nn.Module):
    """One dense layer."""

    features: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.features)(x)


def affine(variables, x):
    return x @ variables["kernel"] + variables["bias"]


def test_features_of_two_sizes_are_mapped_and_normalised():
    rng = np.random.default_rng(0)
    view = {"a": rng.normal(3, 2, size=(5, 4)), "b": rng.normal(size=(5, 2))}
    view = {name: x.astype(np.float32) for name, x in view.items()}
    module = models.ByArray({"a": Affine(6), "b": Affine(3)}, width=7)
    variables = jax.jit(functools.partial(module.init, train=True))(KEY, view)
    params = variables["params"]
    mapped, stats = {}, variables["batch_stats"]
    for name, x in view.items():
        features = affine(params[f"encoders_{name}"]["Dense_0"], x)
        mapped[name] = features @ params[f"map_{name}"]["kernel"]
    for name, x in mapped.items():  # in training by the batch, each part by its own
        want = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        got, changed = module.apply(
            variables, {name: view[name]}, train=True, mutable=["batch_stats"]
        )
        np.testing.assert_allclose(got, want, atol=1e-4)
        assert got.shape == (5, 7)
        stats = {**stats, f"norm_{name}": changed["batch_stats"][f"norm_{name}"]}
    found = module.apply({"params": params, "batch_stats": stats}, view, train=False)
    want = [
        (x - stats[f"norm_{name}"]["mean"]) / np.sqrt(stats[f"norm_{name}"]["var"] + 1e-5)
        for name, x in mapped.items()
    ]
    np.testing.assert_allclose(found, np.mean(want, 0), atol=1e-4)


def test_without_a_width_it_is_the_mean():
    view = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 4))}
    module = models.ByArray({"a": Affine(5), "b": Affine(5)})
    variables = module.init(KEY, view, train=False)
    assert {*variables} == {"params"} and {*variables["params"]} == {"encoders_a", "encoders_b"}
    want = [
        affine(variables["params"][f"encoders_{name}"]["Dense_0"], x) for name, x in view.items()
    ]
    np.testing.assert_allclose(module.apply(variables, view, train=False), np.mean(want, 0), 1e-6)
