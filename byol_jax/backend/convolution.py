"""2-D convolutions by oneDNN, as a function of JAX.

`conv_general_dilated` is what `flax.linen.Conv(conv_general_dilated=...)` takes. It calls a target
of XLA's foreign function interface, which onednn.py registers.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

TARGET = "byol_jax_convolution"
# Activations NHWC, kernels HWIO, as in flax.linen.Conv.
LAYOUT = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
# The three arrays of a convolution; each can be computed from the other two. As in onednn.cc.
INPUT, KERNEL, OUTPUT = range(3)


class Settings(NamedTuple):
    """A convolution without its arrays."""

    strides: tuple[int, int]
    dilation: tuple[int, int]  # of the kernel
    padding: tuple[int, int, int, int]  # top, bottom, left, right
    groups: int
    threads: int
    shapes: tuple[tuple[int, ...], ...]  # of input (NHWC), kernel (HWIO) and output (NHWC)


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    *,
    threads: int,
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
) -> jax.Array:
    """As `jax.lax.conv_general_dilated`; differentiable in reverse mode, any number of times.

    oneDNN computes convolutions over height and width in float32 and bfloat16, of any stride,
    kernel dilation, padding and number of groups. XLA computes all others.

    It takes two more arguments: `threads`, the cores that a call uses, at least 1; and `dtypes`, of
    float32 and bfloat16 those that oneDNN has on this processor.
    """
    is_2d = lhs.ndim == 4 and dimension_numbers == LAYOUT
    is_computed = lhs.dtype == rhs.dtype and lhs.dtype.name in dtypes
    is_transposed = any(d != 1 for d in lhs_dilation or ())
    if is_2d and is_computed and not is_transposed:
        dilation = tuple(rhs_dilation or (1, 1))
        window = [(n - 1) * d + 1 for n, d in zip(rhs.shape[:2], dilation, strict=True)]
        pads = padding
        if isinstance(padding, str):
            pads = lax.padtype_to_pads(lhs.shape[1:3], window, window_strides, padding)
        if window == [1, 1] and not any(low or high for low, high in pads):
            # Only the positions that it reads, and no stride: with a stride, oneDNN 3.2 computes
            # a wrong gradient of the kernel where there is no AVX-512 and the number of input
            # channels is no multiple of 8.
            lhs = lhs[:, :: window_strides[0], :: window_strides[1]]
            window_strides = (1, 1)
        height, width = (
            (n + low + high - w) // stride + 1
            for n, (low, high), w, stride in zip(
                lhs.shape[1:3], pads, window, window_strides, strict=True
            )
        )
        shapes = (lhs.shape, rhs.shape, (lhs.shape[0], height, width, rhs.shape[3]))
        flat = tuple(int(p) for pair in pads for p in pair)
        if min(flat) >= 0 and min(min(shape) for shape in shapes) > 0:
            strides = tuple(window_strides)
            settings = Settings(strides, dilation, flat, feature_group_count, threads, shapes)
            return _compute(OUTPUT, settings, lhs, rhs)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        precision=precision,
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _compute(wanted: int, settings: Settings, first: jax.Array, second: jax.Array) -> jax.Array:
    """One of INPUT, KERNEL and OUTPUT from the other two, which come in this order.

    OUTPUT is the convolution; INPUT and KERNEL are its gradients, where OUTPUT stands for the
    gradient of the output. All three are the derivatives of one function, linear in each array:
    the sum of OUTPUT times the convolution of INPUT and KERNEL. So the gradient of each is made of
    the other two.
    """
    call = jax.ffi.ffi_call(
        TARGET,
        jax.ShapeDtypeStruct(settings.shapes[wanted], first.dtype),
        vmap_method="sequential",
    )
    return call(
        first,
        second,
        wanted=np.int64(wanted),
        strides=np.array(settings.strides, np.int64),
        dilation=np.array(settings.dilation, np.int64),
        padding=np.array(settings.padding, np.int64),
        groups=np.int64(settings.groups),
        threads=np.int64(settings.threads),
    )


def _forward(wanted: int, settings: Settings, first: jax.Array, second: jax.Array) -> tuple:
    return _compute(wanted, settings, first, second), (first, second)


def _backward(wanted: int, settings: Settings, operands: tuple, gradient: jax.Array) -> tuple:
    roles = [role for role in (INPUT, KERNEL, OUTPUT) if role != wanted]
    arrays = dict(zip(roles, operands, strict=True)) | {wanted: gradient}

    def derivative(role: int) -> jax.Array:
        first, second = (arrays[other] for other in sorted(arrays) if other != role)
        return _compute(role, settings, first, second)

    return tuple(derivative(role) for role in roles)


_compute.defvjp(_forward, _backward)
