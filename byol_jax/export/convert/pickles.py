"""Reads the pickles that the authors' code writes as checkpoints, without running what is in them.

A pickle is a program for a small stack machine, which can call anything that can be imported. The
unpickler here is Python's own with three restrictions: it executes only the instructions that a
checkpoint needs; a name in the file stands for a function of this module (`CONSTRUCTORS`), which
makes plain arrays, dictionaries and named tuples of valid arguments; and only these functions are
called. Nothing that a file names is imported.

It is the unpickler in Python, `pickle._Unpickler`, as its instructions can be replaced. The one in
C hashes the key of a dictionary before it can be checked, and a deeply nested key crashes it.
"""

import collections
import dataclasses
import math
import mmap
import pickle
import pickletools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from byol_jax.errors import CheckpointError

# Numbers of fixed size: no objects, no strings, no records.
DTYPES = {"?", "b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
MAX_DEPTH = 64  # of nested containers; a checkpoint has less than ten
MAX_FIELDS = 64  # of a named tuple
STATE_FIELDS = ("online_params", "target_params", "online_state", "target_state", "opt_state")
CLASS_SIZE = 2**12  # bytes that the class of a named tuple takes, about


class _RefusedError(Exception):
    """What a file does that no checkpoint does; the text follows the file's name."""


def load(path: str | Path) -> Any:
    """Reads a checkpoint.

    A checkpoint takes about three times the size of its file in memory; any other file, at most a
    fixed multiple of its size.

    Args:
      path: a pickle of protocol 2 to 5.

    Returns:
      Nested dicts, lists, tuples and named tuples of numpy arrays and scalars, numbers, strings,
      bytes and None. Other mappings become dict, arrays of jax become numpy's, read-only.

    Raises:
      CheckpointError: the file does not exist, is not a pickle, is damaged, or does what no
        checkpoint does. Nothing that it names was imported or called.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(2)
            if len(head) < 2 or head[:1] != pickle.PROTO or not 2 <= head[1] <= 5:
                raise CheckpointError(
                    f"{path} is not a pickle of protocol 2 to 5: name a checkpoint of the authors' "
                    "code."
                )
            # A map reads no further than its end, whatever length the file asks for.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _plain(_Unpickler(data).load())
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): name a file.") from error
    except _RefusedError as error:
        raise CheckpointError(f"{path} {error}, which no checkpoint does: refused.") from None
    except MemoryError:
        raise CheckpointError(f"{path} needs more memory than there is.") from None
    except Exception as error:  # Python's unpickler raises many types where a file is damaged
        reason = _shown(str(error) or type(error).__name__)
        raise CheckpointError(f"{path} is damaged: {reason}.") from error


@dataclasses.dataclass(frozen=True)
class _Constructor:
    """What a name in the file stands for."""

    name: str
    build: Callable[..., Any]


class _Dtype:
    """An array's dtype, whose byte order follows as its state."""

    def __init__(self, code: Any, *_: Any):
        if not isinstance(code, str) or code.lstrip("<>=|") not in DTYPES:
            raise _RefusedError(f"holds an array of dtype {_shown(code)}")
        self.value = np.dtype(code)

    def set_state(self, state: Any) -> None:
        """Takes the state of a dtype of numbers: version, byte order, Nones, and three integers."""
        order = state[1] if isinstance(state, tuple) and len(state) >= 8 else None
        if order not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
            raise _RefusedError("holds a dtype with fields or a shape")
        self.value = self.value.newbyteorder(order)


class _Array:
    """An array, whose contents follow as its state."""

    value: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        """Takes numpy's state: version, shape, dtype, whether column-major, and the bytes."""
        _, shape, dtype, column_major, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise _RefusedError("holds an array that is not of numbers")
        is_shape = isinstance(shape, tuple) and len(shape) <= 32
        if not is_shape or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
            raise ValueError("the shape of an array is not valid")
        if math.prod(shape) * dtype.value.itemsize != len(data):
            raise ValueError(f"an array {shape} of {dtype.value} has {len(data)} bytes of data")
        flat = np.frombuffer(data, dtype.value)
        self.value = flat.reshape(shape, order="F" if column_major else "C")


def _filled_array(function: Any, arguments: Any, state: Any, *_: Any) -> _Array:
    """An array and its contents at once: dill's, with attributes last, and jax's, with its aval."""
    array = _Array()
    array.set_state(state)
    return array


def _scalar(dtype: Any, data: Any) -> np.generic:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise _RefusedError("holds a scalar that is not a number")
    if dtype.value.itemsize != len(data):
        raise ValueError(f"a {dtype.value} has {len(data)} bytes of data")
    return np.frombuffer(data, dtype.value)[0]


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes, which protocol 2 has no instruction for."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _RefusedError(f"encodes {_shown(text)} as {_shown(encoding)}")
    return text.encode("latin1")


def _mapping(items: Any = None, *_: Any) -> dict:
    if not isinstance(items, dict | None):
        raise _RefusedError(f"makes a mapping of {_shown(items)}")
    return dict(items or {})


def _named_tuple(name: Any, fields: Any, *_: Any) -> _Constructor:
    """dill's named tuples contain their field names, so their module is not needed."""
    names = [name, *fields] if isinstance(fields, list | tuple) else [None]
    if len(names) > MAX_FIELDS or not all(isinstance(part, str) for part in names):
        raise ValueError("the names of a named tuple are not valid")
    # `namedtuple` checks for identifiers, keywords, underscores and repetitions.
    return _Constructor(name, collections.namedtuple(name, fields))


def _not_called(*_: Any) -> None:
    raise _RefusedError("calls numpy.ndarray or a module")


def _module(name: Any, *_: Any) -> _Constructor:
    """A module, which older versions of dill name before they name something in it."""
    return _Constructor(_shown(name), _not_called)


def _attribute(module: Any, name: Any) -> _Constructor:
    return _constructor(module.name if isinstance(module, _Constructor) else module, name)


def _type(name: Any) -> _Constructor:
    """One of Python's types, by the name that dill has for it."""
    return _constructor("__builtin__", "bytes" if name in ("bytes", "BytesType") else name)


_CORES = ("numpy.core", "numpy._core")  # of numpy 1 and 2
# Older versions of dill look for the functions in the second.
_ARRAY_MODULES = [
    f"{core}.{name}" for core in _CORES for name in ("multiarray", "_multiarray_umath")
]
_MAPPINGS = ("FlatMapping", "FlatMap", "frozendict", "to_immutable_dict")

# (module, name) in the file -> the function that makes the value here. These are the names that
# numpy, jax, Haiku and dill have left in such files over the years.
CONSTRUCTORS: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): lambda: b"",
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _not_called,  # an argument of `_reconstruct`
    **{(module, "_reconstruct"): lambda *_: _Array() for module in _ARRAY_MODULES},
    **{(module, "scalar"): _scalar for module in _ARRAY_MODULES},
    ("jax._src.array", "_reconstruct_array"): _filled_array,
    ("jax._src.device_array", "reconstruct_device_array"): _filled_array,
    ("dill._dill", "_create_array"): _filled_array,
    ("dill._dill", "_create_namedtuple"): _named_tuple,
    ("dill._dill", "_import_module"): _module,
    ("dill._dill", "_get_attr"): _attribute,
    ("dill._dill", "_load_type"): _type,
    ("collections", "OrderedDict"): _mapping,
    **{("haiku._src.data_structures", name): _mapping for name in _MAPPINGS},
    # Classes that a pickle may refer to by name instead of containing them.
    ("byol.byol_experiment", "_ByolExperimentState"): collections.namedtuple("State", STATE_FIELDS),
    ("byol.utils.optimizers", "AddWeightDecayState"): collections.namedtuple("State", ""),
    ("byol.utils.optimizers", "ScaleByLarsState"): collections.namedtuple("State", "mu"),
    ("optax._src.base", "EmptyState"): collections.namedtuple("State", ""),
    ("optax._src.transform", "ScaleState"): collections.namedtuple("State", ""),
}


def _constructor(module: Any, name: Any) -> _Constructor:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a name is not text")
    if (module, name) not in CONSTRUCTORS:
        raise _RefusedError(f"asks for {_shown(module)}.{_shown(name)}")
    return _Constructor(f"{module}.{name}", CONSTRUCTORS[module, name])


def _shown(value: Any) -> str:
    """Text without control characters, or the type of another value, for a message."""
    return ascii(value[:200])[1:-1] if isinstance(value, str) else f"<{type(value).__name__}>"


class _Instructions(dict):
    """Functions by code of instruction; a code without one is refused."""

    def __missing__(self, code: int) -> None:
        raise _RefusedError(f"uses the instruction {pickletools.code2op[chr(code)].name}")


# The instructions that Python's unpickler executes unchanged.
UNCHANGED = {
    *("PROTO", "FRAME", "STOP", "MARK", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET"),
    *("LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1"),
    *("BININT2", "LONG1", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINUNICODE"),
    *("SHORT_BINUNICODE", "BINUNICODE8", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE"),
    *("TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS"),
}


class _Unpickler(pickle._Unpickler):
    """Python's unpickler with the restrictions of the module's docstring."""

    def __init__(self, data: mmap.mmap):
        super().__init__(data)
        # A call takes a few bytes of the file, however much it makes of what was read before.
        self._budget = 4 * len(data) + 2**20  # bytes that calls may make

    def find_class(self, module: str, name: str) -> _Constructor:
        return _constructor(module, name)

    def _pop(self, number: int) -> list[Any]:
        return [self.stack.pop() for _ in range(number)][::-1]

    def _call(self) -> None:
        function, arguments = self._pop(2)
        if not isinstance(function, _Constructor) or type(arguments) is not tuple:
            raise _RefusedError(f"calls {_shown(function)} with {_shown(arguments)}")
        made = function.build(*arguments)
        is_class = isinstance(made, _Constructor)
        self._budget -= CLASS_SIZE if is_class else sys.getsizeof(made)
        if self._budget < 0:
            raise _RefusedError("makes far more data than its size explains")
        self.append(made)

    def _set_state(self) -> None:
        state, value = self.stack.pop(), self.stack[-1]
        if not isinstance(value, _Array | _Dtype):
            raise _RefusedError(f"sets the state of {_shown(value)}")
        value.set_state(state)

    def _set_items(self, items: list[Any]) -> None:
        mapping = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(mapping) is not dict or type(key) not in (str, int):
                raise _RefusedError(f"sets the item {_shown(key)} of {_shown(mapping)}")
            mapping[key] = value

    dispatch = _Instructions(
        (code, function)
        for code, function in pickle._Unpickler.dispatch.items()
        if pickletools.code2op[chr(code)].name in UNCHANGED
    )
    dispatch[ord(pickle.REDUCE)] = dispatch[ord(pickle.NEWOBJ)] = _call
    dispatch[ord(pickle.BUILD)] = _set_state
    dispatch[ord(pickle.SETITEM)] = lambda self: self._set_items(self._pop(2))
    dispatch[ord(pickle.SETITEMS)] = lambda self: self._set_items(self.pop_mark())


def _plain(value: Any) -> Any:
    """The same tree with its arrays; what occurs twice in it is converted once."""
    done: dict[int, Any] = {}

    def convert(value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool | int | float | str | bytes | np.generic):
            return value
        if isinstance(value, _Array) and value.value is not None:
            return value.value
        if not isinstance(value, list | dict | tuple):
            raise _RefusedError(f"leaves {_shown(value)} among its values")
        if id(value) not in done:
            if depth > MAX_DEPTH:
                raise _RefusedError("contains itself, or is nested too deeply")
            if isinstance(value, dict):
                made = {key: convert(part, depth + 1) for key, part in value.items()}
            else:
                parts = [convert(part, depth + 1) for part in value]
                made = type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
            done[id(value)] = made
        return done[id(value)]

    return convert(value, 0)
