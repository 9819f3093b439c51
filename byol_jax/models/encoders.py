"""The encoders by name, and the settings that each of them has.

To add one, write its Flax module in a file of this folder and name it in `ENCODERS`. The fields of
the module are its settings: each field whose default is a bool, a number, a string or a tuple can
be set by its name (`config.encoder.FIELD`, in a run). A field without a default must be given here.
An annotation `Literal[...]` lists the choices of a string. A module that checks more than types
does so in `__post_init__`, by a ValueError whose text begins with the setting, and calls super().
Three more things are optional: `check_image_size(height, width)`, which raises such an error for
images that the module cannot take; `frozen`, names of parameters that the optimizer must leave as
they are; and `self.sow("intermediates", NAME, x)` for each map (batch, height, width, channels)
that users may want, with the NAME 'features' for the last.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import flax.linen as nn
import jax
import jax.numpy as jnp

from byol_jax.models import convnet, convnext, resnet, vit

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
}
LARGEST = 1e12  # of any number in a setting


def settings(name: str) -> dict[str, Any]:
    """The settings of a named encoder and their defaults."""
    given = getattr(ENCODERS[name], "keywords", {})
    defaults = {
        key: given.get(key, field.default)
        for key, field in _fields(name).items()
        if field.default is not dataclasses.MISSING
    }
    return {k: v for k, v in defaults.items() if isinstance(v, bool | int | float | str | tuple)}


def make_encoder(
    name: str,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    convolution: Callable = jax.lax.conv_general_dilated,
    **chosen: Any,
) -> nn.Module:
    """The encoder of a name with these settings, and its own defaults for others.

    Args:
      name: a key of `ENCODERS`.
      dtype: of the computation, for a module that has such a field.
      axis_name: mapped axis of replicas, likewise.
      convolution: computes its convolutions, like `jax.lax.conv_general_dilated`, likewise.
      **chosen: values by setting; lists count as tuples, as JSON has no tuples.

    Raises:
      ValueError: there is no such encoder, or it has no such setting, or cannot take its value; one
        line that begins with "name" or the setting.
    """
    check_setting("name", name, str, tuple(ENCODERS))
    fields = _fields(name)
    chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()}
    check_settings(name, chosen, settings(name), {k: field.type for k, field in fields.items()})
    shared = {"dtype": dtype, "axis_name": axis_name, "convolution": convolution}
    return ENCODERS[name](**chosen, **{k: v for k, v in shared.items() if k in fields})


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


def _fields(name: str) -> dict[str, dataclasses.Field]:
    """The fields of a named encoder's module."""
    module = getattr(ENCODERS[name], "func", ENCODERS[name])
    return {field.name: field for field in dataclasses.fields(module)}
