"""ConvNeXts: sizes, initial weights, dtypes, what is dropped and what is refused.

tests/export/test_convert_timm.py compares their features with timm's.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import output_dtypes, randomise, traced_gradient

from byol_jax import models

TINY = models.ConvNeXt(stage_sizes=(1, 2), stage_channels=(4, 6))
IMAGES = np.random.default_rng(0).standard_normal((4, 16, 8, 3), np.float32)


def random_variables(module, images=IMAGES):
    init = partial(module.init, train=False)
    return randomise(jax.eval_shape(init, jax.random.key(0), images), seed=0)


@pytest.mark.parametrize(
    ("name", "parameters"),  # timm's without the classifier
    [("convnext_t", 27_820_128), ("convnext_s", 49_454_688)],
)
def test_parameter_counts(name, parameters):
    module, image = models.make_encoder(name), jnp.zeros((1, 32, 32, 3))
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), image, train=False))
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(made)) == parameters


def test_initial_weights_are_those_of_the_paper():
    module = models.ConvNeXt(stage_sizes=(1,), stage_channels=(64,))
    params = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)["params"]
    flat = jax.tree_util.tree_leaves_with_path(params)
    kernels = [x for path, x in flat if path[-1].key == "kernel"]
    assert len(kernels) == 4
    for kernel in kernels:
        np.testing.assert_allclose(np.std(kernel), 0.02, rtol=0.05)
    np.testing.assert_array_equal(params["layer1_0"]["layer_scale"], np.float32(1e-6))
    assert not any(np.any(x) for path, x in flat if path[-1].key == "bias")


def test_residual_branches_are_dropped_by_position_and_depth():
    module = TINY.clone(drop_path=0.6)
    variables, seen = random_variables(module), []

    def spy(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            seen.append((context.module.rate, context.module.broadcast_dims))
        return call(*args, **kwargs)

    @jax.jit
    def apply(images, positions):
        with models.dropout_by_position(positions), nn.intercept_methods(spy):
            return module.apply(variables, images, train=True, rngs={"dropout": jax.random.key(3)})

    positions = jnp.arange(4)
    got = apply(IMAGES, positions)
    assert seen == [(rate, (1, 2, 3)) for rate in (0.0, 0.3, 0.6)]
    np.testing.assert_allclose(apply(IMAGES[::-1], positions[::-1])[::-1], got, atol=1e-5)
    assert np.abs(apply(IMAGES, positions + 4) - got).max() > 0.1
    assert np.abs(got - module.apply(variables, IMAGES, train=False)).max() > 0.1


def test_rematerialised_blocks_compute_the_same():
    variables = random_variables(TINY)

    module = TINY.clone(drop_path=0.5)
    plain, remat = (
        traced_gradient(module.clone(remat=r), variables, IMAGES) for r in (False, True)
    )
    convolutions = [str(t.jaxpr).count("conv_general_dilated[") for t in (plain, remat)]
    assert convolutions[1] - convolutions[0] == 3  # blocks
    got, want = (t.lower().compile()(variables) for t in (remat, plain))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


def test_bfloat16_is_for_products_alone():
    module = TINY.clone(dtype=jnp.bfloat16)
    variables = random_variables(module)
    got, seen = output_dtypes(module, variables, IMAGES)
    del seen["Dropout_0"]  # returns its argument
    half = {name for name, dtype in seen.items() if dtype == jnp.bfloat16}
    assert half == {"stem_conv", "downsample2_conv", "conv", "dense1", "dense2"}
    assert {seen[name] for name in seen.keys() - half} == {jnp.dtype("float32")}
    want = TINY.apply(variables, IMAGES, train=False)
    assert 1e-4 < np.abs(got - want).max() < 0.1


def test_its_convolutions_are_those_given():
    called = []

    def convolution(*args, **kwargs):
        called.append((args[1].shape, kwargs["feature_group_count"]))
        return jax.lax.conv_general_dilated(*args, **kwargs)

    module = models.make_encoder(
        "convnext_t", convolution=convolution, stage_sizes=[1, 1], stage_channels=[4, 6]
    )
    jax.eval_shape(lambda: module.init(jax.random.key(0), IMAGES, train=False))
    stem, depthwise = ((4, 4, 3, 4), 1), ((7, 7, 1, 4), 4)
    assert called == [stem, depthwise, ((2, 2, 4, 6), 1), ((7, 7, 1, 6), 6)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage_sizes": ()}, r"stage_sizes=\(\) must be whole numbers of at least 1"),
        ({"stage_sizes": (1, 1, 0, 1)}, r"stage_sizes=\(1, 1, 0, 1\) must be whole numbers"),
        ({"stage_sizes": (1, 1, 10**9, 1)}, "stage_sizes=.* must be at most 100 each"),
        ({"stage_channels": (1, 2, 3)}, r"stage_channels=\(1, 2, 3\) must be 4 numbers"),
        ({"stage_channels": (1, 2, 3, "a")}, "stage_channels=.* must be whole numbers"),
        ({"drop_path": 1.0}, "drop_path=1 must be at least 0 and below 1"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        models.make_encoder("convnext_t", **settings)


def test_an_image_that_is_too_small_is_refused():
    message = r"^stage_sizes=\(1, 2\) needs images of at least 8 x 8 pixels, not 7 x 16"
    with pytest.raises(ValueError, match=message):
        TINY.init(jax.random.key(0), jnp.zeros((1, 7, 16, 3)), train=False)
