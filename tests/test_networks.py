"""Shapes, parameter counts, padding and dtypes of the networks."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax import networks


def variables(module, shape):
    return jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(shape), train=True))


def count(module, size=64):
    params = variables(module, (1, size, size, 3))["params"]
    return sum(np.prod(x.shape) for x in jax.tree.leaves(params))


# Of torchvision's models without their classifier.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_176_512),
        ("resnet34", 21_284_672),
        ("resnet50", 23_508_032),
        ("resnet101", 42_500_160),
        ("resnet152", 58_143_808),
    ],
)
def test_parameter_counts(name, parameters):
    assert count(networks.ENCODERS[name]()) == parameters


def test_resnet200_has_200_layers():
    params = variables(networks.ResNet200(), (1, 64, 64, 3))["params"]
    flat = jax.tree_util.tree_leaves_with_path(params)
    paths = [jax.tree_util.keystr(path) for path, _ in flat]
    convolutions = [p for p in paths if "kernel" in p and "downsample" not in p]
    assert len(convolutions) + 1 == 200  # and the classifier


def test_width_multiplier_doubles_every_convolution():
    narrow, wide = networks.ResNet18(), networks.ResNet18(width_multiplier=2)
    shapes = zip(
        jax.tree.leaves(variables(narrow, (1, 32, 32, 3))["params"]),
        jax.tree.leaves(variables(wide, (1, 32, 32, 3))["params"]),
        strict=True,
    )
    assert all(2 * a.shape[-1] == b.shape[-1] for a, b in shapes)


@pytest.mark.parametrize("stem", ["imagenet", "cifar", "strided"])
@pytest.mark.parametrize("padding", ["torch", "same"])
def test_stems_reduce_as_said(stem, padding):
    """The block's input has the size that the stem's strides leave."""
    seen = {}

    def spy(next_function, args, kwargs, context):
        if context.module.name == "layer1_0" and context.method_name == "__call__":
            seen["shape"] = args[0].shape
        return next_function(*args, **kwargs)

    module = networks.ResNet8(stem=stem, padding=padding)
    with nn.intercept_methods(spy):
        out = jax.eval_shape(
            lambda: module.init_with_output(
                jax.random.key(0), jnp.zeros((2, 32, 32, 3)), train=False
            )[0]
        )
    size = {"imagenet": 8, "cifar": 32, "strided": 16}[stem]
    assert seen["shape"] == (2, size, size, 16)
    assert out.shape == (2, 64)


def test_torch_padding_is_symmetric_and_same_is_not():
    """A stride-2 convolution over 4 pixels starts at -1 or at 0 (kernel of ones: sums)."""
    row = jnp.arange(1.0, 5.0).reshape(1, 1, 4, 1) * jnp.ones((1, 4, 1, 1))
    sums = {}
    for padding in ("torch", "same"):
        conv = networks.conv2d(1, 3, 2, padding=padding, dtype=jnp.float32, name=None)
        kernel = {"params": {"kernel": jnp.ones((3, 3, 1, 1))}}
        sums[padding] = conv.apply(kernel, row)[0, 1, :, 0]  # an inner row: three rows of pixels
    np.testing.assert_allclose(sums["torch"], [3 * (1 + 2), 3 * (2 + 3 + 4)])
    np.testing.assert_allclose(sums["same"], [2 * (1 + 2 + 3), 2 * (3 + 4)])


def test_zero_init_makes_blocks_the_identity():
    def last_scale(zero):
        block = networks.BasicBlock(
            channels=4,
            stride=1,
            conv=partial(networks.conv2d, padding="torch", dtype=jnp.float32),
            norm=partial(networks.BatchNorm, use_running_average=True),
            zero_init_scale=zero,
        )
        return block.init(jax.random.key(0), jnp.zeros((1, 4, 4, 4)))["params"]["bn2"]["scale"]

    np.testing.assert_array_equal(last_scale(True), 0)
    np.testing.assert_array_equal(last_scale(False), 1)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    seen = {}

    def spy(next_function, args, kwargs, context):
        out = next_function(*args, **kwargs)
        if context.method_name == "__call__" and context.module.name:
            seen[context.module.name] = getattr(out, "dtype", None)
        return out

    image = jnp.zeros((2, 8, 8, 3))
    encoder = networks.ResNet8(stem="strided", dtype=jnp.bfloat16)
    head = networks.MLP(8, 4, dtype=jnp.bfloat16)
    with nn.intercept_methods(spy):
        made = jax.eval_shape(lambda: encoder.init(jax.random.key(0), image, train=True))
        made_head = jax.eval_shape(
            lambda: head.init(jax.random.key(0), jnp.zeros((2, 6)), train=True)
        )
    assert {x.dtype for x in jax.tree.leaves((made, made_head))} == {jnp.dtype("float32")}
    assert seen["conv1"] == jnp.bfloat16 and seen["layer3_0"] == jnp.bfloat16
    assert seen["dense1"] == jnp.bfloat16 and seen["bn1"] == jnp.float32  # the head's, seen last


def test_head_is_dense_norm_relu_dense():
    head = networks.MLP(5, 3)
    x = jax.random.normal(jax.random.key(0), (7, 4))
    made = head.init(jax.random.key(1), x, train=True)
    made["params"]["dense1"]["bias"] = jnp.arange(5.0)
    got, _ = head.apply(made, x, train=True, mutable=["batch_stats"])
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), made["params"])
    hidden = np.asarray(x, np.float64) @ p["dense1"]["kernel"] + p["dense1"]["bias"]
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    hidden = np.maximum(hidden * p["bn1"]["scale"] + p["bn1"]["bias"], 0)
    assert set(p["dense2"]) == {"kernel"}
    np.testing.assert_allclose(got, hidden @ p["dense2"]["kernel"], atol=1e-5)


def test_running_statistics_decay_by_a_tenth():
    head = networks.MLP(5, 3)
    x = jax.random.normal(jax.random.key(0), (7, 4))
    made = head.init(jax.random.key(1), x, train=True)
    _, changed = head.apply(made, x, train=True, mutable=["batch_stats"])
    hidden = np.asarray(x) @ np.asarray(made["params"]["dense1"]["kernel"])
    stats = changed["batch_stats"]["bn1"]
    np.testing.assert_allclose(stats["mean"], 0.1 * hidden.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * hidden.var(0), atol=1e-5)
