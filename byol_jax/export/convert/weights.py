"""A file of torchvision's or timm's weights as an encoder that computes features."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from byol_jax import models
from byol_jax.augment import image as image_augment
from byol_jax.errors import CheckpointError
from byol_jax.export.convert import timm, torchvision
from byol_jax.runs import manifest
from byol_jax.runs.encoder import Encoder

IMAGE_SIZE = 224  # of a ResNet and a ConvNeXt, whose weights do not tell it
HEAD_WIDTH = 64  # of timm's ViTs, whose weights do not tell the number of heads


def open_weights(path: str | Path) -> Encoder:
    """The encoder of a file of weights, for images with ImageNet's mean and std.

    A file does not say how its images were normalised; one of another mean and std gives worse
    features. Images have 224 pixels, or what the positions of a ViT are for.

    Args:
      path: as `torchvision.read`: a ResNet under torchvision's names, a ViT or ConvNeXt under
        timm's.

    Raises:
      CheckpointError: the file cannot be read, or its weights are none of these.
    """
    arrays = torchvision.read(path)
    image_size = IMAGE_SIZE
    if timm.is_known(arrays):
        variables, settings = timm.from_state_dict(arrays, fixed_positions=False)
        settings["name"] = "convnext_t"
        if "patch_size" in settings:
            settings |= {"name": "vit_ti", "heads": max(1, settings["width"] // HEAD_WIDTH)}
            rows = variables["params"]["position_embedding"].shape[0] - 1
            image_size = settings["patch_size"] * round(rows**0.5)
    else:
        variables = torchvision.from_state_dict(arrays)
        settings = _resnet(variables)
    policy = image_augment.IMAGENET
    config = {
        "encoder": settings,
        "dtype": "float32",
        "image_size": image_size,
        "channels": len(policy.mean),
        "mean": policy.mean,
        "std": policy.std,
        "training": {"method": "weights", "step": None, "data": None},
    }
    return Encoder(config, variables)


def _resnet(variables: dict[str, Any]) -> dict[str, Any]:
    """Settings of the named ResNet with these variables, or CheckpointError if there is none."""
    params = variables["params"]
    width, first = params["conv1"]["kernel"].shape[-1], params["layer1_0"]
    blocks = sum(name.startswith("layer") for name in params)
    view = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
    for name in models.ENCODERS:
        usual = models.make_encoder(name)
        if type(usual) is not models.ResNet or sum(usual.stage_sizes) != blocks:
            continue
        settings = {"name": name, "width_multiplier": width / usual.stem_channels}
        settings["first_shortcut"] = "downsample_conv" in first and "conv3" not in first
        wanted = models.variable_shapes(models.make_encoder(**settings), view)
        if not manifest.difference(variables, wanted):
            return settings
    raise CheckpointError(
        "The weights are those of a ResNet of other depths, widths or stem than the named ones, "
        "which only a run of the same settings can open (--config.init.encoder)."
    )
