"""Shapes, parameter counts, padding and dtypes of the networks."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax import models
from byol_jax.models import resnet


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
    assert count(models.ENCODERS[name]()) == parameters


def test_resnet200_has_200_layers():
    params = variables(models.ResNet200(), (1, 64, 64, 3))["params"]
    flat = jax.tree_util.tree_leaves_with_path(params)
    paths = [jax.tree_util.keystr(path) for path, _ in flat]
    convolutions = [p for p in paths if "kernel" in p and "downsample" not in p]
    assert len(convolutions) + 1 == 200  # and the classifier


def test_width_multiplier_doubles_every_convolution():
    narrow, wide = models.ResNet18(), models.ResNet18(width_multiplier=2)
    shapes = zip(
        jax.tree.leaves(variables(narrow, (1, 32, 32, 3))["params"]),
        jax.tree.leaves(variables(wide, (1, 32, 32, 3))["params"]),
        strict=True,
    )
    assert all(2 * a.shape[-1] == b.shape[-1] for a, b in shapes)


@pytest.mark.parametrize("stem", ["imagenet", "cifar", "strided"])
@pytest.mark.parametrize("padding", ["torch", "same"])
def test_stems_reduce_height_and_width(stem, padding):
    """The first block receives the size that the strides of the stem leave."""
    seen = {}

    def spy(next_function, args, kwargs, context):
        if context.module.name == "layer1_0" and context.method_name == "__call__":
            seen["shape"] = args[0].shape
        return next_function(*args, **kwargs)

    module = models.ResNet8(stem=stem, padding=padding)
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
        conv = resnet.conv2d(
            1,
            3,
            2,
            padding=padding,
            dtype=jnp.float32,
            convolution=jax.lax.conv_general_dilated,
            name=None,
        )
        kernel = {"params": {"kernel": jnp.ones((3, 3, 1, 1))}}
        sums[padding] = conv.apply(kernel, row)[0, 1, :, 0]  # an inner row: three rows of pixels
    np.testing.assert_allclose(sums["torch"], [3 * (1 + 2), 3 * (2 + 3 + 4)])
    np.testing.assert_allclose(sums["same"], [2 * (1 + 2 + 3), 2 * (3 + 4)])


def test_zero_init_makes_blocks_the_identity():
    def last_scale(zero):
        network = models.ResNet8(stem="strided", width_multiplier=0.25, zero_init_scale=zero)
        made = network.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), train=False)
        return made["params"]["layer3_0"]["bn2"]["scale"]

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
    encoder = models.ResNet8(stem="strided", dtype=jnp.bfloat16)
    head = models.MLP(8, 4, dtype=jnp.bfloat16)
    with nn.intercept_methods(spy):
        made = jax.eval_shape(lambda: encoder.init(jax.random.key(0), image, train=True))
        made_head = jax.eval_shape(
            lambda: head.init(jax.random.key(0), jnp.zeros((2, 6)), train=True)
        )
    assert {x.dtype for x in jax.tree.leaves((made, made_head))} == {jnp.dtype("float32")}
    assert seen["conv1"] == jnp.bfloat16 and seen["layer3_0"] == jnp.bfloat16
    assert seen["dense1"] == jnp.bfloat16 and seen["bn1"] == jnp.float32  # the head's, seen last


def test_head_is_dense_norm_relu_dense():
    head = models.MLP(5, 3)
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


def test_batch_norm_normalises_as_flax_does():
    x = 3 + jax.random.normal(jax.random.key(0), (7, 5, 4))
    params = {"scale": jnp.arange(1.0, 5), "bias": jnp.arange(4.0)}
    ours = models.BatchNorm(use_running_average=False)
    theirs = nn.BatchNorm(use_running_average=False)
    got, want = (
        norm.apply({"params": params} | norm.init(jax.random.key(1), x), x, mutable="batch_stats")
        for norm in (ours, theirs)
    )
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-5)


def test_running_averages_do_not_depend_on_their_initial_values():
    norm = models.BatchNorm(use_running_average=False)
    batches = np.random.default_rng(0).normal(2, 3, (4, 50, 3)).astype(np.float32)
    variables = norm.init(jax.random.key(1), batches[0])
    assert variables["batch_stats"]["count"] == 0
    for x in batches:
        _, changed = norm.apply(variables, x, mutable="batch_stats")
        variables |= changed
    weights = 0.1 * 0.9 ** np.arange(4)[::-1]
    weights /= weights.sum()
    stats = variables["batch_stats"]
    assert stats["count"] == 4
    np.testing.assert_allclose(stats["mean"], weights @ batches.mean(1), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], weights @ batches.var(1), rtol=1e-5)

    evaluated = models.BatchNorm(use_running_average=True).apply(variables, batches[0])
    want = (batches[0] - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    np.testing.assert_allclose(evaluated, want, rtol=1e-5, atol=1e-5)


def test_batch_norm_returns_the_chosen_dtype():
    x = jnp.ones((3, 4), jnp.bfloat16)
    norm = models.BatchNorm(use_running_average=False, dtype=jnp.bfloat16)
    y, variables = norm.init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("layers", "names"),
    [(1, ["dense1"]), (3, ["bn1", "bn2", "dense1", "dense2", "dense3"])],
)
def test_heads_of_other_depths(layers, names):
    head = models.MLP(5, 3, layers)
    x = jnp.ones((2, 4))
    y, variables = head.init_with_output(jax.random.key(0), x, train=True)
    params = variables["params"]
    assert sorted(params) == names
    assert y.shape == (2, 3)
    assert "bias" not in params[f"dense{layers}"]


def test_first_shortcut_projects_where_torchvision_does_not():
    plain, projected = (
        variables(models.ResNet18(first_shortcut=f), (1, 64, 64, 3))["params"]
        for f in (False, True)
    )
    assert "downsample_conv" not in plain["layer1_0"]
    kernel = projected["layer1_0"].pop("downsample_conv")["kernel"]
    assert kernel.shape == (1, 1, 64, 64)
    del projected["layer1_0"]["downsample_bn"]
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, projected)


def test_channels_of_stem_and_stages_are_settings():
    network = models.ResNet10(stem_channels=12, stage_channels=(4, 6, 8, 10), width_multiplier=2)
    params = variables(network, (1, 32, 32, 3))["params"]
    assert params["conv1"]["kernel"].shape[-1] == 24
    channels = [params[f"layer{i}_0"]["conv2"]["kernel"].shape[-1] for i in range(1, 5)]
    assert channels == [8, 12, 16, 20]


def test_rematerialised_blocks_compute_the_same():
    """Same tree, output, statistics and gradients; the backward pass repeats the convolutions."""
    network = models.ResNet((1, 1), models.Bottleneck, 2, stage_channels=(2, 4), stem="cifar")
    x = jax.random.normal(jax.random.key(0), (4, 6, 6, 3))
    made = jax.jit(partial(network.init, train=True))(jax.random.key(1), x)

    def loss(network, params):
        out, changed = network.apply(made | {"params": params}, x, True, mutable="batch_stats")
        return jnp.mean(out**2), (out, changed)

    values, convolutions = [], []
    for remat in (False, True):
        chosen = network.clone(remat=remat)
        shapes = jax.tree.map(jnp.shape, variables(chosen, x.shape))
        assert shapes == jax.tree.map(jnp.shape, made)
        gradient = jax.jit(jax.grad(partial(loss, chosen), has_aux=True)).trace(made["params"])
        convolutions.append(str(gradient.jaxpr).count("conv_general_dilated["))
        # As users compile it: without the flag of tests/conftest.py both round alike.
        compiled = gradient.lower().compile({"xla_cpu_use_fusion_emitters": True})
        values.append(jax.tree.leaves(compiled(made["params"])))
    for a, b in zip(*values, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.max(np.abs(a)))
    in_blocks = sum(leaf.ndim == 4 for leaf in jax.tree.leaves(made["params"])) - 1
    assert convolutions[1] - convolutions[0] == in_blocks


def test_batch_norm_keeps_only_its_input_for_the_backward_pass():
    x = jax.random.normal(jax.random.key(0), (5, 4, 4, 3))
    norm = models.BatchNorm(use_running_average=False)
    made = norm.init(jax.random.key(0), x)
    _, backward = jax.vjp(lambda x: norm.apply(made, x, mutable="batch_stats")[0], x)
    kept = [leaf for leaf in jax.tree.leaves(backward) if leaf.shape == x.shape]
    assert kept
    for leaf in kept:
        np.testing.assert_array_equal(leaf, x)


def test_settings_are_the_fields_of_the_module():
    assert models.settings("resnet8") == {
        "stem_channels": 16,
        "stage_channels": (16, 32, 64),
        "width_multiplier": 1.0,
        "stem": "imagenet",
        "padding": "torch",
        "first_shortcut": False,
        "zero_init_scale": False,
        "remat": False,
    }


def test_encoders_agree_on_the_type_of_a_setting():
    """The command line parses a setting before the name of the encoder is known."""
    types = {(k, type(v)) for name in models.ENCODERS for k, v in models.settings(name).items()}
    assert len(types) == len(dict(types))


def test_make_encoder_takes_settings_dtype_and_axis():
    encoder = models.make_encoder(
        "resnet18", stage_channels=[4, 4, 4, 4], dtype=jnp.bfloat16, axis_name="batch"
    )
    assert encoder == models.ResNet18(
        stage_channels=(4, 4, 4, 4), dtype=jnp.bfloat16, axis_name="batch"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "vit"}, "name='vit' is not one of resnet8, resnet10"),
        ({"name": []}, r"name=\[\] is not one of resnet8"),
        ({"block": 3}, "block=3 is not a setting of resnet8, which has stem_channels, stage_"),
        ({"stem": "deep"}, "stem='deep' is not one of imagenet, cifar, strided"),
        ({"stem": None}, "stem=None is not one of"),
        ({"remat": 1}, "remat=1 must be of type bool"),
        ({"stem_channels": True}, "stem_channels=True must be of type int"),
        ({"stem_channels": 10**30}, "stem_channels=1.* must be at most 1e"),
        ({"stage_channels": (1, 2, 10**30)}, "stage_channels=.* must be at most 1e"),
        ({"stage_channels": ("a", 2, 3)}, "stage_channels=.* must be 3 whole numbers"),
        ({"stage_channels": ()}, "stage_channels=.* must be 3 whole numbers"),
        ({"stage_channels": (1, 2, 0)}, "stage_channels=.* must be at least 1"),
        ({"width_multiplier": float("nan")}, "width_multiplier=nan must be at most"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        models.make_encoder(**{"name": "resnet8"} | settings)
