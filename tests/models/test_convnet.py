"""The small convolutional network, against NumPy, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax import models


def reference(params, x):
    """The network in float64 by loops over the positions of a kernel."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = np.asarray(x, np.float64)
    for layer in sorted(name for name in p if name.startswith("conv")):
        kernel, (n, h, w, _) = p[layer]["kernel"], x.shape
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = p[layer]["bias"] + sum(
            padded[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3)
        )
        h, w = h // 2, w // 2
        x = np.maximum(x, 0)[:, : 2 * h, : 2 * w].reshape(n, h, 2, w, 2, -1).max((2, 4))
    return np.maximum(x.reshape(n, -1) @ p["dense"]["kernel"] + p["dense"]["bias"], 0)


def made(network, shape, dtype=jnp.float32):
    x = jax.random.normal(jax.random.key(0), shape, dtype)
    params = network.init(jax.random.key(1), x)["params"]
    bias = {name: 0.1 * jnp.arange(len(layer["bias"])) for name, layer in params.items()}
    return {"params": {k: v | {"bias": bias[k]} for k, v in params.items()}}, x


@pytest.mark.parametrize("size", [(8, 8), (9, 14)])
def test_it_is_what_numpy_computes(size):
    network = models.ConvNet(channels=(3, 5), features=7)
    variables, x = made(network, (2, *size, 3))
    got, want = network.apply(variables, x), reference(variables["params"], x)
    assert got.dtype == jnp.float32 and np.count_nonzero(want) > want.size / 4
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_the_default_sizes():
    image = jnp.zeros((1, 32, 32, 3))
    network = models.make_encoder("convnet")
    out, variables = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), image))
    kernels = {k: v["kernel"].shape for k, v in variables["params"].items()}
    assert kernels == {
        **{"conv1": (3, 3, 3, 32), "conv2": (3, 3, 32, 64), "conv3": (3, 3, 64, 128)},
        "dense": (4 * 4 * 128, 1024),
    }
    assert out.shape == (1, 1024)


def test_its_convolutions_are_those_given():
    called = []

    def convolution(*args, **kwargs):
        called.append(args[1].shape)
        return jax.lax.conv_general_dilated(*args, **kwargs)

    network = models.make_encoder("convnet", convolution=convolution, channels=(3, 5))
    jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    assert called == [(3, 3, 1, 3), (3, 3, 3, 5)]


def test_bfloat16_computes_in_bfloat16_and_returns_float32():
    seen = []

    def convolution(*args, **kwargs):
        out = jax.lax.conv_general_dilated(*args, **kwargs)
        seen.append(out.dtype)
        return out

    network = models.ConvNet((3, 5), 7, dtype=jnp.bfloat16, convolution=convolution)
    variables, x = made(network, (2, 8, 8, 3))
    got = network.apply(variables, x)
    assert set(seen) == {jnp.dtype("bfloat16")} and got.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    want = reference(variables["params"], x)
    np.testing.assert_allclose(got, want, rtol=0, atol=0.03 * want.max())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": (4, 0)}, r"channels=\(4, 0\) must be whole numbers of at least 1"),
        ({"channels": ()}, r"channels=\(\) must be whole numbers"),
        ({"channels": (4, "a")}, r"channels=\(4, 'a'\) must be whole numbers"),
        ({"features": 0}, "features=0 must be at least 1"),
        ({"features": 2.0}, "features=2.0 must be of type int"),
        ({"stem": "cifar"}, "stem='cifar' is not a setting of convnet, which has channels, feat"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        models.make_encoder("convnet", **settings)


def test_an_image_that_is_too_small_is_refused():
    message = r"^channels=\(32, 64, 128\) needs images of at least 8 x 8 pixels, not 16 x 7"
    with pytest.raises(ValueError, match=message):
        models.ConvNet().init(jax.random.key(0), jnp.zeros((1, 16, 7, 3)))
