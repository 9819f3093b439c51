"""Weights for torchvision's ResNets, and for the programs that build on them.

    model.safetensors   under torchvision's names, without a classifier (`fc`)
    model.pth           the same as a PyTorch state dict, if PyTorch is installed
    config.json         architecture, image size, mean and std, how to load it

Neither PyTorch nor torchvision is needed.
"""

import io
from pathlib import Path

import numpy as np
import safetensors.numpy

from byol_jax import models
from byol_jax.errors import CheckpointError
from byol_jax.export import inference
from byol_jax.export.convert import torchvision
from byol_jax.runs import paths
from byol_jax.runs.encoder import Encoder

FORMAT = "byol_jax.torchvision.1"
LOAD = """\
import safetensors.torch, torch, torchvision
model = {constructor}
model.fc = torch.nn.Identity()
model.load_state_dict(safetensors.torch.load_file("model.safetensors"))
model.eval()
"""
CONSTRUCTORS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def save(encoder: Encoder, directory: Path) -> None:
    """Writes an encoder's weights for torchvision.

    Args:
      encoder: one that torchvision has too; see `state_dict`.
      directory: made if needed; an earlier export of this kind is replaced.

    Raises:
      CheckpointError: torchvision has no such network; the folder holds something else, or cannot
        be written.
    """
    arrays = state_dict(encoder, "torchvision")
    config = encoder.config
    record = {
        "format": FORMAT,
        "architecture": config["encoder"]["name"],
        "features": inference.num_features(encoder),
        "input": "RGB images in 0..1, minus mean, over std: float32 (n, 3, height, width)",
        "image_size": config["image_size"],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "load": LOAD.format(constructor=_constructor(encoder)).splitlines(),
        "training": config["training"],
    }
    torch_file = _torch_file(arrays)
    with paths.write_folder(directory, record) as new:
        (new / "model.safetensors").write_bytes(safetensors.numpy.save(arrays))
        if torch_file is not None:
            (new / "model.pth").write_bytes(torch_file)
    if torch_file is None:
        (directory / "model.pth").unlink(missing_ok=True)  # has the weights of an earlier export


def state_dict(encoder: Encoder, library: str) -> dict[str, np.ndarray]:
    """An encoder's weights under the names that torchvision and timm share.

    Args:
      encoder: a ResNet with the ImageNet stem, symmetric padding, three channels and usual widths.
      library: name of the library, for the message.

    Returns:
      The arrays of `convert.torchvision.to_state_dict`.

    Raises:
      CheckpointError: the library has no such network: the weights would not fit, or would give
        other features.
    """
    module = encoder.module
    channels = encoder.config.get("channels")
    if type(module) is not models.ResNet:  # a subclass may compute something else
        reason = f"it is a {type(module).__name__}, not a ResNet"
    elif module.stem != "imagenet":
        reason = (
            f"it starts with the stem {module.stem!r}, where {library}'s ResNets have a 7x7 "
            "convolution of stride 2 and a max-pool"
        )
    elif module.padding != "torch":
        reason = (
            f"its padding is {module.padding!r}, which puts the odd pixel of a convolution of "
            f"stride 2 on another side than {library} does, so that features would differ"
        )
    elif channels != 3:
        reason = f"its images have {channels} channel(s), and those of {library}'s ResNets have 3"
    elif _widths(module) != (64, 64, 128, 256, 512):
        reason = (
            f"its stem and stages have {', '.join(map(str, _widths(module)))} channels, and those "
            f"of {library}'s ResNets are fixed at 64, 64, 128, 256 and 512 (its wide ones widen "
            "only the inside of their blocks)"
        )
    elif module.first_shortcut and module.block is models.BasicBlock:
        reason = (
            "its first block projects the shortcut (config.encoder.first_shortcut), which "
            f"{library}'s ResNets of basic blocks do not"
        )
    else:
        return torchvision.to_state_dict(encoder.variables)
    raise CheckpointError(
        f"This encoder has no counterpart in {library}: {reason}; use --format=byol_jax, or "
        "stablehlo, savedmodel or onnx, which carry the computation itself."
    )


def _widths(module: models.ResNet) -> tuple[int, ...]:
    """Channels of the stem and of each stage's 3x3 convolutions."""
    widths = (module.stem_channels, *module.stage_channels)
    return tuple(round(width * module.width_multiplier) for width in widths)


def _constructor(encoder: Encoder) -> str:
    name = encoder.config["encoder"]["name"]
    if name in CONSTRUCTORS:
        return f"torchvision.models.{name}(weights=None)"
    block = encoder.module.block.__name__  # torchvision has the same name
    layers = list(encoder.module.stage_sizes)
    return f"torchvision.models.ResNet(torchvision.models.resnet.{block}, {layers})"


def _torch_file(arrays: dict[str, np.ndarray]) -> bytes | None:
    """The file that torch.save writes, or None without PyTorch."""
    try:
        import torch
    except ImportError:
        return None
    file = io.BytesIO()
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, file)
    return file.getvalue()
