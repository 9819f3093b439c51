"""Files of weights as encoders: the features of the encoder that they were written from."""

import numpy as np
import pytest
import safetensors.numpy
from encoders import random_encoder

from byol_jax.errors import CheckpointError
from byol_jax.export.convert import timm, torchvision
from byol_jax.export.convert.weights import open_weights

RESNETS = [
    ("resnet18", {"width_multiplier": 0.125}),
    ("resnet18", {"width_multiplier": 0.125, "first_shortcut": True}),
    ("resnet50", {"width_multiplier": 0.125}),
]
OTHERS = [
    ("vit_ti", {"width": 128, "heads": 2, "depth": 1, "patch_size": 16}),
    ("convnext_t", {"stage_sizes": (1, 2), "stage_channels": (8, 16)}),
]


def arrays_of(encoder):
    if encoder.config["encoder"]["name"].startswith("resnet"):
        return torchvision.to_state_dict(encoder.variables)
    size = encoder.config["image_size"]
    return timm.to_state_dict(encoder.module, encoder.variables, size)


@pytest.mark.parametrize(("name", "settings"), RESNETS + OTHERS)
def test_the_features_are_those_of_the_encoder(tmp_path, name, settings):
    encoder = random_encoder(name, image_size=32, **settings)
    safetensors.numpy.save_file(arrays_of(encoder), tmp_path / "x.safetensors")
    opened = open_weights(tmp_path / "x.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(opened.embed(images), encoder.embed(images), rtol=1e-5, atol=1e-6)
    assert opened.config["image_size"] == (32 if name == "vit_ti" else 224)


def test_a_resnet_that_has_no_name_is_one_line(tmp_path):
    arrays = arrays_of(random_encoder("resnet18", image_size=32, width_multiplier=0.125))
    shorter = {name: x for name, x in arrays.items() if not name.startswith("layer1.1.")}
    safetensors.numpy.save_file(shorter, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="other depths, widths or stem") as error:
        open_weights(tmp_path / "x.safetensors")
    assert "\n" not in str(error.value)
