"""ViTs and ConvNeXts of timm compute what ours do with the same weights, both ways."""

import jax
import numpy as np
import pytest
from encoders import tiny_convnext, tiny_vit
from torchvision_on_cpu import torch

from byol_jax import models
from byol_jax.errors import UserError
from byol_jax.export.convert import timm as convert

timm = pytest.importorskip("timm", reason="needs requirements-interop-no-deps.txt")
NAMES = {
    "vit_ti": "vit_tiny_patch16_224",
    "vit_s": "vit_small_patch16_224",
    "vit_b": "vit_base_patch16_224",
    "convnext_t": "convnext_tiny",
    "convnext_s": "convnext_small",
}
TINY_VIT = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 32}
TINY_CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 24)}


def randomised(model, seed=0):
    """The model in evaluation mode, random: initial weights hardly tell images apart."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("weight") and value.ndim > 1:
                value.normal_(0, (value[0].numel()) ** -0.5)
            else:
                value.normal_(1.0 if name.endswith("weight") else 0.0, 0.3)
    return model.eval()


def arrays_of(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def features_of(model, images):
    with torch.no_grad():
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        return model.forward_head(model.forward_features(x), pre_logits=True).numpy()


def assert_same_features(ours, variables, model, size):
    """The features are equal, and tell the images apart."""
    images = np.random.default_rng(0).standard_normal((2, size, size, 3), np.float32)
    want = features_of(model, images)
    got = jax.jit(lambda v, x: ours.apply(v, x, train=False))(variables, images)
    assert got.dtype == np.float32 and got.shape == want.shape
    assert np.abs(want[0] - want[1]).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(("name", "size"), [("vit_ti", 224), ("vit_s", 224), ("convnext_t", 64)])
def test_our_network_computes_timms_features(name, size):
    model = randomised(timm.create_model(NAMES[name]))
    variables, settings = convert.from_state_dict(arrays_of(model))
    ours = models.make_encoder(name, **({"positions": "learned"} if "vit" in name else {}))
    assert settings.items() <= ({"name": name} | vars(ours)).items()
    assert_same_features(ours, variables, model, size)


@pytest.mark.parametrize("patch_size", [4, 8])
@pytest.mark.parametrize(("pool", "theirs"), [("class", "token"), ("mean", "avg")])
def test_pools_and_patches(pool, theirs, patch_size):
    chosen = TINY_VIT | {"patch_size": patch_size, "global_pool": theirs}
    model = randomised(timm.create_model("vit_tiny_patch16_224", **chosen))
    variables, settings = convert.from_state_dict(arrays_of(model))
    assert settings == {
        **{"width": 24, "depth": 2, "patch_size": patch_size, "pool": pool},
        "positions": "learned",
    }
    assert_same_features(models.ViT(heads=2, **settings), variables, model, 32)


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_are_those_of_timm(name):
    module = models.make_encoder(name)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)
    # Broadcast, as vit_b has 86 million numbers.
    zeros = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes)
    got = {key: array.shape for key, array in convert.to_state_dict(module, zeros, 224).items()}
    with torch.device("meta"):
        model = timm.create_model(NAMES[name], num_classes=0)
    assert got == {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    blocks = module.depth if "vit" in name else 0
    assert not blocks or all(b.attn.num_heads == module.heads for b in model.blocks)


@pytest.mark.parametrize(
    "encoder",
    [
        tiny_vit(positions="learned"),
        tiny_vit(positions="sincos", pool="mean", channels=1),
        tiny_convnext(),
        tiny_convnext(stage_sizes=(1, 2), stage_channels=(4, 6), channels=1),
    ],
    ids=["learned", "sincos", "convnext", "two stages"],
)
def test_ours_to_theirs_and_back_is_exact(encoder):
    arrays = convert.to_state_dict(encoder.module, encoder.variables, encoder.config["image_size"])
    assert all(array.flags.c_contiguous for array in arrays.values())
    assert convert.is_known(arrays)
    back, settings = convert.from_state_dict(arrays)
    want = {"params": encoder.variables["params"], "batch_stats": {}}
    jax.tree.map(np.testing.assert_array_equal, back, want)
    assert settings.items() <= vars(encoder.module).items()


def test_fixed_positions_can_be_kept_as_learned_ones():
    encoder = tiny_vit(positions="sincos")
    arrays = convert.to_state_dict(encoder.module, encoder.variables, 32)
    back, settings = convert.from_state_dict(arrays, fixed_positions=False)
    assert settings["positions"] == "learned"
    got = back["params"]["position_embedding"]
    np.testing.assert_array_equal(got, models.vit.sincos_positions(4, 4, 24))


def test_other_positions_are_not_taken_for_fixed_ones():
    encoder = tiny_vit(positions="sincos")
    arrays = convert.to_state_dict(encoder.module, encoder.variables, 32)
    arrays["pos_embed"] = arrays["pos_embed"] + 0.01
    assert convert.from_state_dict(arrays)[1]["positions"] == "learned"


VIT = timm.create_model("vit_tiny_patch16_224", **TINY_VIT)
CONVNEXT = timm.create_model("convnext_tiny", **TINY_CONVNEXT)


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        (VIT, {"blocks.0.mlp.fc1.bias": None}, "lack blocks.0.mlp.fc1.bias"),
        (VIT, {"blocks.1.norm1.weight": None}, "have blocks.1.norm1.bias, which a plain ViT"),
        (VIT, {"blocks.0.norm1.weight": None}, "are not those of a ViT: depth=0"),
        (VIT, {"cls_token": None}, "lack cls_token: they are not .* with a class token"),
        (VIT, {"pos_embed": None}, "lack pos_embed"),
        (
            VIT,
            {"pos_embed": np.zeros((1, 3, 24))},
            r"pos_embed of shape \(1, 3, 24\), which should",
        ),
        (VIT, {"pos_embed": np.zeros(3)}, r"pos_embed of shape \(3,\), which should have 3 axes"),
        (VIT, {"blocks.0.ls1.gamma": np.zeros(24)}, "have blocks.0.ls1.gamma, which a plain ViT"),
        (VIT, {"blocks.9999999.norm1.weight": np.zeros(24)}, "have blocks.9999999.norm1.weight"),
        (VIT, {"norm.bias": np.zeros(24, np.int8)}, "norm.bias of type int8"),
        (
            VIT,
            {"patch_embed.proj.weight": np.zeros((24, 3, 8, 9), np.float32)},
            r"patch_embed.proj.weight of shape \(24, 3, 8, 9\), which should",
        ),
        (
            VIT,
            {"patch_embed.proj.weight": np.zeros((0, 3, 8, 8))},
            "are not those of a ViT: width=0",
        ),
        (CONVNEXT, {"stages.0.blocks.0.gamma": None}, "lack stages.0.blocks.0.gamma"),
        (CONVNEXT, {"stages.9999.blocks.0.gamma": np.zeros(3)}, "which a plain ConvNeXt of timm"),
        (
            CONVNEXT,
            {"stages.1.blocks.0.mlp.grn.bias": np.zeros(3)},
            "have stages.1.blocks.0.mlp.grn.bias, which a plain ConvNeXt",
        ),
    ],
)
def test_weights_of_other_networks_are_refused(model, change, message):
    arrays = {k: v for k, v in (arrays_of(model) | change).items() if v is not None}
    with pytest.raises(UserError, match=message):
        convert.from_state_dict(arrays)


@pytest.mark.parametrize(
    ("name", "options"),
    [("convnextv2_atto", {}), ("vit_tiny_patch16_224", {"reg_tokens": 2, "depth": 1})],
)
def test_timms_other_networks_are_refused(name, options):
    with pytest.raises(UserError, match="The weights have"):
        convert.from_state_dict(arrays_of(timm.create_model(name, **options)))
