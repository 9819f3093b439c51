"""Reads the pickles that the authors' code writes as checkpoints, without running what is in them.

A pickle is a program for a small stack machine, and Python's own machine lets it call anything that
can be imported. The machine here knows the instructions that a checkpoint needs and no others, and
looks nothing up: the few constructors that numpy, jax, Haiku and dill have left in such files over
the years (`CONSTRUCTORS`) are names for functions of this file, which make plain arrays,
dictionaries and named tuples, after checking dtypes, shapes and lengths. All else is refused by
name.

Files of the authors' code are of protocol 2, by `dill`; newer protocols are read too.
"""

import collections
import dataclasses
import math
import os
import pickletools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from byol_jax.errors import UserError

DTYPES = frozenset(
    ("?", "b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
)  # numbers of fixed size: no objects, no strings, no records
MAX_DEPTH = 64  # of containers in containers; a checkpoint has less than ten
MAX_DIMENSIONS = 32
MAX_LENGTH = 2**48  # of one dimension
MAX_FIELDS = 64  # of a named tuple


class _RefusedError(Exception):
    """Why a file is refused; the text follows the file's name."""


def load(path: str | Path) -> Any:
    """Reads a checkpoint.

    Takes about three times the size of a checkpoint's file in memory, and a file of any other
    content is stopped at a bounded multiple of its own size.

    Args:
      path: a pickle of protocol 2 to 5.

    Returns:
      Nested dicts, lists, tuples and named tuples of numpy arrays and scalars, numbers, strings,
      bytes and None. Mappings of other types come as dict, arrays of jax as numpy's, read-only.

    Raises:
      UserError: the file is not there, is no pickle, is damaged, or asks for what a checkpoint does
        not need. Nothing that it names was imported or called.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _plain(_run(_instructions(_Bounded(file, size)), _Allowance(size)))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name a file.") from error
    except _RefusedError as error:
        raise UserError(f"{path} {error}") from None
    except MemoryError:
        raise UserError(f"{path} needs more memory than there is.") from None


class _Bounded:
    """A file that reads no further than its end, whatever length is asked for.

    A length in a damaged or hostile file may be anything, and Python sets memory aside before it
    reads.
    """

    def __init__(self, file: BinaryIO, size: int):
        self._file = file
        self._size = size

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, self._size - self._file.tell()))

    def readline(self) -> bytes:
        line = self._file.readline()
        if b"\\" in line:
            raise ValueError("a name has a backslash")
        return line


class _Allowance:
    """What the constructors of a file may make, in bytes, by the size of the file.

    A call takes a few bytes of the file, however much it makes of what was read before.
    """

    def __init__(self, size: int):
        self._left = 2 * size + 2**20

    def spend(self, made: Any) -> None:
        """Counts what a constructor has made; refuses the file when it is too much."""
        if isinstance(made, bytes):
            self._left -= len(made)
        elif isinstance(made, dict):
            self._left -= 16 * len(made)
        elif isinstance(made, _Class):
            self._left -= 2**12
        if self._left < 0:
            raise _RefusedError("asks for far more memory than its size explains: refused.")


def _instructions(file: _Bounded) -> Iterator[tuple[str, Any]]:
    """Names and arguments of the instructions, the first checked to be a header."""
    program = pickletools.genops(file)
    try:
        opcode, argument, _ = next(program)
        is_pickle = opcode.name == "PROTO" and 2 <= argument <= 5
    except ValueError:
        is_pickle = False
    if not is_pickle:
        raise _RefusedError(
            "is not a pickle of protocol 2 to 5: name a checkpoint of the authors' code."
        )
    name = "PROTO"
    while name != "STOP":
        try:
            opcode, argument, _ = next(program)
        except (ValueError, OverflowError) as error:
            raise _RefusedError(f"is damaged: {error}.") from None
        name = opcode.name
        yield name, argument


class _Mark:
    """Where the arguments of the next instruction begin on the stack."""


@dataclasses.dataclass(frozen=True)
class _Constructor:
    """What a name in the file stands for here."""

    name: str
    build: Callable[..., Any] | None  # None: only ever an argument of another constructor


@dataclasses.dataclass(frozen=True)
class _Class:
    """A named tuple's type."""

    type: type


class _Dtype:
    """An array's dtype, whose byte order comes after it was made."""

    def __init__(self, code: Any, *_: Any):
        if not isinstance(code, str) or code.lstrip("<>=|") not in DTYPES:
            raise _RefusedError(
                f"holds an array of dtype {code!r}, which is no plain number: refused."
            )
        self.value = np.dtype(code)

    def build(self, state: Any) -> None:
        """Takes the state that numpy gives a plain dtype: version, byte order, and Nones."""
        order = state[1] if isinstance(state, tuple) and len(state) >= 8 else None
        if order not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
            raise _RefusedError("holds a dtype with fields or a shape of its own: refused.")
        self.value = self.value.newbyteorder(order)


class _Array:
    """An array, whose contents come after it was made."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        """Takes numpy's state: version, shape, dtype, whether column-major, and the bytes."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise _RefusedError("is damaged: an array has not its five parts.")
        _, shape, dtype, column_major, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise _RefusedError("holds an array that is not of plain numbers: refused.")
        _check_shape(shape)
        if math.prod(shape) * dtype.value.itemsize != len(data):
            raise _RefusedError(
                f"is damaged: an array {shape} of {dtype.value} has {len(data)} bytes of data."
            )
        try:
            flat = np.frombuffer(data, dtype.value)
            self.value = flat.reshape(shape, order="F" if column_major else "C")
        except ValueError:  # a length of zero lets the others be anything
            raise _RefusedError(f"is damaged: an array cannot be {shape}.") from None


def _check_shape(shape: Any) -> None:
    fits = isinstance(shape, tuple) and len(shape) <= MAX_DIMENSIONS
    if not fits or not all(type(n) is int and 0 <= n <= MAX_LENGTH for n in shape):
        raise _RefusedError("is damaged: an array's shape is none.")


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes, which protocol 2 has no instruction for."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _RefusedError(
            f"encodes text as {encoding!r}, which a checkpoint does not need: refused."
        )
    try:
        return text.encode("latin1")
    except UnicodeEncodeError:
        raise _RefusedError("is damaged: bytes are no bytes.") from None


def _no_bytes() -> bytes:
    """What protocol 2 makes of b""."""
    return b""


def _array(kind: Any, *_: Any) -> _Array:
    _check_constructor(kind, "numpy.ndarray")
    return _Array()


def _filled_array(function: Any, arguments: Any, state: Any, *_: Any) -> _Array:
    """An array and its contents at once: dill's, with attributes last, and jax's, with its aval."""
    _check_constructor(function, "_reconstruct")
    array = function.build(*_arguments(arguments))
    array.build(state)
    return array


def _check_constructor(value: Any, name: str) -> None:
    if not isinstance(value, _Constructor) or not value.name.endswith(name):
        raise _RefusedError(f"makes an array of something else than {name}: refused.")


def _scalar(dtype: Any, data: Any) -> np.generic:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise _RefusedError("holds a scalar that is not a plain number: refused.")
    if dtype.value.itemsize != len(data):
        raise _RefusedError(f"is damaged: a {dtype.value} has {len(data)} bytes of data.")
    return np.frombuffer(data, dtype.value)[0]


def _mapping(items: Any = (), *_: Any) -> dict:
    """A dictionary of any kind, from another or from pairs."""
    if isinstance(items, dict):
        return dict(items)
    if not isinstance(items, list | tuple):
        raise _RefusedError("is damaged: a mapping is made of what is none.")
    made = {}
    for pair in items:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise _RefusedError("is damaged: a mapping is made of what are no pairs.")
        _set_item(made, *pair)
    return made


def _named_tuple(name: Any, fields: Any, *_: Any) -> _Class:
    """dill's named tuples carry their field names, so the module they name is not looked for."""
    names = [name, *fields] if isinstance(fields, list | tuple) else []
    fits = 0 < len(names) <= MAX_FIELDS and all(
        isinstance(part, str) and part.isidentifier() and part.isascii() for part in names
    )
    try:
        if not fits:
            raise ValueError
        # The check for keywords, underscores and repetitions is its own.
        return _Class(collections.namedtuple(name, fields))
    except ValueError:
        raise _RefusedError("holds a named tuple whose names are no names: refused.") from None


def _named(*names: str) -> Callable[..., Any]:
    return lambda *values: _instance(_named_tuple("State", names), values)


def _instance(kind: _Class, values: tuple) -> tuple:
    if len(values) != len(kind.type._fields):
        raise _RefusedError(f"is damaged: a {kind.type.__name__} has {len(values)} values.")
    return kind.type(*values)


@dataclasses.dataclass(frozen=True)
class _Module:
    """A module that older versions of dill name before they name something in it."""

    name: str


def _module(name: Any, *_: Any) -> _Module:
    if not any(name == module for module, _ in CONSTRUCTORS):
        raise _RefusedError(
            f"asks for module {_shown(name)}, which a checkpoint does not need: refused."
        )
    return _Module(name)


def _attribute(module: Any, name: Any) -> _Constructor:
    if not isinstance(module, _Module):
        raise _RefusedError(f"asks for {_shown(name)} of what is no module: refused.")
    return _constructor(module.name, name)


def _type(name: Any) -> _Constructor:
    """dill's word for a type of Python's own."""
    if name not in ("bytes", "BytesType"):
        raise _RefusedError(
            f"asks for type {_shown(name)}, which a checkpoint does not need: refused."
        )
    return _constructor("__builtin__", "bytes")


# Of numpy 1 and 2; the second of each is where its functions say that they are.
_ARRAY_MODULES = (
    *("numpy.core.multiarray", "numpy.core._multiarray_umath"),
    *("numpy._core.multiarray", "numpy._core._multiarray_umath"),
)
_HAIKU = "haiku._src.data_structures"

# By module and name. Each makes values of this file's own; what it is called in the file is never
# imported.
CONSTRUCTORS: dict[tuple[str, str], Callable[..., Any] | None] = {
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): None,
    **{(module, "_reconstruct"): _array for module in _ARRAY_MODULES},
    **{(module, "scalar"): _scalar for module in _ARRAY_MODULES},
    ("jax._src.array", "_reconstruct_array"): _filled_array,
    ("jax._src.device_array", "reconstruct_device_array"): _filled_array,
    ("dill._dill", "_create_array"): _filled_array,
    ("dill._dill", "_create_namedtuple"): _named_tuple,
    ("dill._dill", "_import_module"): _module,
    ("dill._dill", "_get_attr"): _attribute,
    ("dill._dill", "_load_type"): _type,
    ("collections", "OrderedDict"): _mapping,
    (_HAIKU, "FlatMapping"): _mapping,
    (_HAIKU, "FlatMap"): _mapping,
    (_HAIKU, "frozendict"): _mapping,
    (_HAIKU, "to_immutable_dict"): _mapping,
    # Classes that a pickle may refer to instead of carrying.
    ("byol.byol_experiment", "_ByolExperimentState"): _named(
        "online_params", "target_params", "online_state", "target_state", "opt_state"
    ),
    ("byol.utils.optimizers", "AddWeightDecayState"): _named(),
    ("byol.utils.optimizers", "ScaleByLarsState"): _named("mu"),
    ("optax._src.base", "EmptyState"): _named(),
    ("optax._src.transform", "ScaleState"): _named(),
}


def _shown(name: Any) -> str:
    """A name for a message, without what would control a terminal."""
    return ascii(str(name))[1:-1]


def _constructor(module: Any, name: Any) -> _Constructor:
    if not isinstance(module, str) or not isinstance(name, str):
        raise _RefusedError("is damaged: a name is no text.")
    if (module, name) not in CONSTRUCTORS:
        asked = _shown(f"{module}.{name}")
        raise _RefusedError(f"asks for {asked}, which a checkpoint does not need: refused.")
    return _Constructor(f"{module}.{name}", CONSTRUCTORS[module, name])


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Constructor) or function.build is None:
        what = function.name if isinstance(function, _Constructor) else type(function).__name__
        raise _RefusedError(f"calls {what}, which a checkpoint does not need: refused.")
    try:
        return function.build(*_arguments(arguments))
    except TypeError:  # too many arguments, or too few
        raise _RefusedError(f"calls {function.name} in a way that is not known: refused.") from None


def _arguments(arguments: Any) -> tuple:
    if type(arguments) is not tuple:
        raise _RefusedError("is damaged: the arguments of a call are none.")
    return arguments


def _new(kind: Any, values: Any) -> Any:
    """`cls.__new__(cls, *values)`."""
    if isinstance(kind, _Class):
        return _instance(kind, _arguments(values))
    return _call(kind, values)


def _set_item(mapping: dict, key: Any, value: Any) -> None:
    if type(key) not in (str, int):
        raise _RefusedError(f"has a dictionary with a key of type {type(key).__name__}: refused.")
    mapping[key] = value


# Instructions whose argument is the value.
NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
VALUES = frozenset((*NUMBERS, *BYTES, *TEXTS))
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _run(program: Iterator[tuple[str, Any]], allowance: _Allowance) -> Any:
    """The value that a pickle's program leaves, arrays still as `_Array`."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def pop() -> Any:
        if not stack or isinstance(stack[-1], _Mark):
            raise _RefusedError("is damaged: its stack is empty.")
        return stack.pop()

    def pop_to_mark() -> list[Any]:
        values = []
        while stack and not isinstance(stack[-1], _Mark):
            values.append(stack.pop())
        if not stack:
            raise _RefusedError("is damaged: its stack has no mark.")
        stack.pop()
        return values[::-1]

    def top(kind: type) -> Any:
        if not stack or type(stack[-1]) is not kind:
            raise _RefusedError(f"is damaged: it fills a {kind.__name__} that is not there.")
        return stack[-1]

    def set_items(pairs: list[Any]) -> None:
        if len(pairs) % 2:
            raise _RefusedError("is damaged: a key has no value.")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            _set_item(top(dict), key, value)

    for instruction, argument in program:
        if instruction in VALUES:
            stack.append(argument)
        elif instruction in CONSTANTS:
            stack.append(CONSTANTS[instruction])
        elif instruction in EMPTY:
            stack.append(EMPTY[instruction]())
        elif instruction in TUPLES:
            stack.append(tuple([pop() for _ in range(TUPLES[instruction])][::-1]))
        elif instruction in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            value = pop()
            memo[len(memo) if instruction == "MEMOIZE" else argument] = value
            stack.append(value)
        elif instruction in ("BINGET", "LONG_BINGET"):
            if argument not in memo:
                raise _RefusedError(f"is damaged: it reads entry {argument} before it is written.")
            stack.append(memo[argument])
        elif instruction == "MARK":
            stack.append(_Mark())
        elif instruction == "TUPLE":
            stack.append(tuple(pop_to_mark()))
        elif instruction == "APPEND":
            value = pop()
            top(list).append(value)
        elif instruction == "APPENDS":
            values = pop_to_mark()
            top(list).extend(values)
        elif instruction == "SETITEM":
            value, key = pop(), pop()
            set_items([key, value])
        elif instruction == "SETITEMS":
            set_items(pop_to_mark())
        elif instruction == "GLOBAL":
            stack.append(_constructor(*argument.split(" ", 1)))
        elif instruction == "STACK_GLOBAL":
            name, module = pop(), pop()
            stack.append(_constructor(module, name))
        elif instruction in ("REDUCE", "NEWOBJ"):
            arguments, function = pop(), pop()
            stack.append((_call if instruction == "REDUCE" else _new)(function, arguments))
            allowance.spend(stack[-1])
        elif instruction == "BUILD":
            state, value = pop(), pop()
            if not isinstance(value, _Array | _Dtype):
                what = type(value).__name__.lstrip("_").lower()
                raise _RefusedError(f"sets the state of a {what}, which has none: refused.")
            value.build(state)
            stack.append(value)
        elif instruction == "STOP":
            return pop()
        elif instruction != "FRAME":  # frames help a reader of streams; this one needs no help
            raise _RefusedError(
                f"uses the instruction {instruction}, which a checkpoint does not need: refused."
            )


def _plain(value: Any) -> Any:
    """The same tree with its arrays; what stands twice in it is made once."""
    done: dict[int, Any] = {}

    def convert(value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool | int | float | str | bytes | np.generic):
            return value
        if isinstance(value, _Array) and value.value is not None:
            return value.value
        if not isinstance(value, list | dict | tuple):
            raise _RefusedError(
                f"leaves a {type(value).__name__.lstrip('_').lower()} among its values."
            )
        if id(value) in done:
            return done[id(value)]
        if depth > MAX_DEPTH:
            raise _RefusedError("holds something within itself, or nested too deep: refused.")
        if isinstance(value, dict):
            made = {key: convert(part, depth + 1) for key, part in value.items()}
        else:
            parts = [convert(part, depth + 1) for part in value]
            made = type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        done[id(value)] = made
        return made

    return convert(value, 0)
