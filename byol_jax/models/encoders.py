"""The encoders by name, and the settings that each of them has.

To add one, write its Flax module in a file of this folder and name it in `ENCODERS`. The fields of
the module are its settings: each field whose default is a bool, a number, a string or a tuple can
be set by its name (`config.encoder.FIELD`, in a run). A field without a default must be given here.
An annotation `Literal[...]` lists the choices of a string. A module that checks more than types
does so in `__post_init__`, by a ValueError whose text begins with the setting, and calls super().
Four more things are optional: `check_image_size(height, width)`, which raises such an error for
images that the module cannot take; `frozen`, names of parameters that the optimizer must leave as
they are; `of_clips = True`, if it takes clips of video (batch, frames, height, width, channels) as
a whole (others are applied to each frame); and `self.sow("intermediates", NAME, x)` for each map
(batch, height, width, channels) that users may want, with the NAME 'features' for the last.

A name may also be MODULE:CLASS, for a module of the user's own that the process has imported. From
such a name nothing is imported here, as it may come from a file of somebody else.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import flax.linen as nn
import jax
import jax.numpy as jnp

from byol_jax.errors import OwnEncoderError, describe
from byol_jax.models import (
    audio_ntt,
    conv1d,
    convnet,
    convnext,
    lightgcn,
    resnet,
    slow,
    text_transformer,
    vit,
)

ENCODERS = {
    "resnet8": resnet.ResNet8,
    "resnet10": resnet.ResNet10,
    "resnet18": resnet.ResNet18,
    "resnet34": resnet.ResNet34,
    "resnet50": resnet.ResNet50,
    "resnet101": resnet.ResNet101,
    "resnet152": resnet.ResNet152,
    "resnet200": resnet.ResNet200,
    "convnet": convnet.ConvNet,
    "vit_ti": vit.ViTTi,
    "vit_s": vit.ViTS,
    "vit_b": vit.ViTB,
    "convnext_t": convnext.ConvNeXtT,
    "convnext_s": convnext.ConvNeXtS,
    "conv1d": conv1d.Conv1D,
    "dense": conv1d.DenseEncoder,
    "audio_ntt": audio_ntt.AudioNTT,
    "lightgcn": lightgcn.LightGCN,
    "slow_r18": slow.SlowR18,
    "slow_r50": slow.SlowR50,
    "text_transformer": text_transformer.TextTransformer,
}
LARGEST = 1e12  # of any number in a setting
SIMPLE = bool | int | float | str  # types of settings, besides tuples of them
SHARED = ("dtype", "axis_name", "convolution")  # fields that `make_encoder` sets, and no setting


def is_own(name: Any) -> bool:
    """Whether a name is MODULE:CLASS, of a user's own encoder."""
    return isinstance(name, str) and ":" in name


def settings(name: str) -> dict[str, Any]:
    """The settings of a named encoder and their defaults.

    Raises:
      ValueError: as `make_encoder`, for the name.
    """
    given = getattr(_class(name), "keywords", {})
    defaults = {
        key: given.get(key, field.default)
        for key, field in _fields(name).items()
        if field.default is not dataclasses.MISSING
    }

    def is_setting(value: Any) -> bool:
        return all(isinstance(v, SIMPLE) for v in (value if isinstance(value, tuple) else (value,)))

    return {k: v for k, v in defaults.items() if k not in SHARED and is_setting(v)}


def make_encoder(
    name: str,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    convolution: Callable = jax.lax.conv_general_dilated,
    **chosen: Any,
) -> nn.Module:
    """The encoder of a name with these settings, and its own defaults for others.

    Args:
      name: a key of `ENCODERS`, or MODULE:CLASS.
      dtype: of the computation, for a module that has such a field.
      axis_name: mapped axis of replicas, likewise.
      convolution: computes its convolutions, like `jax.lax.conv_general_dilated`, likewise.
      **chosen: values by setting; lists count as tuples, as JSON has no tuples.

    Raises:
      ValueError: there is no such encoder, or it has no such setting, or cannot take its value; one
        line that begins with "name" or the setting.
      OwnEncoderError: the module of MODULE:CLASS is not imported, or the class cannot be used.
    """
    encoder, fields = _class(name), _fields(name)
    chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()}
    check_settings(name, chosen, settings(name), {k: field.type for k, field in fields.items()})
    shared = dict(zip(SHARED, (dtype, axis_name, convolution), strict=True))
    given = chosen | {k: v for k, v in shared.items() if k in fields}
    if not is_own(name):
        return encoder(**given)
    try:
        return encoder(**given)
    except Exception as error:  # whatever its __post_init__ raises
        raise OwnEncoderError(f"name={name!r} cannot be built ({describe(error)}).") from error


def check_image_size(encoder: nn.Module, height: int, width: int) -> None:
    """Raises ValueError, beginning with a setting, if an encoder cannot take images this large."""
    if hasattr(encoder, "check_image_size"):
        encoder.check_image_size(height, width)


def check_settings(
    name: str, chosen: dict[str, Any], own: dict[str, Any], annotations: dict[str, Any]
) -> None:
    """Raises ValueError, beginning with the setting, for one that `name` lacks or cannot take.

    Args:
      name: what the settings are of.
      chosen: values by setting.
      own: all settings that it has, with their defaults, which are of the types that values need.
      annotations: types by setting; `Literal[...]` lists the choices.
    """
    for key, value in chosen.items():
        if key not in own:
            has = ", ".join(own) or "none"
            raise ValueError(f"{key}={value!r} is not a setting of {name}, which has {has}.")
        annotation = annotations[key]
        choices = get_args(annotation) if get_origin(annotation) is Literal else ()
        check_setting(key, value, type(own[key]), choices)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not abs(number) <= LARGEST:
                raise ValueError(f"{key}={value!r} must be at most {LARGEST:g}, and finite.")


def check_setting(key: str, value: Any, kind: type, choices: tuple) -> None:
    """Raises ValueError unless a value is among the choices, if there are any, and of its type."""
    if choices and value not in choices:
        raise ValueError(f"{key}={value!r} is not one of {', '.join(map(str, choices))}.")
    fits = isinstance(value, int | float if kind is float else kind)
    if not fits or isinstance(value, bool) != (kind is bool):
        raise ValueError(f"{key}={value!r} must be of type {kind.__name__}.")


def own_class(name: str) -> type[nn.Module]:
    """The class that MODULE:CLASS names.

    Raises:
      OwnEncoderError: the module is not imported, or the class cannot be used.
    """
    module, _, attribute = name.partition(":")
    # Not `getattr`, which may import: a package can have a `__getattr__`.
    content = getattr(sys.modules.get(module), "__dict__", None)
    if content is None:
        raise OwnEncoderError(
            f"name={name!r} is of a module that is not imported, and a file must not run code: "
            f"import {module} first, in a command by --import={module}."
        )
    found = content.get(attribute)
    is_class = isinstance(found, type) and issubclass(found, nn.Module)
    if not is_class or found is nn.Module:
        raise OwnEncoderError(f"name={name!r} is no subclass of flax.linen.Module in {module}.")
    for field in dataclasses.fields(found):
        missing = field.default is field.default_factory is dataclasses.MISSING
        if missing and field.init and field.name not in SHARED:
            raise OwnEncoderError(
                f"name={name!r} has a field {field.name!r} without a default: give it one."
            )
    return found


def _class(name: str) -> Callable[..., nn.Module]:
    """What makes the module of a named encoder: its class, or a partial of one."""
    if is_own(name):
        return own_class(name)
    check_setting("name", name, str, tuple(ENCODERS))
    return ENCODERS[name]


def _fields(name: str) -> dict[str, dataclasses.Field]:
    """The fields of a named encoder's module."""
    module = _class(name)
    return {field.name: field for field in dataclasses.fields(getattr(module, "func", module))}
