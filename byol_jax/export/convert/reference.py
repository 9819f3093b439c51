"""Parameters of the authors' implementation (Haiku) as trees of ours.

Grill et al. published it as google-deepmind/deepmind-research, byol/. Its parameters and states are
dictionaries of modules, {'res_net50/~/block_group_0/~/block_0/~/conv_0': {'w': array}, ...}.
Layouts equal ours (HWIO kernels, dense kernels (in, out)), but parameters of norms keep the axes
that they are broadcast along.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax
import numpy as np

from byol_jax import models
from byol_jax.errors import CheckpointError

Modules = Mapping[str, Mapping[str, np.ndarray]]

PARTS = {
    "projector": "projector",
    "predictor": "predictor",
    "classifier": "probe",  # any other name is the encoder's
}
ENCODER_LAYERS = {
    "initial_conv": "conv1",
    "initial_batchnorm": "bn1",
    "conv_0": "conv1",
    "conv_1": "conv2",
    "conv_2": "conv3",
    "batchnorm_0": "bn1",
    "batchnorm_1": "bn2",
    "batchnorm_2": "bn3",
    "shortcut_conv": "downsample_conv",
    "shortcut_batchnorm": "downsample_bn",
}
HEAD_LAYERS = {"linear": "dense1", "batch_norm": "bn1", "linear_1": "dense2"}
LEAVES = {"w": "kernel", "b": "bias", "scale": "scale", "offset": "bias"}
MOMENTS = {"mean_ema": "mean", "var_ema": "var"}


def params(modules: Modules) -> dict[str, Any]:
    """The authors' parameters, gradients or momentum as a tree of ours.

    Args:
      modules: float32 arrays by module and name.

    Returns:
      Nested dictionaries with those of 'encoder', 'projector', 'predictor' and 'probe' that exist.

    Raises:
      CheckpointError: a name that none of the authors' version-1 ResNets has.
    """
    flat = {}
    for module, leaves in modules.items():
        for leaf, array in leaves.items():
            if leaf not in LEAVES:
                raise _unknown(f"{module}/{leaf}")
            path = (*_path(module), LEAVES[leaf])
            array = np.asarray(array)
            flat[path] = array.reshape(-1) if path[-1] in ("scale", "bias") else array
    return flax.traverse_util.unflatten_dict(flat)


def batch_stats(modules: Modules) -> dict[str, Any]:
    """The authors' batch-norm state as a tree of ours: 'mean', 'var' and 'count' of each norm.

    Their `average` is the value used in evaluation, as ours is; `hidden` follows from it.

    Args:
      modules: 'average' (float32) and 'counter' (int32) by module.

    Raises:
      CheckpointError: as `params`.
    """
    flat = {}
    for module, leaves in modules.items():
        norm, _, moment = module.rpartition("/~/")
        if moment not in MOMENTS or not {"average", "counter"} <= leaves.keys():
            raise _unknown(module)
        path = _path(norm)
        flat[*path, MOMENTS[moment]] = np.asarray(leaves["average"]).reshape(-1)
        flat[*path, "count"] = np.asarray(leaves["counter"], np.float32).reshape(())
    return flax.traverse_util.unflatten_dict(flat)


def architecture(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of networks with these parameters.

    Args:
      params: as from `params`, with all four parts.

    Returns:
      'encoder' and 'heads', for the config's sections of these names, and 'num_classes'.

    Raises:
      CheckpointError: a part is missing, or no ResNet of ours has these blocks.
    """
    missing = {"encoder", "projector", "predictor", "probe"} - params.keys()
    if missing:
        raise CheckpointError(f"These parameters have no {' and no '.join(sorted(missing))}.")
    encoder = params["encoder"]
    stages: dict[int, int] = {}
    for name in encoder:
        if name.startswith("layer"):
            stage, block = map(int, name.removeprefix("layer").split("_"))
            stages[stage] = max(stages.get(stage, 0), block + 1)
    sizes = tuple(blocks for _, blocks in sorted(stages.items()))
    first = encoder.get("layer1_0", {})
    block = models.Bottleneck if "conv3" in first else models.BasicBlock
    known = {name: models.make_encoder(name) for name in models.ENCODERS}
    resnets = {name: module for name, module in known.items() if type(module) is models.ResNet}
    fitting = [n for n, r in resnets.items() if r.stage_sizes == sizes and r.block is block]
    if not fitting:
        raise CheckpointError(f"No encoder here has {block.__name__}s in stages of {sizes}.")
    own = resnets[fitting[0]]
    stem = encoder["conv1"]["kernel"].shape[-1]
    channels = tuple(encoder[f"layer{i}_0"]["conv1"]["kernel"].shape[-1] for i in sorted(stages))
    chosen = {"name": fitting[0], "padding": "same"}
    if block is models.BasicBlock:  # a Bottleneck always projects there
        chosen["first_shortcut"] = "downsample_conv" in first
    width = stem / own.stem_channels
    if width >= 1 and channels == tuple(width * n for n in own.stage_channels):
        chosen["width_multiplier"] = width
    else:
        chosen |= {"stem_channels": stem, "stage_channels": channels}
    projector, predictor = params["projector"], params["predictor"]
    heads = {
        "hidden_size": projector["dense1"]["kernel"].shape[1],
        "predictor_hidden_size": predictor["dense1"]["kernel"].shape[1],
        "output_size": projector["dense2"]["kernel"].shape[1],
    }
    num_classes = params["probe"]["kernel"].shape[1]
    return {"encoder": chosen, "heads": heads, "num_classes": num_classes}


def _path(module: str) -> tuple[str, ...]:
    """'projector/linear' -> ('projector', 'dense1'), and likewise for the encoder."""
    part, _, inner = module.partition("/")
    if part == "classifier" and not inner:
        return ("probe",)
    if part in PARTS:
        if inner not in HEAD_LAYERS:
            raise _unknown(module)
        return (PARTS[part], HEAD_LAYERS[inner])
    found = re.fullmatch(r"~/(?:block_group_(\d)/~/block_(\d+)/~/)?(\w+)", inner)
    if not found or found[3] not in ENCODER_LAYERS:
        raise _unknown(module)
    group, block, layer = found.groups()
    if group is None:
        return ("encoder", ENCODER_LAYERS[layer])
    return ("encoder", f"layer{int(group) + 1}_{block}", ENCODER_LAYERS[layer])


def _unknown(name: str) -> CheckpointError:
    return CheckpointError(f"{name!r} is not in the authors' networks (ResNets of version 1).")
