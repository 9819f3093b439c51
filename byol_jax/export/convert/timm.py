"""ViT and ConvNeXt weights under timm's names, to and from our trees.

The names are those of timm/models/vision_transformer.py and convnext.py:

    params/patch_embedding/kernel  HWIO              patch_embed.proj.weight  OIHW
    params/class_token  (width,)                     cls_token  (1, 1, width)
    params/position_embedding  (1 + patches, width)  pos_embed  (1, 1 + patches, width)
    params/transformer_block1/qkv/kernel             blocks.0.attn.qkv.weight, transposed
    params/norm/{scale,bias}                         norm.{weight,bias}, fc_norm.* for pool=mean
    params/stem_conv/kernel                          stem.0.weight
    params/downsample2_norm/scale                    stages.1.downsample.0.weight
    params/layer2_0/conv/kernel                      stages.1.blocks.0.conv_dw.weight
    params/layer2_0/layer_scale                      stages.1.blocks.0.gamma
    params/norm/{scale,bias}                         head.norm.{weight,bias}

timm's ViTs always hold a table of positions; our fixed one is not a parameter, so it is added on
the way out, and on the way in dropped if it is the same.
"""

import math
import re
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from byol_jax import models
from byol_jax.errors import CheckpointError
from byol_jax.export.convert.torchvision import check_floating
from byol_jax.models import vit

Arrays = dict[str, np.ndarray]
PATCHES, STEM = "patch_embed.proj.weight", "stem.0.weight"  # in every ViT, in every ConvNeXt
CLASSIFIERS = ("head.weight", "head.bias", "head.fc.weight", "head.fc.bias")
VIT_LAYERS = {
    **{"norm1": "norm1", "qkv": "attn.qkv", "proj": "attn.proj"},
    **{"norm2": "norm2", "dense1": "mlp.fc1", "dense2": "mlp.fc2"},
}
CONVNEXT_LAYERS = {"conv": "conv_dw", "norm": "norm", "dense1": "mlp.fc1", "dense2": "mlp.fc2"}
# Differences between tables of fixed positions that are due to the precision of sines.
POSITION_TOLERANCE = 1e-4


def to_state_dict(
    module: models.ViT | models.ConvNeXt, variables: dict[str, Any], image_size: int
) -> Arrays:
    """Our weights under timm's names, without a classifier.

    Args:
      module: the encoder.
      variables: {'params': ...} of it.
      image_size: height and width of its images, for the table of fixed positions.

    Returns:
      Contiguous float32 arrays, convolutions OIHW.
    """
    flat = flax.traverse_util.flatten_dict(variables["params"])
    if isinstance(module, models.ViT) and module.positions == "sincos":
        grid = image_size // module.patch_size
        table = vit.sincos_positions(grid, grid, module.width)
        flat = flat | {("position_embedding",): table}
    arrays = {_name(module, path): _to_torch(path, value) for path, value in flat.items()}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def is_known(arrays: Arrays) -> bool:
    """Whether weights have the names of timm's ViTs or ConvNeXts, rather than of a ResNet."""
    return PATCHES in arrays or STEM in arrays


def from_state_dict(
    arrays: Arrays, fixed_positions: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights under timm's names as variables of a `models.ViT` or `models.ConvNeXt`.

    A classifier is left out. The number of heads of a ViT is not in its weights.

    Args:
      arrays: as from `convert.torchvision.read`; floating point, convolutions OIHW.
      fixed_positions: leave out the positions of a ViT if they are our fixed ones.

    Returns:
      {'params': ..., 'batch_stats': {}}, nested dicts of float32 NumPy arrays, kernels HWIO; and
      the settings of the module that the weights tell.

    Raises:
      CheckpointError: an array is missing or not known, or its shape does not fit; the text names
        the first.
    """
    arrays = {name: array for name, array in arrays.items() if name not in CLASSIFIERS}
    settings, *image = _vit(arrays) if PATCHES in arrays else _convnext(arrays)
    kind = models.ViT if "patch_size" in settings else models.ConvNeXt
    try:
        module = kind(**settings, **({"heads": 1} if kind is models.ViT else {}))
        size, channels = image
        view = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
        shapes = models.variable_shapes(module, view)["params"]
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The weights are not those of a {kind.__name__}: {error}") from error
    wanted = {
        _name(module, path): (path, shape)
        for path, shape in flax.traverse_util.flatten_dict(shapes).items()
    }
    unknown = [name for name in arrays if name not in wanted]
    if unknown:
        raise CheckpointError(
            f"The weights have {unknown[0]}, which a plain {kind.__name__} of timm lacks: give "
            "weights of one without extras."
        )
    flat = {
        path: _from_torch(path, _array(arrays, name, _to_torch(path, _zeros(shape)).shape))
        for name, (path, shape) in wanted.items()
    }
    if kind is models.ViT and fixed_positions and _is_fixed(flat["position_embedding",]):
        del flat["position_embedding",]
        settings["positions"] = "sincos"
    return {"params": flax.traverse_util.unflatten_dict(flat), "batch_stats": {}}, settings


def _vit(arrays: Arrays) -> tuple[dict[str, Any], int, int]:
    """Settings of a ViT with these weights, but for its heads; size and channels of its images."""
    kernel = _array(arrays, PATCHES, ndim=4)
    width, channels, patch_size, _ = kernel.shape
    depth = 0
    while f"blocks.{depth}.norm1.weight" in arrays:
        depth += 1
    settings = {"width": width, "depth": depth, "patch_size": patch_size, "positions": "learned"}
    settings["pool"] = "mean" if "fc_norm.weight" in arrays else "class"
    size = patch_size * math.isqrt(max(1, _array(arrays, "pos_embed", ndim=3).shape[1] - 1))
    return settings, size, channels


def _convnext(arrays: Arrays) -> tuple[dict[str, Any], int, int]:
    """Settings of a ConvNeXt with these weights; size and channels of images that it takes."""
    sizes, channels = [], []
    while f"stages.{len(sizes)}.blocks.0.norm.weight" in arrays:
        stage = f"stages.{len(sizes)}.blocks"
        channels.append(_array(arrays, f"{stage}.0.norm.weight", ndim=1).shape[0])
        blocks = 1
        while f"{stage}.{blocks}.norm.weight" in arrays:
            blocks += 1
        sizes.append(blocks)
    settings = {"stage_sizes": tuple(sizes), "stage_channels": tuple(channels)}
    inside, size = _array(arrays, STEM, ndim=4).shape[1], 4 * 2 ** len(sizes)
    return settings, size, inside


def _is_fixed(table: np.ndarray) -> bool:
    """Whether positions (1 + patches, width) are the fixed ones of our ViTs."""
    rows, width = table.shape
    if width % 4:
        return False
    grid = math.isqrt(rows - 1)
    return np.allclose(
        table, vit.sincos_positions(grid, grid, width), rtol=0, atol=POSITION_TOLERANCE
    )


def _array(
    arrays: Arrays, name: str, shape: tuple[int, ...] | None = None, ndim: int | None = None
) -> np.ndarray:
    """The array of a name, float32, with this shape or number of axes."""
    if name not in arrays:
        raise CheckpointError(
            f"The weights lack {name}: they are not those of a complete ViT with a class token, or "
            "ConvNeXt, under timm's names."
        )
    array = arrays[name]
    if array.ndim != ndim if shape is None else array.shape != shape:
        wanted = f"{ndim} axes" if shape is None else f"the shape {shape}"
        raise CheckpointError(
            f"The weights have {name} of shape {array.shape}, which should have {wanted}: give "
            "weights of a plain ViT or ConvNeXt of timm."
        )
    check_floating(name, array)
    return array.astype(np.float32)


def _name(module: models.ViT | models.ConvNeXt, path: tuple[str, ...]) -> str:
    """('transformer_block1', 'qkv', 'kernel') -> 'blocks.0.attn.qkv.weight'."""
    *parents, leaf = path
    leaf = {"kernel": "weight", "scale": "weight", "layer_scale": "gamma"}.get(leaf, leaf)
    if isinstance(module, models.ViT):
        norm = "fc_norm" if module.pool == "mean" else "norm"
        known = {"patch_embedding": "patch_embed.proj", "norm": norm}
        if not parents:
            return {"class_token": "cls_token", "position_embedding": "pos_embed"}[leaf]
        if parents[0] in known:
            return f"{known[parents[0]]}.{leaf}"
        block = int(parents[0].removeprefix("transformer_block"))
        return f"blocks.{block - 1}.{VIT_LAYERS[parents[1]]}.{leaf}"
    known = {"stem_conv": "stem.0", "stem_norm": "stem.1", "norm": "head.norm"}
    if parents[0] in known:
        return f"{known[parents[0]]}.{leaf}"
    if found := re.fullmatch(r"downsample(\d+)_(norm|conv)", parents[0]):
        return f"stages.{int(found[1]) - 1}.downsample.{int(found[2] == 'conv')}.{leaf}"
    stage, block = re.fullmatch(r"layer(\d+)_(\d+)", parents[0]).groups()
    layer = "".join(f"{CONVNEXT_LAYERS[parent]}." for parent in parents[1:])
    return f"stages.{int(stage) - 1}.blocks.{block}.{layer}{leaf}"


def _to_torch(path: tuple[str, ...], value: Any) -> np.ndarray:
    """An array of ours in the layout of PyTorch and timm, float32."""
    value = np.asarray(value, np.float32)
    if path[-1] == "kernel":
        return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    if path[-1] in ("class_token", "position_embedding"):
        return value.reshape((1,) * (3 - value.ndim) + value.shape)
    return value


def _from_torch(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """The inverse of `_to_torch`."""
    if path[-1] == "kernel":
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    if path[-1] in ("class_token", "position_embedding"):
        array = array[0, 0] if path[-1] == "class_token" else array[0]
    return np.ascontiguousarray(array)


def _zeros(shape: jax.ShapeDtypeStruct) -> np.ndarray:
    """An array of this shape that takes no memory."""
    return np.broadcast_to(np.float32(0), shape.shape)
