"""Maps of features of every encoder: their shapes, and their values by other means."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import random_encoder, random_trained, tiny_convnext, tiny_vit

from byol_jax import models
from byol_jax.augment import image as image_augment
from byol_jax.errors import ConfigError, DataError
from byol_jax.runs import encoder as encoder_lib


def images_for(encoder, n=3):
    size, channels = encoder.config["image_size"], encoder.config["channels"]
    return np.random.default_rng(0).integers(0, 256, (n, size, size, channels), np.uint8)


def assert_close(got, want):
    assert got.dtype == np.float32 and got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


RESNET = random_encoder("resnet8", stem="strided", image_size=16, dtype="bfloat16")
CONVNET = random_encoder("convnet", channels=1, image_size=16)
ENCODERS = {
    "resnet": (RESNET, {"layer1": (8, 8, 16), "layer2": (4, 4, 32), "layer3": (2, 2, 64)}),
    "convnet": (CONVNET, {"layer1": (8, 8, 32), "layer2": (4, 4, 64), "layer3": (2, 2, 128)}),
    "vit": (tiny_vit(), {"block1": (4, 4, 24), "block2": (4, 4, 24)}),
    "convnext": (
        tiny_convnext(),
        {
            **{"layer1": (16, 16, 8), "layer2": (8, 8, 12)},
            **{"layer3": (4, 4, 16), "layer4": (2, 2, 24)},
        },
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_layers_and_their_shapes(name):
    encoder, layers = ENCODERS[name]
    images = images_for(encoder)
    with pytest.raises(ConfigError, match=f"layer='x' is not one of .*{', '.join(layers)}"):
        encoder.embed_dense(images, "x")
    for layer, shape in layers.items():
        got = encoder.embed_dense(images, layer, batch_size=2)
        assert got.dtype == np.float32 and got.shape == (3, *shape)
    last = encoder.embed_dense(images)
    assert last.shape == (3, *list(layers.values())[-1])
    if name != "vit":  # whose last block comes before the final norm
        assert_close(last, got)


@pytest.mark.parametrize("name", ENCODERS)
def test_maps_are_made_for_those_who_ask_alone(name):
    """Neither initial variables nor an application with other mutable collections have them."""
    encoder, _ = ENCODERS[name]
    module, x = encoder.module, images_for(encoder).astype(np.float32)
    encode = functools.partial(models.encode, train=False)
    made = jax.eval_shape(nn.init(encode, module), jax.random.key(0), x)
    assert made.keys() == encoder.variables.keys() <= {"params", "batch_stats"}
    apply = nn.apply(encode, module, mutable=["batch_stats"])
    assert not set(jax.eval_shape(apply, encoder.variables, x)[1]) - {"batch_stats"}


@pytest.mark.parametrize("encoder", [RESNET, tiny_vit(pool="mean")], ids=["resnet", "vit"])
def test_the_embedding_is_made_of_the_last_map(encoder):
    images = images_for(encoder)
    maps = encoder.embed_dense(images)
    if encoder is RESNET:
        assert_close(maps.mean((1, 2)), encoder.embed(images))
        return
    want = encoder.embed_dense(images, "block2").mean((1, 2))
    norm = encoder.variables["params"]["norm"]
    normalised = functools.partial(normalise, norm=norm)
    assert_close(normalised(want), encoder.embed(images))
    assert_close(maps, normalised(encoder.embed_dense(images, "block2")))


def normalise(x, norm):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * norm["scale"] + norm["bias"]


def test_the_maps_of_a_resnet_are_the_outputs_of_its_stages():
    seen = {}

    def spy(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.method_name == "__call__":
            seen[context.module.name] = out
        return out

    encoder = random_encoder("resnet8", stem="strided", image_size=16)
    images = images_for(encoder)
    x = image_augment.normalize(images, encoder.config["mean"], encoder.config["std"])
    with nn.intercept_methods(spy):
        encoder.module.apply(encoder.variables, x, train=False)
    for stage in (1, 2, 3):
        assert_close(encoder.embed_dense(images, f"layer{stage}"), seen[f"layer{stage}_0"])


@pytest.mark.parametrize("name", ["resnet", "vit", "convnext"])
def test_rematerialised_blocks_have_the_same_maps(name):
    encoder, _ = ENCODERS[name]
    settings = encoder.config["encoder"] | {"remat": True}
    remat = encoder_lib.Encoder(encoder.config | {"encoder": settings}, encoder.variables)
    images = images_for(encoder)
    np.testing.assert_array_equal(remat.embed_dense(images), encoder.embed_dense(images))


def test_a_run_has_maps_too():
    images = np.zeros((2, 16, 16, 1), np.uint8)
    assert encoder_lib.Model(random_trained(0)).embed_dense(images, "layer2").shape == (2, 4, 4, 8)


def test_images_that_do_not_fit_are_refused():
    vit, convnext = ENCODERS["vit"][0], ENCODERS["convnext"][0]
    with pytest.raises(DataError, match=r"embed: patch_size=8 does not divide images of 20 x 32"):
        vit.embed(np.zeros((1, 20, 32, 3), np.uint8))
    with pytest.raises(DataError, match=r"embed_dense: stage_sizes=.* at least 32 x 32 .* 16 x 40"):
        convnext.embed_dense(np.zeros((1, 16, 40, 3), np.uint8))
    with pytest.raises(DataError, match="embed_dense takes uint8 images"):
        vit.embed_dense(np.zeros((1, 32, 32, 3), np.float32))
    message = r"images of shape \(24, 24, .\), but this encoder has weights for \(16, 16, .\)"
    with pytest.raises(DataError, match=message):
        CONVNET.embed(np.zeros((1, 24, 24, 1), np.uint8))
    learned = tiny_vit(positions="learned", image_size=16)
    with pytest.raises(DataError, match=message):
        learned.embed_dense(np.zeros((1, 24, 24, 3), np.uint8))


def test_fixed_positions_take_any_number_of_patches():
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 24, 3), np.uint8)
    assert ENCODERS["vit"][0].embed_dense(images).shape == (2, 5, 3, 24)


class Silent(nn.Module):
    """An encoder without maps."""

    dtype: jnp.dtype = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images -> (batch, channels)."""
        self.sow("intermediates", "mean", x.mean())  # is no map
        return x.mean((1, 2))


def test_a_module_without_maps_is_named():
    encoder = random_encoder("resnet8", image_size=16)
    encoder.module, encoder.variables = Silent(), {}
    images = images_for(encoder)
    assert encoder.embed(images).shape == (3, 3)
    with pytest.raises(ConfigError, match=r"^Silent has no maps of features: call self.sow\("):
        encoder.embed_dense(images)
