"""Encoders of clips: the Slow pathway against PyTorch's convolutions in 3 dimensions, and means."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import randomise

from byol_jax import models
from byol_jax.models import slow

CLIPS = np.random.default_rng(0).normal(size=(2, 3, 32, 32, 3)).astype(np.float32)
TINY = {"stem_channels": 4, "stage_channels": (4, 4, 6, 6), "stage_sizes": (1, 1, 2, 1)}


def tiny(block):
    encoder = models.Slow(**TINY, block=block)
    return encoder, randomise(models.variable_shapes(encoder, CLIPS), seed=0)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # ResNet-18 without its classifier, and two more thirds of the first convolutions of both
        # blocks of stages 3 (128 and 256 channels before) and 4.
        ("slow_r18", 11_176_512 + 2 * 9 * (128 * 256 + 256 * 256 + 256 * 512 + 512 * 512)),
        # Of ResNet-50: 6 blocks of stage 3, 3 of stage 4.
        (
            "slow_r50",
            23_508_032 + 2 * (512 * 256 + 5 * 1024 * 256) + 2 * (1024 * 512 + 2 * 2048 * 512),
        ),
    ],
)
def test_parameter_counts(name, parameters):
    clips = jax.ShapeDtypeStruct((1, 4, 64, 64, 3), jnp.float32)
    params = models.variable_shapes(models.make_encoder(name), clips)["params"]
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(params)) == parameters


def test_neighbours_are_those_of_the_same_clip():
    x = np.arange(12, dtype=np.float32).reshape(6, 1, 1, 2)  # two clips of three frames
    got = np.asarray(slow.with_neighbours(jnp.array(x), 3))[:, 0, 0]
    none = [0, 0]
    want = [
        [*none, *x[0, 0, 0], *x[1, 0, 0]],
        [*x[0, 0, 0], *x[1, 0, 0], *x[2, 0, 0]],
        [*x[1, 0, 0], *x[2, 0, 0], *none],
        [*none, *x[3, 0, 0], *x[4, 0, 0]],
        [*x[3, 0, 0], *x[4, 0, 0], *x[5, 0, 0]],
        [*x[4, 0, 0], *x[5, 0, 0], *none],
    ]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("block", [models.BasicBlock, models.Bottleneck])
def test_it_is_the_network_of_pytorch(block):
    torch = pytest.importorskip("torch")
    encoder, variables = tiny(block)
    params, stats = variables["params"], variables["batch_stats"]

    def conv(x, kernel, stride):
        size, _, joined, _ = kernel.shape
        time = joined // x.shape[1]
        weight = kernel.reshape(size, size, time, x.shape[1], -1).transpose(4, 3, 2, 0, 1)
        padding = (time // 2, size // 2, size // 2)
        weight = torch.tensor(np.ascontiguousarray(weight))
        return torch.nn.functional.conv3d(x, weight, None, (1, stride, stride), padding)

    def norm(x, scale, moments):
        arrays = moments["mean"], moments["var"], scale["scale"], scale["bias"]
        return torch.nn.functional.batch_norm(x, *map(torch.tensor, arrays), eps=1e-5)

    def residual(x, params, stats, stride):
        names = sorted(name for name in params if name.startswith("conv"))
        for name in names:
            is_strided = name == ("conv1" if block is models.BasicBlock else "conv2")
            x = conv(x, params[name]["kernel"], stride if is_strided else 1)
            x = norm(x, params[f"bn{name[-1]}"], stats[f"bn{name[-1]}"])
            x = x if name == names[-1] else torch.relu(x)
        return x

    x = torch.tensor(CLIPS.transpose(0, 4, 1, 2, 3))
    x = torch.relu(norm(conv(x, params["conv1"]["kernel"], 2), params["bn1"], stats["bn1"]))
    x = torch.nn.functional.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    for stage, blocks in enumerate(TINY["stage_sizes"]):
        for number in range(blocks):
            name = f"layer{stage + 1}_{number}"
            of_block, stride = (params[name], stats[name]), 2 if stage and not number else 1
            shortcut = x
            if "downsample_conv" in params[name]:
                shortcut = conv(x, params[name]["downsample_conv"]["kernel"], stride)
                shortcut = norm(shortcut, *(part["downsample_bn"] for part in of_block))
            x = torch.relu(shortcut + residual(x, *of_block, stride))
    want = x.mean((2, 3, 4)).numpy()
    embed = jax.jit(lambda clips: encoder.apply(variables, clips, train=False))
    got = embed(CLIPS)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    # The order of frames matters, unlike in a mean over frames.
    other = embed(CLIPS[:, [1, 0, 2]])
    assert np.abs(other - got).max() > 0.01 * np.abs(want).max()


def test_other_inputs_than_clips_are_one_line():
    encoder, _ = tiny(models.BasicBlock)
    with pytest.raises(ValueError, match=r"has the shape \(frames, height, width, channels\)"):
        models.variable_shapes(encoder, CLIPS[0])
    with pytest.raises(ValueError, match="name is of an encoder of video, not of images"):
        models.check_image_size(encoder, 32, 32)


class Scaled(nn.Module):
    frozen = ("kernel",)

    @nn.compact
    def __call__(self, x, train):
        kernel = self.param("kernel", nn.initializers.ones, (3, 5))
        x = jnp.square(models.BatchNorm(not train, name="bn")(x)) @ kernel
        return x.mean((1, 2))


def test_a_mean_over_frames():
    encoder = Scaled()
    module = models.FrameMean(encoder)
    variables = randomise(models.variable_shapes(module, CLIPS), seed=1)
    merged = CLIPS.reshape(6, 32, 32, 3)
    # The same variables, and batch norm over all frames together.
    got, updated = module.apply(variables, CLIPS, train=True, mutable=["batch_stats"])
    each, want = encoder.apply(variables, merged, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(got, each.reshape(2, 3, 5).mean(1), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, updated, want)
    assert module.frozen == ("kernel",)
    narrow = models.FrameMean(models.make_encoder("resnet8"))
    assert models.with_fields(narrow, dtype=jnp.bfloat16).encoder.dtype == jnp.bfloat16
