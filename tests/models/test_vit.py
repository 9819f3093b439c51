"""Vision Transformers: positions, initial weights, what is frozen or dropped, what is refused.

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
from byol_jax.models import vit

TINY = models.ViT(width=24, heads=2, depth=2, patch_size=4)
IMAGES = np.random.default_rng(0).standard_normal((4, 12, 8, 3), np.float32)


def random_variables(module, images=IMAGES):
    init = partial(module.init, train=False)
    return randomise(jax.eval_shape(init, jax.random.key(0), images), seed=0)


@pytest.mark.parametrize(
    ("name", "parameters"),  # timm's vit_{tiny,small,base}_patch16_224 without the classifier
    [("vit_ti", 5_524_416), ("vit_s", 21_665_664), ("vit_b", 85_798_656)],
)
def test_parameter_counts(name, parameters):
    module, image = models.make_encoder(name, positions="learned"), jnp.zeros((1, 224, 224, 3))
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), image, train=False))
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(made)) == parameters


def test_fixed_positions():
    """Each number by its formula; the class token has zeros."""
    rows, columns, width = 3, 2, 12
    table = vit.sincos_positions(rows, columns, width)
    assert table.shape == (7, 12) and table.dtype == jnp.float32
    np.testing.assert_array_equal(table[0], 0)
    for row in range(rows):
        for column in range(columns):
            for i in range(3):
                f = 10000 ** (-i / 3)
                want = [np.sin(row * f), np.cos(row * f), np.sin(column * f), np.cos(column * f)]
                got = table[1 + row * columns + column, i::3]
                np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


def test_fixed_positions_are_no_parameters_and_learned_ones_are():
    fixed, learned = (random_variables(TINY.clone(positions=p)) for p in ("sincos", "learned"))
    table = learned["params"].pop("position_embedding")
    assert table.shape == (7, 24)
    assert jax.tree.map(np.shape, fixed) == jax.tree.map(np.shape, learned)
    learned["params"]["position_embedding"] = vit.sincos_positions(3, 2, 24)
    got, want = (
        jax.jit(partial(module.apply, train=False))(learned, IMAGES)
        for module in (TINY, TINY.clone(positions="learned"))
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_initial_weights_are_those_of_moco_v3():
    module = models.ViT(width=64, heads=2, depth=1, patch_size=4, positions="learned")
    init = jax.jit(partial(module.init, train=False))
    params = init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    block = params["transformer_block1"]
    limits = {  # of uniform distributions: sqrt(6 / (inputs + outputs))
        (6 / (3 * 4 * 4 + 64)) ** 0.5: params["patch_embedding"]["kernel"],
        (6 / (64 + 64)) ** 0.5: block["qkv"]["kernel"],  # of three matrices
        (6 / (64 + 256)) ** 0.5: block["dense1"]["kernel"],
        (6 / (256 + 64)) ** 0.5 + 1e-9: block["dense2"]["kernel"],
    }
    for limit, kernel in limits.items():
        assert 0.99 * limit < np.abs(kernel).max() <= limit * 1.000001
        np.testing.assert_allclose(np.std(kernel), limit / 3**0.5, rtol=0.03)
    assert 0 < np.std(params["class_token"]) < 2e-6
    np.testing.assert_allclose(np.std(params["position_embedding"]), 0.02, rtol=0.05)
    biases = [x for path, x in jax.tree_util.tree_leaves_with_path(params) if "bias" in str(path)]
    assert len(biases) == 8 and not any(np.any(x) for x in biases)


def test_a_frozen_patch_embedding_has_no_gradient():
    frozen = TINY.clone(freeze_patch_embedding=True)
    assert frozen.frozen == ("patch_embedding",) and TINY.frozen == ()
    variables = random_variables(TINY)

    def gradient(module):
        def loss(variables):
            return jnp.sum(module.apply(variables, IMAGES, train=False) ** 3)

        return jax.jit(jax.grad(loss))(variables)

    with_it, without = gradient(TINY)["params"], gradient(frozen)["params"]
    assert np.any(with_it.pop("patch_embedding")["kernel"])
    assert not any(np.any(x) for x in jax.tree.leaves(without.pop("patch_embedding")))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), without, with_it)


def test_residual_branches_are_dropped_by_position_and_depth():
    """Rates rise linearly; a batch and its reverse lose the same branches of the same examples."""
    module = TINY.clone(depth=3, drop_path=0.6)
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
    assert seen == [(0.0, (1, 2))] * 2 + [(0.3, (1, 2))] * 2 + [(0.6, (1, 2))] * 2
    np.testing.assert_allclose(apply(IMAGES[::-1], positions[::-1])[::-1], got, atol=1e-5)
    assert np.abs(apply(IMAGES, positions + 4) - got).max() > 0.1
    assert np.abs(got - module.apply(variables, IMAGES, train=False)).max() > 0.1


def test_rematerialised_blocks_compute_the_same():
    variables = random_variables(TINY)

    module = TINY.clone(drop_path=0.5)
    plain, remat = (
        traced_gradient(module.clone(remat=r), variables, IMAGES) for r in (False, True)
    )
    products = [str(traced.jaxpr).count("dot_general[") for traced in (plain, remat)]
    assert products[1] - products[0] >= 2 * 5  # in each block: all but the last one
    got, want = (traced.lower().compile()(variables) for traced in (remat, plain))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


def test_bfloat16_is_for_products_alone():
    module = TINY.clone(dtype=jnp.bfloat16)
    variables = random_variables(module)
    got, seen = output_dtypes(module, variables, IMAGES)
    del seen["Dropout_0"]  # returns its argument
    half = {name for name, dtype in seen.items() if dtype == jnp.bfloat16}
    assert half == {"patch_embedding", "qkv", "proj", "dense1", "dense2"}
    assert {seen[name] for name in seen.keys() - half} == {jnp.dtype("float32")}
    want = TINY.apply(variables, IMAGES, train=False)
    assert 1e-4 < np.abs(got - want).max() < 0.1
    text = jax.jit(partial(module.apply, train=False)).lower(variables, IMAGES).as_text()
    exponentials = [line for line in text.splitlines() if "stablehlo.exponential" in line]
    assert exponentials and all("f32" in line and "bf16" not in line for line in exponentials)


def test_the_patch_embedding_is_computed_by_the_convolution_given():
    called = []

    def convolution(*args, **kwargs):
        called.append(args[1].shape)
        return jax.lax.conv_general_dilated(*args, **kwargs)

    module = models.make_encoder("vit_ti", convolution=convolution, patch_size=4, depth=1)
    jax.eval_shape(lambda: module.init(jax.random.key(0), IMAGES, train=False))
    assert called == [(4, 4, 3, 192)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width=0 must be at least 1"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"depth": 10**9}, "depth=1000000000 must be at most 100"),
        ({"patch_size": -1}, "patch_size=-1 must be at least 1"),
        ({"heads": 5}, "heads=5 must divide width=192"),
        ({"width": 27}, "width=27 must be a multiple of 4 for positions=sincos"),
        ({"positions": "none"}, "positions='none' is not one of sincos, learned"),
        ({"pool": "max"}, "pool='max' is not one of class, mean"),
        ({"drop_path": 1.0}, "drop_path=1 must be at least 0 and below 1"),
        ({"drop_path": -0.1}, "drop_path=-0.1 must be at least 0"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        models.make_encoder("vit_ti", **settings)


@pytest.mark.parametrize("size", [(0, 8), (8, 6), (6, 8)])
def test_images_that_patches_do_not_divide_are_refused(size):
    message = f"^patch_size=4 does not divide images of {size[0]} x {size[1]} pixels: choose"
    with pytest.raises(ValueError, match=message):
        TINY.init(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False)
