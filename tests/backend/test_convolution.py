"""Convolutions by oneDNN against XLA's: values, both gradients, second derivatives, fallbacks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from tiny import tiny_resnet_config

from byol_jax import byol, models
from byol_jax.backend import convolution, onednn
from byol_jax.runs import build, kinds
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs.resolve import resolve

SIZE = (2, 9, 7)  # batch, height, width
# channels in, channels out, kernel, strides, dilation, padding, groups, dtype
CASES = [
    (1, 4, (3, 3), (1, 1), (1, 1), "SAME", 1, "float32"),
    (3, 16, (7, 7), (2, 2), (1, 1), ((3, 3), (3, 3)), 1, "float32"),
    (16, 16, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 1, "float32"),
    (16, 32, (3, 3), (2, 2), (1, 1), ((1, 1), (1, 1)), 1, "float32"),
    (16, 32, (3, 3), (2, 2), (1, 1), "SAME", 1, "float32"),
    (16, 32, (1, 1), (2, 2), (1, 1), "VALID", 1, "float32"),
    (6, 12, (1, 1), (2, 2), (1, 1), "SAME", 1, "float32"),
    (6, 12, (1, 1), (2, 1), (1, 1), ((0, 1), (1, 0)), 1, "float32"),
    (16, 8, (1, 1), (1, 1), (1, 1), "SAME", 1, "float32"),
    (4, 4, (5, 2), (2, 1), (1, 1), ((1, 0), (2, 1)), 1, "float32"),
    (4, 8, (3, 3), (3, 2), (2, 1), ((2, 3), (0, 1)), 1, "float32"),
    (5, 7, (2, 3), (1, 2), (1, 2), "VALID", 1, "float32"),
    (4, 8, (3, 3), (1, 1), (2, 2), "SAME", 1, "float32"),
    (4, 8, (3, 3), (2, 2), (1, 1), "SAME", 2, "float32"),
    (8, 8, (3, 3), (1, 1), (1, 1), "SAME", 8, "float32"),
    (8, 16, (5, 5), (2, 1), (1, 1), ((2, 2), (1, 3)), 4, "float32"),
    (8, 8, (9, 7), (1, 1), (1, 1), "VALID", 1, "float32"),
    (16, 32, (3, 3), (2, 2), (1, 1), ((1, 1), (1, 1)), 1, "bfloat16"),
    (3, 8, (3, 3), (1, 1), (2, 1), "SAME", 1, "bfloat16"),
    (8, 8, (3, 3), (2, 2), (1, 1), "SAME", 8, "bfloat16"),
]
TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2}  # relative to the largest number


@pytest.fixture(scope="module", autouse=True)
def loaded():
    """Skips these tests where oneDNN cannot be loaded."""
    if reason := onednn._load().reason:
        pytest.skip(f"needs oneDNN: {reason}")


def conv_general_dilated():
    """Ours, as runs use it on this processor."""
    return partial(convolution.conv_general_dilated, dtypes=onednn._load().dtypes)


def arrays(case):
    inputs, outputs, kernel, *_, groups, dtype = case
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((*SIZE, inputs)), dtype)
    return x, jnp.asarray(rng.standard_normal((*kernel, inputs // groups, outputs)), dtype)


def convolve(function, case, x, kernel):
    _, _, _, strides, dilation, padding, groups, _ = case
    return function(x, kernel, strides, padding, None, dilation, convolution.LAYOUT, groups)


@partial(jax.jit, static_argnums=0)
def all_of(function):
    """For each case the convolution and both gradients, of which one is that of a cosine."""
    results = []
    for case in CASES:
        x, kernel = arrays(case)
        if function is lax.conv_general_dilated:  # the reference, always in float32
            x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
        y, gradients = jax.vjp(partial(convolve, function, case), x, kernel)
        results.append(
            (y, *gradients(jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype)))
        )
    return results


@pytest.fixture(scope="module", params=[1, 2], ids=["1-thread", "2-threads"])
def results(request):
    ours = partial(conv_general_dilated(), threads=request.param)
    return all_of(ours), all_of(lax.conv_general_dilated)


def test_onednn_computes_all_cases():
    """A call for the convolution, and one for each gradient; of the dtypes that oneDNN has here."""
    text = all_of.lower(partial(conv_general_dilated(), threads=1)).as_text()
    computed = [case[-1] in onednn._load().dtypes for case in CASES]
    assert text.count(f"@{convolution.TARGET}") == 3 * sum(computed)
    assert ("stablehlo.convolution" in text) == (not all(computed))


@pytest.mark.parametrize("index", range(len(CASES)))
def test_values_and_gradients_are_those_of_xla(results, index):
    for got, want in zip(*(each[index] for each in results), strict=True):
        assert got.shape == want.shape and got.dtype == CASES[index][-1]
        error = jnp.abs(got.astype(jnp.float32) - want).max() / jnp.abs(want).max()
        assert error < TOLERANCES[CASES[index][-1]]


def test_the_second_derivative_is_that_of_xla():
    case = CASES[8]

    @partial(jax.jit, static_argnums=0)
    def second(function, x, kernel):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(convolve(function, case, x, kernel)))

        def norm_of_gradient(x, kernel):
            return sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(x, kernel))

        return jax.grad(norm_of_gradient, (0, 1))(x, kernel)

    ours = second(partial(convolution.conv_general_dilated, threads=1), *arrays(case))
    theirs = second(lax.conv_general_dilated, *arrays(case))
    for got, want in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max(), rtol=0)


def test_a_mapped_convolution_is_one_for_each():
    x, kernel = arrays(CASES[2])
    ours = partial(convolve, partial(convolution.conv_general_dilated, threads=1), CASES[2])
    kernels = jnp.stack([kernel, 2 * kernel])
    got = jax.jit(jax.vmap(ours, (None, 0)))(x, kernels)
    np.testing.assert_allclose(got[1], 2 * got[0], rtol=1e-6)


def test_the_encoder_of_a_run_is_computed_by_onednn():
    config = tiny_resnet_config()
    config = resolve(config)[0]
    learner = build.make_learner(config, lambda step: 0.1, 6, 10, None)
    batch = kinds.of(config).example_batch(config)
    state = jax.eval_shape(partial(byol.init, learner, 0), batch)
    update = jax.jit(partial(byol.update, learner)).lower(state, batch._replace(labels=None))
    text = update.as_text()
    assert f"@{convolution.TARGET}" in text and "stablehlo.convolution" not in text


def test_embed_is_computed_by_onednn():
    settings = {"name": "resnet8", "width_multiplier": 0.25, "stem": "strided"}
    config = {"encoder": settings, "dtype": "float32", "image_size": 16, "channels": 3}
    config |= {"mean": [0.5] * 3, "std": [0.25] * 3, "training": {"method": "none", "step": 0}}
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    module = models.make_encoder(**settings)
    variables = module.init(jax.random.key(0), np.zeros((2, 16, 16, 3), np.float32), train=True)
    encoder = encoder_lib.Encoder(config, variables)
    text = encoder._embed.func.lower(variables, images).as_text()
    assert f"@{convolution.TARGET}" in text and "stablehlo.convolution" not in text
    by_xla = jax.jit(encoder.output_fn(encoder.module))(variables, images)
    np.testing.assert_allclose(encoder.embed(images), by_xla, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "kernel", "dtype", "changes"),
    [
        ((2, 9, 4), (3, 4, 4), "float32", {"window_strides": (1,)}),  # one axis
        ((2, 5, 5, 5, 4), (3, 3, 3, 4, 4), "float32", {"window_strides": (1, 1, 1)}),
        ((2, 9, 7, 4), (3, 3, 4, 4), "float16", {}),
        (
            (2, 9, 7, 4),
            (3, 3, 4, 4),
            "float32",
            {"lhs_dilation": (2, 1), "padding": ((1, 1), (1, 1))},
        ),
        ((2, 9, 7, 4), (3, 3, 4, 4), "float32", {"padding": ((-1, 0), (0, 0))}),
        ((0, 9, 7, 4), (3, 3, 4, 4), "float32", {}),
        ((2, 2, 2, 4), (3, 3, 4, 4), "float32", {}),  # nothing is left
    ],
)
def test_xla_computes_all_else(shape, kernel, dtype, changes):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(s), dtype) for s in (shape, kernel))
    layout = lax.conv_dimension_numbers(
        x.shape,
        kernel.shape,
        {3: ("NWC", "WIO", "NWC"), 4: ("NHWC", "HWIO", "NHWC")}.get(
            x.ndim, ("NDHWC", "DHWIO", "NDHWC")
        ),
    )
    settings = {"window_strides": (1, 1), "padding": "VALID", "dimension_numbers": layout} | changes
    ours = jax.jit(partial(convolution.conv_general_dilated, threads=1, **settings))
    assert convolution.TARGET not in ours.lower(x, kernel).as_text()
    want = lax.conv_general_dilated(x, kernel, **settings)
    np.testing.assert_allclose(ours(x, kernel), want, rtol=1e-5)
