"""ONNX Runtime computes what the encoder computes, or nothing is written."""

import json
import logging
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import random_encoder, tiny_convnext, tiny_vit

from byol_jax.errors import UserError
from byol_jax.export import onnx as onnx_format

pytest.importorskip("jax2onnx")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


def images_for(encoder, n):
    size, channels = encoder.config["image_size"], encoder.config["channels"]
    return np.random.default_rng(n).integers(0, 256, (n, size, size, channels), np.uint8)


def assert_equal_features(encoder, directory, monkeypatch):
    """Runs the lines of config.json unchanged in the exported folder, for two batch sizes."""
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "encoder.onnx"]
    lines = json.loads((directory / "config.json").read_text())["load"]
    assert "\n".join(lines) + "\n" == onnx_format.LOAD
    monkeypatch.chdir(directory)
    for n in (1, 4):
        names = {"images": images_for(encoder, n)}
        exec(onnx_format.LOAD, names)
        got, want = names["features"], encoder.embed(names["images"])
        assert got.dtype == np.float32 and got.shape == want.shape
        # Another order of summation gives 1e-6 of the largest feature.
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    "make",
    [
        lambda: random_encoder("convnet", image_size=16),
        tiny_vit,
        lambda: tiny_vit(positions="learned", pool="mean"),
        tiny_convnext,
    ],
    ids=["convnet", "vit", "vit of the mean", "convnext"],
)
def test_onnx_runtime_computes_equal_features(make, tmp_path, monkeypatch, caplog):
    encoder = make()
    onnx_format.save(encoder, tmp_path)
    assert not caplog.records
    assert_equal_features(encoder, tmp_path, monkeypatch)
    graph = onnx.load(tmp_path / "encoder.onnx").graph
    (images,), (features,) = graph.input, graph.output
    assert (images.name, features.name) == ("images", "features")
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    rows = [value.type.tensor_type.shape.dim[0] for value in (images, features)]
    assert [row.dim_param for row in rows] == ["n", "n"]


def test_the_authors_padding_and_gray_images(tmp_path, monkeypatch):
    encoder = random_encoder("resnet10", image_size=32, padding="same", channels=1)
    onnx_format.save(encoder, tmp_path)
    assert_equal_features(encoder, tmp_path, monkeypatch)


class Pool(nn.Module):
    """A pool padded by numbers, which jax2onnx converts wrongly."""

    dtype: jnp.dtype = jnp.float32

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return jnp.mean(x, axis=(1, 2))


class Fourier(Pool):
    """An operation that jax2onnx cannot convert."""

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return jnp.real(jnp.fft.fft2(x, axes=(1, 2)))[:, 0, 0]


@pytest.fixture
def encoder():
    return random_encoder("resnet8", image_size=16, stem="strided")


def test_a_graph_with_other_features_is_not_written(encoder, tmp_path):
    encoder.module, encoder.variables = Pool(), {}
    with pytest.raises(UserError, match=r"features are off by .* so nothing was written"):
        onnx_format.save(encoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_earlier_export_is_kept_on_failure(encoder, tmp_path):
    onnx_format.save(encoder, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    encoder.module, encoder.variables = Pool(), {}
    with pytest.raises(UserError, match="features are off by"):
        onnx_format.save(encoder, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "change",
    [
        lambda features: features * 1.001,
        lambda features: features[:1],
        lambda features: features.astype(np.float64),
        lambda features: features * np.nan,
    ],
    ids=["scaled", "rows", "dtype", "nan"],
)
def test_every_kind_of_difference_is_found(encoder, tmp_path, monkeypatch, change):
    class Changed(ort.InferenceSession):
        def run(self, names, inputs):
            return [change(features) for features in super().run(names, inputs)]

    monkeypatch.setattr(ort, "InferenceSession", Changed)
    with pytest.raises(UserError, match="features are off by"):
        onnx_format.save(encoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_cannot_be_converted_is_refused(encoder, tmp_path):
    encoder.module, encoder.variables = Fourier(), {}
    with pytest.raises(UserError, match=r"jax2onnx cannot convert this encoder .*: use --format="):
        onnx_format.save(encoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["jax2onnx", "onnxruntime"])
def test_missing_packages_are_named(encoder, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package}.*: pip install 'byol_jax\[export\]', then"):
        onnx_format.save(encoder, tmp_path / "out")


def test_the_conversion_leaves_flax_and_jax_unchanged(encoder, tmp_path):
    # jax2onnx replaces functions of Flax and JAX during tracing.
    before = nn.max_pool, nn.Conv.__call__, nn.relu, jnp.pad, jnp.mean
    levels = [logging.getLogger(name).level for name in ("jax2onnx", "onnx_ir")]
    onnx_format.save(encoder, tmp_path)
    assert (nn.max_pool, nn.Conv.__call__, nn.relu, jnp.pad, jnp.mean) == before
    assert [logging.getLogger(name).level for name in ("jax2onnx", "onnx_ir")] == levels
