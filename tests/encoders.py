"""Encoders and runs with random weights and statistics, for the tests of the formats."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tiny import tiny_resnet_config

from byol_jax import byol, models
from byol_jax.augment import image as image_augment
from byol_jax.runs import run as run_lib
from byol_jax.runs.encoder import Encoder
from byol_jax.runs.resolve import resolve


def random_encoder(
    name: str,
    *,
    image_size: int = 64,
    channels: int = 3,
    dtype: str = "float32",
    seed: int = 0,
    **settings: Any,
) -> Encoder:
    """An encoder with these settings whose every leaf is random: none has its initial value."""
    settings = {"name": name} | models.settings(name) | settings
    mean, std = list(image_augment.IMAGENET_MEAN), list(image_augment.IMAGENET_STD)
    config = {
        "encoder": settings,
        "dtype": dtype,
        "image_size": image_size,
        "channels": channels,
        "mean": mean if channels == 3 else [0.5] * channels,
        "std": std if channels == 3 else [0.25] * channels,
        "training": {"method": "random", "step": 0, "total_steps": 0, "data": None, "config": None},
    }
    image = jax.ShapeDtypeStruct((1, image_size, image_size, channels), np.float32)
    module = models.make_encoder(**settings, dtype=jnp.dtype(dtype))
    encode = functools.partial(models.encode, train=False)
    shapes = jax.eval_shape(lambda x: nn.init(encode, module)(jax.random.key(0), x), image)
    return Encoder(config, randomise(shapes, seed))


def randomise(shapes: Any, seed: int) -> Any:
    """A nested dict of float32 NumPy arrays of the shapes of a tree, random by the leaf's name."""
    random = np.random.default_rng(seed)

    def leaf(path: tuple, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        g = random.standard_normal(shape.shape, np.float32)
        values = {
            "kernel": lambda: g * np.sqrt(2 / max(1, np.prod(shape.shape[:-1]))),
            "scale": lambda: 1 + 0.1 * g,
            "bias": lambda: 0.1 * g,
            "mean": lambda: 0.1 * g,
            "var": lambda: 1 + 0.1 * np.abs(g),
            "count": lambda: np.full(shape.shape, 1000),  # updates averaged
            "class_token": lambda: g,
            "position_embedding": lambda: g,
            "layer_scale": lambda: g,
        }[path[-1].key]()
        return np.asarray(values, np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def tiny_vit(**settings: Any) -> Encoder:
    """A ViT of two blocks, random."""
    tiny = {"width": 24, "heads": 2, "depth": 2, "patch_size": 8, "image_size": 32}
    return random_encoder("vit_ti", **(tiny | settings))


def tiny_convnext(**settings: Any) -> Encoder:
    """A ConvNeXt of five blocks, random."""
    tiny = {"stage_sizes": (1, 1, 2, 1), "stage_channels": (8, 12, 16, 24), "image_size": 64}
    return random_encoder("convnext_t", **(tiny | settings))


def output_dtypes(
    module: nn.Module, variables: Any, images: np.ndarray
) -> tuple[jax.Array, dict[str, Any]]:
    """What a module computes in evaluation, and the dtype of each submodule's output by name."""
    seen = {}

    def spy(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.method_name == "__call__":
            seen[context.module.name or "encoder"] = out.dtype
        return out

    with nn.intercept_methods(spy):
        return module.apply(variables, images, train=False), seen


def traced_gradient(module: nn.Module, variables: Any, images: np.ndarray) -> Any:
    """A sum of cubes of a module's output in training, and its gradient, traced by `jax.jit`."""

    def loss(variables):
        with models.dropout_by_position(jnp.arange(len(images))):
            out = module.apply(variables, images, train=True, rngs=jax.random.key(1))
        return jnp.sum(out**3)

    return jax.jit(jax.value_and_grad(loss)).trace(variables)


def random_trained(step: int, **heads: int) -> run_lib.Trained:
    """A run of `tiny_resnet_config` with these heads, at a step, without the training."""
    config = tiny_resnet_config()
    config.heads.update(heads)
    config, _ = resolve(config)
    run = run_lib.Run(config, {"name": "random", "num_classes": 3}, steps_per_epoch=3)
    learner = run.learner()
    state = run_lib.abstract_state(learner, config)
    params, stats = randomise(state.online_params, step), randomise(state.online_stats, step)
    parts = ("encoder", "projector")
    state = byol.State(
        step=np.asarray(step, np.int32),
        seed=np.asarray(0, np.uint32),
        online_params=params,
        target_params={part: params[part] for part in parts},
        online_stats=stats,
        target_stats={part: stats[part] for part in parts},
        opt_state=jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state.opt_state),
    )
    return run_lib.Trained(run, learner, state)
