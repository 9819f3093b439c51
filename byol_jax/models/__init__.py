"""Encoders and the layers that they share, as Flax modules.

A family of encoders is a file here; `ENCODERS` gives its members their names on the command line.
Nothing here reads a config, a file or data, or knows about devices.
"""

from byol_jax.models.layers import MLP, BatchNorm, dropout_by_position
from byol_jax.models.networks import OnlineNetwork, Outputs, TargetNetwork, encode
from byol_jax.models.resnet import (
    BasicBlock,
    Bottleneck,
    ResNet,
    ResNet8,
    ResNet10,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    ResNet200,
)

ENCODERS = {  # by the name that config.encoder.name takes
    "resnet8": ResNet8,
    "resnet10": ResNet10,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "resnet101": ResNet101,
    "resnet152": ResNet152,
    "resnet200": ResNet200,
}

__all__ = [
    "ENCODERS",
    "MLP",
    "BasicBlock",
    "BatchNorm",
    "Bottleneck",
    "OnlineNetwork",
    "Outputs",
    "ResNet",
    "ResNet8",
    "ResNet10",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "ResNet152",
    "ResNet200",
    "TargetNetwork",
    "dropout_by_position",
    "encode",
]
