"""The backbones of torchvision's detection and segmentation models take an exported encoder.

Without torchvision's compiled part, only the examples of docs/detection.md and the backbones can
run, not the operations on boxes.
"""

import re
from pathlib import Path

import numpy as np
import pytest
from encoders import random_encoder
from torchvision_on_cpu import torch, torchvision

from byol_jax.export import torchvision as torchvision_export

safetensors_torch = pytest.importorskip("safetensors.torch")
SIZE = 64
EXAMPLES = re.findall(
    r"```python\n(.*?)```",
    (Path(__file__).parents[2] / "docs/detection.md").read_text(encoding="utf-8"),
    flags=re.DOTALL,
)


@pytest.fixture(scope="module")
def encoder():
    return random_encoder("resnet50", image_size=SIZE)


@pytest.fixture(scope="module")
def exported(encoder, tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported")
    torchvision_export.save(encoder, directory / "backbone")
    return directory


@pytest.fixture(scope="module")
def weights(exported):
    return safetensors_torch.load_file(exported / "backbone" / "model.safetensors")


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, SIZE, SIZE), "float32"))


@pytest.fixture(scope="module")
def pooled(encoder, images):
    """Our features of the same images."""
    x = images.numpy().transpose(0, 2, 3, 1)
    return np.asarray(encoder.module.apply(encoder.variables, x, train=False))


def example(number, directory, monkeypatch):
    """Runs an example of the document next to the exported folder; returns its names."""
    monkeypatch.chdir(directory)
    names = {}
    exec(EXAMPLES[number], names)
    return names


def assert_holds(module, weights, counts):
    """All weights are loaded; frozen batch norms have no counts."""
    want = {k: v for k, v in weights.items() if counts or not k.endswith("num_batches_tracked")}
    got = module.state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], value) for name, value in want.items())


def test_the_document_has_the_examples_that_are_tested():
    assert len(EXAMPLES) == 2 and "FasterRCNN(" in EXAMPLES[0] and "fcn_resnet50(" in EXAMPLES[1]


def test_faster_r_cnn_has_the_weights(encoder, exported, weights, images, pooled, monkeypatch):
    model = example(0, exported, monkeypatch)["model"].eval()
    frozen = torchvision.ops.FrozenBatchNorm2d
    assert isinstance(model.backbone.body.bn1, frozen)
    assert_holds(model.backbone.body, weights, counts=False)
    assert model.transform.image_mean == encoder.config["mean"]
    assert model.transform.image_std == encoder.config["std"]
    trainable = {
        n.split(".")[0] for n, p in model.backbone.body.named_parameters() if p.requires_grad
    }
    assert trainable == {"layer2", "layer3", "layer4"}
    with torch.no_grad():
        pyramid = model.backbone(images)
        last = model.backbone.body(images)["3"]
    shapes = {name: tuple(level.shape) for name, level in pyramid.items()}
    sizes = {"0": 16, "1": 8, "2": 4, "3": 2, "pool": 1}
    assert shapes == {name: (2, 256, size, size) for name, size in sizes.items()}
    assert_close(last, pooled)


def test_a_backbone_that_trains_its_norms_has_the_weights(weights, images, pooled):
    backbone = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        trainable_layers=5,
        norm_layer=torch.nn.BatchNorm2d,
    )
    backbone.body.load_state_dict(weights, strict=True)
    assert_holds(backbone.body, weights, counts=True)
    assert all(p.requires_grad for p in backbone.parameters())
    with torch.no_grad():
        assert_close(backbone.eval().body(images)["3"], pooled)


def test_fcn_has_the_weights(exported, weights, images, pooled, monkeypatch):
    model = example(1, exported, monkeypatch)["model"].eval()
    assert_holds(model.backbone, weights, counts=True)
    with torch.no_grad():
        scores = model(images)["out"]
        last = model.backbone(images)["out"]
    assert scores.shape == (2, 21, SIZE, SIZE)
    # Dilated instead of strided: stride 8 in the end, and other features than ours.
    assert last.shape == (2, 2048, 8, 8)
    assert not np.allclose(last.mean((2, 3)).numpy(), pooled, rtol=1e-2)


def assert_close(last, pooled):
    """The last stage's output, pooled, is the encoder's embedding."""
    got = last.mean((2, 3)).numpy()
    np.testing.assert_allclose(got, pooled, rtol=1e-5, atol=1e-5 * np.abs(pooled).max())
