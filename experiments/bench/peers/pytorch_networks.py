"""The networks of byol_jax.models in torch.nn, with torchvision's parameter names."""

import torch
from torch import nn

from byol_jax import models

STEMS = {"imagenet": (7, 2), "cifar": (3, 1), "strided": (3, 2)}  # size and stride
BN_MOMENTUM = 0.1  # in PyTorch this is 1 - decay


def conv(inputs: int, outputs: int, size: int, stride: int) -> nn.Conv2d:
    """A square convolution without bias, padded on all sides."""
    made = nn.Conv2d(inputs, outputs, size, stride, (size - 1) // 2, bias=False)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")  # as in torchvision
    return made


class Block(nn.Module):
    """A basic block (two convolutions) or a bottleneck block (three)."""

    def __init__(self, inputs: int, channels: int, stride: int, sizes: tuple[int, ...]):
        super().__init__()
        expansion = models.Bottleneck.expansion if len(sizes) == 3 else 1
        outputs = expansion * channels
        self.layers = len(sizes)
        # The first 3x3 convolution has the stride.
        strided = sizes.index(3)
        before = inputs
        for i, size in enumerate(sizes):
            after = outputs if i == self.layers - 1 else channels
            setattr(self, f"conv{i + 1}", conv(before, after, size, stride if i == strided else 1))
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(after, momentum=BN_MOMENTUM))
            before = after
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs, momentum=BN_MOMENTUM)
            )
        self.outputs = outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102 (of nn.Module)
        residual = x
        for i in range(1, self.layers + 1):
            residual = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(residual))
            if i < self.layers:
                residual = torch.relu(residual)
        return torch.relu(residual + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """The same network as ours with `padding` 'torch' and without `first_shortcut`."""

    def __init__(self, ours: models.ResNet, image_channels: int = 3):
        super().__init__()
        sizes = (1, 3, 1) if ours.block is models.Bottleneck else (3, 3)
        size, stride = STEMS[ours.stem]
        channels = round(ours.stem_channels * ours.width_multiplier)
        self.conv1 = conv(image_channels, channels, size, stride)
        self.bn1 = nn.BatchNorm2d(channels, momentum=BN_MOMENTUM)
        self.pool = nn.MaxPool2d(3, 2, 1) if ours.stem == "imagenet" else nn.Identity()
        self.stages = len(ours.stage_sizes)
        for stage, blocks in enumerate(ours.stage_sizes):
            layers = []
            for block in range(blocks):
                width = round(ours.stage_channels[stage] * ours.width_multiplier)
                layers.append(Block(channels, width, 2 if stage and not block else 1, sizes))
                channels = layers[-1].outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.features = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102 (of nn.Module)
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return x.float().mean((2, 3))


def mlp(inputs: int, ours: models.MLP) -> nn.Sequential:
    """A projector or predictor with two layers."""
    return nn.Sequential(
        nn.Linear(inputs, ours.hidden_size),
        nn.BatchNorm1d(ours.hidden_size, momentum=BN_MOMENTUM),
        nn.ReLU(),
        nn.Linear(ours.hidden_size, ours.output_size, bias=False),
    )
