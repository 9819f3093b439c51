"""ResNet weights under torchvision's names, to and from our trees.

The names are those of torchvision/models/resnet.py; timm's plain ResNets have the same ones, and
the tools of detection libraries read them:

    params/conv1/kernel  HWIO                       conv1.weight  OIHW
    params/layer2_0/conv1/kernel                    layer2.0.conv1.weight
    params/layer2_0/downsample_conv/kernel          layer2.0.downsample.0.weight
    params/layer2_0/downsample_bn/{scale,bias}      layer2.0.downsample.1.{weight,bias}
    batch_stats/bn1/{mean,var}                      bn1.running_{mean,var}
    batch_stats/bn1/count  float32                  bn1.num_batches_tracked  int64

Only `read` needs PyTorch, and only for PyTorch's own files.
"""

import re
from pathlib import Path
from typing import Any

import flax
import numpy as np

from byol_jax.errors import CheckpointError, UserError
from byol_jax.runs import encoder as encoder_lib

DOWNSAMPLE = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}
BATCH_NORM = {  # our leaf: torchvision's
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
COUNT = "num_batches_tracked"
SETTLED_COUNT = 1_000_000  # of updates, for statistics without a count: the next hardly moves them
WRAPPERS = ("state_dict", "model")  # keys of the state dict in a larger checkpoint


def to_state_dict(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """Our weights under torchvision's names, without a classifier (`fc`).

    Args:
      variables: {'params': ..., 'batch_stats': ...} of a `models.ResNet`.

    Returns:
      Contiguous float32 arrays (convolutions OIHW), and `num_batches_tracked` as int64 scalars.
    """
    arrays = {}
    for (collection, *path, leaf), value in flax.traverse_util.flatten_dict(variables).items():
        prefix, value = _torch_module(path), np.asarray(value)
        if leaf == "kernel":
            name, value = "weight", value.transpose(3, 2, 0, 1).astype(np.float32)
        elif leaf == "count":
            name, value = COUNT, np.asarray(np.rint(value), np.int64)
        else:
            name, value = BATCH_NORM[collection, leaf], value.astype(np.float32)
        arrays[f"{prefix}.{name}"] = np.ascontiguousarray(value).reshape(value.shape)
    return arrays


def check_floating(name: str, array: np.ndarray) -> None:
    """Raises CheckpointError for weights of another type, such as quantised ones."""
    if "float" not in array.dtype.name:  # by name, as NumPy has no bfloat16
        raise CheckpointError(
            f"The weights have {name} of type {array.dtype}, which should be floating point: give "
            "weights that are not quantised."
        )


def from_state_dict(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Weights under torchvision's names as variables of a `models.ResNet` of any depth and width.

    `fc.*` is left out. If `num_batches_tracked` is missing, or 0 although the statistics were
    updated (as in older files), their count is `SETTLED_COUNT`.

    Args:
      arrays: as from `read`; floating point, convolutions OIHW.

    Returns:
      {'params': ..., 'batch_stats': ...}, nested dicts of float32 NumPy arrays, kernels HWIO.

    Raises:
      CheckpointError: an array is missing or not known, or its shape does not fit a ResNet of basic
        or bottleneck blocks; the text names the first.
    """
    arrays = {name: array for name, array in arrays.items() if not name.startswith("fc.")}
    shapes = _shapes(arrays)
    for name, shape in shapes.items():
        if name not in arrays:
            raise CheckpointError(
                f"The weights lack {name}: they are not those of a complete ResNet under "
                "torchvision's names."
            )
        array = arrays[name]
        if array.shape != shape:
            raise CheckpointError(
                f"The weights have {name} of shape {array.shape}, which should be {shape} in a "
                "ResNet of basic or bottleneck blocks: give weights of such a network."
            )
        check_floating(name, array)
    counts = {name.replace("running_var", COUNT) for name in shapes}
    unknown = [name for name in arrays if name not in counts.union(shapes)]
    if unknown:
        raise CheckpointError(
            f"The weights have {unknown[0]}, which torchvision's plain ResNets lack: give weights "
            "of resnet18, resnet50 or another one without extras."
        )
    flat = {}
    for name in shapes:
        module, _, leaf = name.rpartition(".")
        path, array = _our_module(module), arrays[name].astype(np.float32)
        if array.ndim == 4:
            flat["params", *path, "kernel"] = np.ascontiguousarray(array.transpose(2, 3, 1, 0))
            continue
        collection, ours = _OUR_BATCH_NORM[leaf]
        flat[collection, *path, ours] = array
        if leaf == "running_var":
            flat[collection, *path, "count"] = _count(arrays, module)
    return flax.traverse_util.unflatten_dict(flat)


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file of weights, by name.

    PyTorch's own files are read by `torch.load(weights_only=True)`, which runs no code in them. A
    state dict under 'state_dict' or 'model' is found, and the prefix 'module.' of data-parallel
    training is removed.

    Args:
      path: *.safetensors, or PyTorch's *.pth, *.pt or *.bin (with PyTorch installed).

    Returns:
      NumPy arrays; float32 for bfloat16.

    Raises:
      UserError: PyTorch is needed and missing.
      CheckpointError: no such file, another kind of file, a damaged one, or one that holds more
        than a state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file: name a .safetensors or .pth file of weights.")
    if path.suffix == ".safetensors":
        arrays = encoder_lib.read_safetensors(path)
    elif path.suffix in (".pth", ".pt", ".bin"):
        arrays = _read_torch(path)
    else:
        raise CheckpointError(
            f"{path} has none of the endings .safetensors, .pth, .pt and .bin: name a file of "
            "weights written by safetensors or PyTorch."
        )
    if arrays and all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    return arrays


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"Reading {path} needs PyTorch: pip install torch, or save the weights as .safetensors."
        ) from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises many types
        raise CheckpointError(
            f"{path} cannot be read safely by torch.load: it is damaged or holds more than weights "
            f"({type(error).__name__}); save model.state_dict() alone."
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not found:
        raise CheckpointError(
            f"{path} holds a {type(found).__name__} without weights by name: save "
            "model.state_dict()."
        )
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path} holds {name!r}, a {type(value).__name__}, among its weights: save "
                "model.state_dict() alone."
            )
    # NumPy has no bfloat16.
    widened = {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in found.items()}
    return {name: tensor.detach().numpy() for name, tensor in widened.items()}


_OUR_BATCH_NORM = {theirs: ours for ours, theirs in BATCH_NORM.items()}
_MODULE = re.compile(r"(?:layer([1-9]\d*)\.(\d+)\.)?(conv\d|bn\d|downsample\.[01])")


def _torch_module(path: list[str]) -> str:
    """['layer2_0', 'downsample_bn'] -> 'layer2.0.downsample.1'."""
    *block, layer = path
    return ".".join([*(name.replace("_", ".") for name in block), DOWNSAMPLE.get(layer, layer)])


def _our_module(name: str) -> list[str]:
    """'layer2.0.downsample.1' -> ['layer2_0', 'downsample_bn']."""
    stage, block, layer = _MODULE.fullmatch(name).groups()
    layer = {theirs: ours for ours, theirs in DOWNSAMPLE.items()}.get(layer, layer)
    return [layer] if stage is None else [f"layer{stage}_{block}", layer]


def _count(arrays: dict[str, np.ndarray], module: str) -> np.ndarray:
    """The number of updates of a norm's running statistics, float32 ()."""
    found = np.asarray(arrays.get(f"{module}.{COUNT}", 0))
    if found.size != 1:
        raise CheckpointError(
            f"The weights have {module}.{COUNT} of shape {found.shape}: give a number."
        )
    count = int(found.item())
    mean, var = arrays[f"{module}.running_mean"], arrays[f"{module}.running_var"]
    if count == 0 and (np.any(mean != 0) or np.any(var != 1)):
        count = SETTLED_COUNT
    return np.asarray(count, np.float32)


def _shapes(arrays: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Names and shapes, without counts, of a ResNet with the arrays' stem, blocks and widths."""
    stages: dict[int, int] = {}
    for name in arrays:
        module = _MODULE.match(name)
        if module and module[1]:
            stage, block = int(module[1]), int(module[2])
            stages[stage] = max(stages.get(stage, 0), block + 1)
    # A number in a name must not make the loop below long.
    for stage, blocks in stages.items():
        if blocks > len(arrays):
            raise CheckpointError(
                f"The weights have a block layer{stage}.{blocks - 1} but not those before it: they "
                "are not those of a complete ResNet under torchvision's names."
            )
    bottleneck = "layer1.0.conv3.weight" in arrays
    shapes: dict[str, tuple[int, ...]] = {}

    def add(conv: str, norm: str, out: int, inside: int, size: int) -> None:
        shapes[f"{conv}.weight"] = (out, inside, size, size)
        shapes.update({f"{norm}.{leaf}": (out,) for leaf in BATCH_NORM.values()})

    channels, image_channels, size = _shape(arrays, "conv1.weight")[:3]
    add("conv1", "bn1", channels, image_channels, size)
    for stage in range(1, max(stages, default=1) + 1):
        width = _shape(arrays, f"layer{stage}.0.conv1.weight")[0]
        out = 4 * width if bottleneck else width
        for block in range(stages.get(stage, 1)):
            prefix = f"layer{stage}.{block}."
            if bottleneck:
                convolutions = [(width, channels, 1), (width, width, 3), (out, width, 1)]
            else:
                convolutions = [(width, channels, 3), (width, width, 3)]
            for i, (o, inside, k) in enumerate(convolutions, start=1):
                add(f"{prefix}conv{i}", f"{prefix}bn{i}", o, inside, k)
            # A basic block of the first stage may lack the projection, as its shape stays.
            needed = stage > 1 or channels != out
            if block == 0 and (needed or f"{prefix}downsample.0.weight" in arrays):
                add(f"{prefix}downsample.0", f"{prefix}downsample.1", out, channels, 1)
            channels = out
    return shapes


def _shape(arrays: dict[str, np.ndarray], name: str) -> tuple[int, ...]:
    """The shape of a convolution's weight."""
    if name not in arrays:
        raise CheckpointError(
            f"The weights lack {name}: they are not those of a ResNet under torchvision's names."
        )
    if arrays[name].ndim != 4:
        raise CheckpointError(
            f"The weights have {name} of shape {arrays[name].shape}, which should be that of a "
            "convolution (out, in, height, width): give weights of a ResNet."
        )
    return arrays[name].shape
