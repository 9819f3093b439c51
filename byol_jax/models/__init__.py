"""Encoders and the layers that they share, as Flax modules.

A family of encoders is a file here, such as resnet.py; encoders.py gives its members the names that
`config.encoder.name` takes. layers.py has batch norm and the MLP heads, networks.py the online and
the target network. Nothing here reads a config, a file or data, or knows about devices.
"""

from byol_jax.models.audio_ntt import AudioNTT
from byol_jax.models.conv1d import Conv1D, DenseEncoder
from byol_jax.models.convnet import ConvNet
from byol_jax.models.convnext import ConvNeXt, ConvNeXtS, ConvNeXtT
from byol_jax.models.encoders import (
    ENCODERS,
    check_image_size,
    check_setting,
    check_settings,
    is_own,
    make_encoder,
    own_class,
    settings,
)
from byol_jax.models.layers import MLP, BatchNorm, batch_norm_decay, dropout_by_position
from byol_jax.models.lightgcn import LightGCN
from byol_jax.models.networks import (
    ByArray,
    Classifier,
    FrameMean,
    OnlineNetwork,
    Outputs,
    TargetNetwork,
    encode,
    matmul_precision,
    variable_shapes,
    with_fields,
)
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
from byol_jax.models.slow import Slow, SlowR18, SlowR50
from byol_jax.models.text_transformer import TextTransformer
from byol_jax.models.vit import ViT, ViTB, ViTS, ViTTi

__all__ = [
    "ENCODERS",
    "MLP",
    "AudioNTT",
    "BasicBlock",
    "BatchNorm",
    "Bottleneck",
    "ByArray",
    "Classifier",
    "Conv1D",
    "ConvNeXt",
    "ConvNeXtS",
    "ConvNeXtT",
    "ConvNet",
    "DenseEncoder",
    "FrameMean",
    "LightGCN",
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
    "Slow",
    "SlowR18",
    "SlowR50",
    "TargetNetwork",
    "TextTransformer",
    "ViT",
    "ViTB",
    "ViTS",
    "ViTTi",
    "batch_norm_decay",
    "check_image_size",
    "check_setting",
    "check_settings",
    "dropout_by_position",
    "encode",
    "is_own",
    "make_encoder",
    "matmul_precision",
    "own_class",
    "settings",
    "variable_shapes",
    "with_fields",
]
