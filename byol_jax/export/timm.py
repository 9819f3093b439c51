"""A model folder of the Hugging Face Hub that timm loads, from the disk or from the Hub.

    config.json         in timm's layout: architecture, and how images are prepared
    model.safetensors   under timm's names, without a classifier
    README.md           the model card: how it was trained, how to load it; whoever publishes it
                        adds the license

The layout is that of timm.models.push_to_hf_hub (timm/models/_hub.py).
"""

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from byol_jax import models
from byol_jax.errors import CheckpointError
from byol_jax.export import inference
from byol_jax.export import torchvision as torchvision_export
from byol_jax.export.convert import timm as names
from byol_jax.runs import paths
from byol_jax.runs.encoder import Encoder

FORMAT = "byol_jax.timm.1"
ARCHITECTURES = {  # timm's names, where they are not ours
    "vit_ti": "vit_tiny_patch16_224",
    "vit_s": "vit_small_patch16_224",
    "vit_b": "vit_base_patch16_224",
    "convnext_t": "convnext_tiny",
    "convnext_s": "convnext_small",
}

CARD = """\
---
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- timm
- image-feature-extraction
- byol
- self-supervised
# license: add one before you publish the weights
---
# {architecture}, trained with {method}

An image encoder without a classifier: {features} features for each image.

- Method: {method}
- Data: {data}
- Updates: {step}{of_total}
- Images: {image_size} x {image_size} RGB, a central crop of {crop_pct:g} of the shorter side
- Mean {mean} and standard deviation {std}, for values in 0 to 1
- Every setting: `training` in `config.json`

## Use

In this folder; from the Hub, replace `local-dir:.` by `hf-hub:NAME/REPOSITORY`:

```python
import timm
import torch
from PIL import Image

model = timm.create_model("local-dir:.", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
image = Image.new("RGB", (640, 480))  # your image
with torch.no_grad():
    features = model(transform(image).unsqueeze(0))  # (1, {features})
```

`timm.create_model(..., num_classes=N)` adds a classifier to train. timm's bicubic resizing smooths
an image that it shrinks, and that of the training does not: features of large images differ a bit.
"""


def save(encoder: Encoder, directory: Path) -> None:
    """Writes an encoder as a model folder for timm.

    A README.md that differs from the new model card is kept, as it may have been edited, and a
    line on stdout says so.

    Args:
      encoder: a ViT or ConvNeXt of RGB images, or a ResNet that timm has too; see
        `export.torchvision.state_dict`.
      directory: made if needed; an earlier export of this kind is replaced.

    Raises:
      CheckpointError: timm has no such network; the folder holds something else, or cannot be
        written.
    """
    arrays = _state_dict(encoder)
    record = _config(encoder)
    card, path = _card(encoder, record), directory / "README.md"
    with paths.write_folder(directory, record) as new:
        (new / "model.safetensors").write_bytes(safetensors.numpy.save(arrays))
        if path.exists() and path.read_bytes() != card:
            print(f"{path} differs from the new model card and is kept; remove it to replace it.")
        else:
            (new / "README.md").write_bytes(card)


def _state_dict(encoder: Encoder) -> dict[str, np.ndarray]:
    """The encoder's weights under timm's names."""
    module, channels = encoder.module, encoder.config.get("channels")
    if type(module) not in (models.ViT, models.ConvNeXt):
        return torchvision_export.state_dict(encoder, "timm")
    if channels != 3:
        raise CheckpointError(
            f"This encoder has no counterpart in timm: its images have {channels} channel(s), and "
            "timm prepares images with 3; use --format=byol_jax, stablehlo, savedmodel or onnx."
        )
    return names.to_state_dict(module, encoder.variables, encoder.config["image_size"])


def _config(encoder: Encoder) -> dict[str, Any]:
    """The contents of config.json: timm's keys, and our own 'format' and 'training'."""
    config = encoder.config
    size = config["image_size"]
    record = {
        "format": FORMAT,
        "architecture": ARCHITECTURES.get(config["encoder"]["name"], config["encoder"]["name"]),
        "num_classes": 0,
        "num_features": inference.num_features(encoder),
        "global_pool": "avg",
        "pretrained_cfg": {
            "tag": "byol",
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": encoder.crop_fraction,
            "crop_mode": "center",
            "mean": list(config["mean"]),
            "std": list(config["std"]),
            "num_classes": 0,
            "pool_size": [-(-size // 32)] * 2,  # of the last stage
            "first_conv": "conv1",
            "classifier": "fc",
        },
        "training": config["training"],
    }
    if record["architecture"] == "resnet10":  # timm's resnet10 has another stem
        record |= {"architecture": "resnet18", "model_args": {"layers": [1, 1, 1, 1]}}
    module, prepared = encoder.module, record["pretrained_cfg"]
    if isinstance(module, models.ConvNeXt):
        sizes, channels = list(module.stage_sizes), list(module.stage_channels)
        record["model_args"] = {"depths": sizes, "dims": channels}
        prepared |= {"first_conv": "stem.0", "classifier": "head.fc"}
    elif isinstance(module, models.ViT):
        record["global_pool"] = {"class": "token", "mean": "avg"}[module.pool]
        record["model_args"] = {
            "img_size": size,
            "patch_size": module.patch_size,
            "embed_dim": module.width,
            "depth": module.depth,
            "num_heads": module.heads,
            "global_pool": record["global_pool"],
        }
        prepared |= {"fixed_input_size": True, "pool_size": None}
        prepared |= {"first_conv": "patch_embed.proj", "classifier": "head"}
    return record


def _card(encoder: Encoder, record: dict[str, Any]) -> bytes:
    """The text of the model card, UTF-8."""
    config = encoder.config
    training = config["training"]
    data = training.get("data") or {}
    name, examples = data.get("name", "not recorded"), data.get("num_examples")
    total = training.get("total_steps")
    text = CARD.format(
        architecture=config["encoder"]["name"],
        method=training["method"],
        features=record["num_features"],
        data=name if examples is None else f"{name}, {examples} images, labels not used",
        step=training["step"],
        of_total=f" of {total}" if total else "",
        image_size=config["image_size"],
        crop_pct=record["pretrained_cfg"]["crop_pct"],
        mean=", ".join(f"{value:g}" for value in config["mean"]),
        std=", ".join(f"{value:g}" for value in config["std"]),
    )
    return text.encode()
