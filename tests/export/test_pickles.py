"""Checkpoints are read as they were written, and nothing in a pickle is ever executed."""

import collections
import io
import pickle
import struct
import sys
import tracemalloc
import types

import numpy as np
import pytest

from byol_jax.errors import CheckpointError
from byol_jax.export.convert import pickles


@pytest.fixture
def read(tmp_path):
    """A function from the bytes of a pickle to the value that they are read as."""

    def read(data):
        path = tmp_path / "checkpoint.pkl"
        path.write_bytes(data)
        return pickles.load(path)

    return read


def case_name(value):
    """The text of a case, not its bytes."""
    return value if isinstance(value, str) else ""


# What is accepted.


@pytest.fixture
def module(monkeypatch):
    """A function that makes an empty module importable during the test."""

    def module(name):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            part = ".".join(parts[:end])
            if part == name or part not in sys.modules:
                monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        return sys.modules[name]

    return module


class Reduced:
    """Pickles as a call of a function of some module."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def function_of(module, name):
    """A function that a pickle refers to as module.name."""

    def function(*arguments):
        raise AssertionError(f"{name} was called with {arguments}")

    function.__module__, function.__qualname__, function.__name__ = module.__name__, name, name
    setattr(module, name, function)
    return function


ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "column-major": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "scalar": np.float32(3.5),
    "0-d": np.asarray(7, np.int32),
    "empty": np.zeros((0, 4), np.float16),
    "big-endian": np.arange(4, dtype=">u4"),
    "bool": np.array([True, False]),
}


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_read(read, name, protocol):
    got = read(pickle.dumps({"a": ARRAYS[name]}, protocol))["a"]
    assert got.dtype == ARRAYS[name].dtype
    np.testing.assert_array_equal(got, ARRAYS[name], strict=True)


@pytest.mark.parametrize("package", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_arrays_of_numpy_1_and_2_are_read(read, package):
    data = pickle.dumps([ARRAYS["matrix"], ARRAYS["scalar"]], 2)
    data = data.replace(b"numpy._core.multiarray", package)
    assert package in data
    got = read(data)
    np.testing.assert_array_equal(got[0], ARRAYS["matrix"], strict=True)
    assert got[1] == ARRAYS["scalar"]


PLAIN = {
    "numbers": [0, 1, 255, 65535, -1, 2**40, -(2**70), 1.5, float("inf"), True, False, None],
    "texts": ["", "step", "é", "x" * 300, b"", b"\xff\x00"],
    "nested": {"a": {"b": ((), (1,), (1, 2, 3, 4))}, 3: [[], {}]},
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_values_are_read(read, name, protocol):
    assert read(pickle.dumps(PLAIN[name], protocol)) == PLAIN[name]


def test_a_value_that_occurs_twice_is_read_once(read):
    shared = {"w": np.ones(3)}
    got = read(pickle.dumps({"online": shared, "target": shared}, 2))
    assert got["online"] is got["target"]


def test_ordered_dicts_are_read_as_dicts(read):
    value = collections.OrderedDict(b=1, a=collections.OrderedDict())
    got = read(pickle.dumps(value, 2))
    assert type(got) is dict and list(got.items()) == [("b", 1), ("a", {})]


@pytest.mark.parametrize("name", ["FlatMapping", "FlatMap", "frozendict", "to_immutable_dict"])
def test_mappings_of_haiku_are_read_as_dicts(read, module, name):
    function = function_of(module("haiku._src.data_structures"), name)
    assert read(pickle.dumps(Reduced(function, {"linear": {"b": 1}}), 2)) == {"linear": {"b": 1}}


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("jax._src.array", "_reconstruct_array"),
        ("jax._src.device_array", "reconstruct_device_array"),
        ("dill._dill", "_create_array"),
    ],
)
def test_wrapped_arrays_are_read(read, module, package, name):
    function = function_of(module(package), name)
    made_by, arguments, state = ARRAYS["matrix"].__reduce__()
    wrapped = Reduced(function, made_by, arguments, state, {"weak_type": False})
    np.testing.assert_array_equal(read(pickle.dumps(wrapped, 2)), ARRAYS["matrix"], strict=True)


def test_named_tuples_of_dill_are_read(read):
    # The class is built in the file, from names, and an instance of it with NEWOBJ.
    fields = put(b"(", text("mu"), text("count"), b"t")
    kind = call("dill._dill", "_create_namedtuple", text("State"), fields, text("a.module"))
    got = read(program(kind, tuple_of(number(1), number(2)), b"\x81"))
    assert got._fields == ("mu", "count") and got == (1, 2) and type(got).__name__ == "State"


def test_the_pickles_of_older_dills_are_read(read):
    # dill 0.3.4 names functions of C by their modules, and types by names of its own.
    def attribute(module, name):
        return call("dill._dill", "_get_attr", call(*IMPORT, text(module)), text(name))

    umath, name = "numpy.core._multiarray_umath", name_of("numpy", "ndarray")
    encode = attribute("_codecs", "encode")
    kind = put(encode, tuple_of(text("b"), text("latin1")), b"R")
    made = put(attribute(umath, "_reconstruct"), tuple_of(name, tuple_of(number(0)), kind), b"R")
    data = put(encode, tuple_of(text("\0" * 8), text("latin1")), b"R")
    filled = tuple_of(number(1), tuple_of(number(2)), dtype("f4"), b"\x89", data)
    empty = put(call("dill._dill", "_load_type", text("bytes")), b")R")
    scalar = put(attribute(umath, "scalar"), tuple_of(dtype("i4"), latin1("\7\0\0\0")), b"R")
    got = read(program(tuple_of(put(made, filled, b"b"), empty, scalar)))
    np.testing.assert_array_equal(got[0], np.zeros(2, np.float32), strict=True)
    assert got[1:] == (b"", 7)


def test_named_tuples_by_reference_are_read(read, module):
    names = ["online_params", "target_params", "online_state", "target_state", "opt_state"]
    kind = collections.namedtuple("_ByolExperimentState", names)
    kind.__module__ = "byol.byol_experiment"
    module("byol.byol_experiment")._ByolExperimentState = kind
    got = read(pickle.dumps(kind(*range(5)), 2))
    assert got._fields == tuple(names) and tuple(got) == (0, 1, 2, 3, 4)


def test_the_authors_checkpoint_is_read(read, reference_data):
    got = pickles.load(reference_data / "pretrain_tiny.pkl")
    values = np.load(reference_data / "trajectory.npz")
    assert set(got) == {"experiment_state", "step", "rng"} and got["step"] == 5
    state, seen = got["experiment_state"], 0
    for field in ("online_params", "target_params", "online_state", "target_state"):
        for name, leaves in getattr(state, field).items():
            for leaf, array in leaves.items():
                np.testing.assert_array_equal(array, values[f"final|{field}|{name}/{leaf}"])
                seen += 1
    for name, leaves in state.opt_state[1].mu.items():
        for leaf, array in leaves.items():
            np.testing.assert_array_equal(array, values[f"final|opt_state|1/mu/{name}/{leaf}"])
            seen += 1
    assert seen == sum(name.startswith("final|") for name in values.files)


# What is refused. The pickles are written by hand, instruction by instruction.


def put(*parts):
    return b"".join(parts)


def program(*parts):
    return put(b"\x80\x02", *parts, b".")


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def tuple_of(*parts):
    return put(b"(", *parts, b"t")


def name_of(module, name):
    return f"c{module}\n{name}\n".encode()


def call(module, name, *arguments):
    return put(name_of(module, name), tuple_of(*arguments), b"R")


def latin1(value):
    return call("_codecs", "encode", text(value), text("latin1"))


IMPORT = ("dill._dill", "_import_module")
MULTIARRAY = "numpy.core.multiarray"
EMPTY_ARRAY = call(
    MULTIARRAY, "_reconstruct", name_of("numpy", "ndarray"), tuple_of(number(0)), latin1("b")
)


def dtype(code, order="<"):
    none = b"N"
    state = tuple_of(number(3), text(order), none, none, none, number(-1), number(-1), number(0))
    return put(call("numpy", "dtype", text(code), b"\x89", b"\x88"), state, b"b")


def array(shape, code="f4", data=None):
    data = latin1("\0" * 8) if data is None else data
    sizes = tuple_of(*map(number, shape))
    return put(EMPTY_ARRAY, tuple_of(number(1), sizes, dtype(code), b"\x89", data), b"b")


def test_the_handwritten_pickles_are_valid(read):
    np.testing.assert_array_equal(read(program(array([2]))), np.zeros(2, np.float32), strict=True)


SYSTEM = text("touch SENTINEL")
NAMED = {
    "os.system": call("os", "system", SYSTEM),
    "posix.system": call("posix", "system", SYSTEM),
    "nt.system": call("nt", "system", SYSTEM),
    "subprocess.Popen": call("subprocess", "Popen", SYSTEM),
    "subprocess.check_output": call("subprocess", "check_output", SYSTEM),
    "builtins.eval": call("builtins", "eval", text("open('SENTINEL', 'w')")),
    "builtins.exec": call("builtins", "exec", text("open('SENTINEL', 'w')")),
    "__builtin__.eval": call("__builtin__", "eval", text("open('SENTINEL', 'w')")),
    "builtins.open": call("builtins", "open", text("SENTINEL"), text("w")),
    "builtins.getattr": call("builtins", "getattr", name_of("os", "path"), text("join")),
    "builtins.__import__": call("builtins", "__import__", text("os")),
    "builtins.object": call("builtins", "object"),
    "copyreg._reconstructor": call("copyreg", "_reconstructor", name_of("os", "path"), b"N"),
    "copyreg.add_extension": call("copyreg", "add_extension", text("os"), text("system")),
    "numpy.load": call("numpy", "load", text("SENTINEL")),
    "numpy.fromfile": call("numpy", "fromfile", text("SENTINEL")),
    "numpy.matrix": call("numpy", "matrix", text("1 2")),
    "numpy.core.multiarray.fromfile": call(MULTIARRAY, "fromfile", text("SENTINEL")),
    "numpy.testing._private.utils.runstring": call(
        "numpy.testing._private.utils", "runstring", text("open('SENTINEL', 'w')"), b"}"
    ),
    "dill._dill._eval_repr": call("dill._dill", "_eval_repr", text("open('SENTINEL', 'w')")),
    "os.popen": call("dill._dill", "_get_attr", call(*IMPORT, text("os")), text("popen")),
    "dill._dill._create_function": call("dill._dill", "_create_function", b"N"),
    "__builtin__.CodeType": call("dill._dill", "_load_type", text("CodeType")),
    "_codecs.lookup": call(
        "dill._dill", "_get_attr", call(*IMPORT, text("_codecs")), text("lookup")
    ),
    "jax._src.array.sys": name_of("jax._src.array", "sys"),
    "collections.Counter": call("collections", "Counter"),
    "functools.partial": call("functools", "partial", name_of("_codecs", "encode")),
    "operator.attrgetter": call("operator", "attrgetter", text("system")),
    "_codecs.decode": call("_codecs", "decode", latin1("x"), text("latin1")),
}


@pytest.fixture(autouse=True)
def no_sentinel(tmp_path, monkeypatch):
    """Fails the test if a command or a call of a pickle made its file."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "SENTINEL").exists()


@pytest.mark.parametrize("name", NAMED)
def test_other_names_are_refused(read, name):
    with pytest.raises(CheckpointError, match=f"asks for {name}, which no checkpoint does"):
        read(program(NAMED[name]))


def test_the_sentinel_is_sensitive(read, tmp_path):
    with open(tmp_path / "SENTINEL", "w"):
        pass
    assert (tmp_path / "SENTINEL").exists()
    pickle.loads(program(call("builtins", "eval", text("__import__('os').remove('SENTINEL')"))))
    assert not (tmp_path / "SENTINEL").exists()


STACK_GLOBAL = b"\x93"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy.core.multiarray", "sys.modules"),
        ("numpy", "core.multiarray._reconstruct"),  # a dotted name walks through attributes
        ("numpy.core", "multiarray._reconstruct"),
        ("dill._dill", "_create_array.__globals__"),
        ("collections", "OrderedDict.fromkeys"),
        ("os", "system"),
    ],
)
def test_dotted_names_are_refused(read, module, name):
    with pytest.raises(CheckpointError, match=f"asks for {module}.{name}, which"):
        read(program(text(module), text(name), STACK_GLOBAL, tuple_of(SYSTEM), b"R"))


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("INST", put(b"(", SYSTEM, b"ios\nsystem\n")),
        ("EXT1", put(b"\x82\x01", tuple_of(SYSTEM), b"R")),
        ("EXT4", put(b"\x84\x01\x00\x00\x00", tuple_of(SYSTEM), b"R")),
        ("PERSID", b"Pos.system\n"),
        ("BINPERSID", put(SYSTEM, b"Q")),
        ("NEWOBJ_EX", put(b"}", tuple_of(), b"}", b"\x92")),
        ("NEXT_BUFFER", b"\x97"),
        ("EMPTY_SET", b"\x8f"),
        ("BYTEARRAY8", b"\x96" + struct.pack("<Q", 1) + b"x"),
        ("LONG4", b"\x8b" + struct.pack("<i", 1) + b"x"),
        ("STRING", b"S'x'\n"),
        ("INT", b"I1\n"),
        ("DUP", put(number(1), b"2")),
        ("POP", put(number(1), number(2), b"0")),
    ],
    ids=case_name,
)
def test_other_instructions_are_refused(read, name, instruction):
    with pytest.raises(
        CheckpointError, match=f"uses the instruction {name}, which no checkpoint does"
    ):
        read(program(instruction))


def test_obj_is_refused(read):
    with pytest.raises(CheckpointError, match=r"asks for os.system"):
        read(program(b"(", name_of("os", "system"), SYSTEM, b"o"))
    with pytest.raises(CheckpointError, match="uses the instruction OBJ"):
        read(program(b"(", name_of("_codecs", "encode"), SYSTEM, b"o"))


@pytest.mark.parametrize(
    ("what", "callee"),
    [
        ("calls os.system", text("os.system")),
        ("calls <dict>", b"}"),
        ("calls <NoneType>", b"N"),
        ("calls <_Array>", EMPTY_ARRAY),
        ("calls numpy.ndarray", name_of("numpy", "ndarray")),
        ("calls numpy.ndarray or a module", call(*IMPORT, text("os"))),
    ],
    ids=case_name,
)
def test_only_constructors_are_called(read, what, callee):
    for instruction in (b"R", b"\x81"):
        with pytest.raises(CheckpointError, match=f"{what}.*, which no checkpoint does"):
            read(program(callee, tuple_of(SYSTEM), instruction))


NAMED_TUPLE = call("dill._dill", "_create_namedtuple", text("A"), tuple_of(), text("m"))
STATE = put(b"}", text("__reduce__"), name_of("_codecs", "encode"), b"s")


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("_Constructor", name_of("_codecs", "encode")),
        ("_Constructor", name_of("numpy", "ndarray")),
        ("_Constructor", NAMED_TUPLE),
        ("A", put(NAMED_TUPLE, b")\x81")),
        ("dict", call("collections", "OrderedDict")),
        ("list", b"]"),
        ("x", text("x")),
    ],
    ids=case_name,
)
def test_only_arrays_and_dtypes_have_a_state(read, what, value):
    for state in (STATE, tuple_of(b"N", STATE)):  # of __dict__, and of slots
        with pytest.raises(CheckpointError, match=f"sets the state of <?{what}>?, which no"):
            read(program(value, state, b"b"))
    assert not hasattr(pickles._encode, "__wrapped__") and "__reduce__" not in vars(pickles._encode)


@pytest.mark.parametrize("code", ["O", "|O", "O8", "V8", "S8", "U2", "M8[s]", "f4,f4", "object"])
def test_arrays_of_anything_but_numbers_are_refused(read, code):
    with pytest.raises(
        CheckpointError, match=r"holds an array of dtype .*, which no checkpoint does"
    ):
        read(program(array([1], code)))


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (array([10**12]), r"an array \(1000000000000,\) of float32 has 8 bytes"),
        (array([2**47, 2**47, 2]), "of float32 has 8 bytes"),
        (array([2**62]), "shape of an array is not valid"),
        (array([-1]), "shape of an array is not valid"),
        (array([1] * 33), "shape of an array is not valid"),
        (array([3]), r"an array \(3,\) of float32 has 8 bytes"),
        (array([1]), r"an array \(1,\) of float32 has 8 bytes"),
        (array([0, 2**47, 2**47], data=latin1("")), "is damaged"),
        (array([2], data=text("text")), "an array that is not of numbers"),
        (array([1], data=tuple_of(name_of("_codecs", "encode"))), "that is not of numbers"),
        (put(EMPTY_ARRAY, tuple_of(number(1)), b"b"), "not enough values to unpack"),
        (EMPTY_ARRAY, "leaves <_Array> among its values"),
        (dtype("f4"), "leaves <_Dtype> among its values"),
        (dtype("f4", "O"), "a dtype with fields"),
        (name_of("_codecs", "encode"), "leaves <_Constructor> among its values"),
        (call(MULTIARRAY, "scalar", dtype("f4"), latin1("\0" * 3)), "float32 has 3 bytes"),
        (call(MULTIARRAY, "scalar", text("O"), latin1("x")), "a scalar that is not a number"),
        (
            call(MULTIARRAY, "_reconstruct", name_of("collections", "OrderedDict"), tuple_of()),
            "leaves <_Array> among its values",
        ),
        (
            call("dill._dill", "_create_array", name_of("_codecs", "encode"), tuple_of(), b"N"),
            "cannot unpack",
        ),
        (
            call("dill._dill", "_get_attr", text("x"), text("__class__")),
            "asks for x.__class__, which no checkpoint does",
        ),
        (call("dill._dill", "_import_module", text("os")), "leaves <_Constructor> among"),
        (call("_codecs", "encode", text("x"), text("rot13")), "encodes x as rot13"),
        (call("_codecs", "encode", text("☃"), text("latin1")), "is damaged: 'latin-1' codec"),
        (call("__builtin__", "bytes", number(2**40)), "takes 0 positional arguments"),
        (call("_codecs", "encode"), "missing 2 required positional arguments"),
    ],
    ids=case_name,
)
def test_inconsistent_arrays_are_refused(read, pickled, message):
    with pytest.raises(CheckpointError, match=message):
        read(program(pickled))


@pytest.mark.parametrize(
    "names",
    [
        ("A", "__class__"),
        ("A", "_make"),
        ("A", "x=open('SENTINEL','w')"),
        ("A", "x y"),
        ("A", "lambda"),
        ("A", "x", "x"),
        ("A\nimport os", "x"),
        ("A", *(f"x{i}" for i in range(100))),
    ],
)
def test_named_tuples_with_invalid_names_are_refused(read, names):
    fields = tuple_of(*map(text, names[1:]))
    with pytest.raises(CheckpointError, match=r"is damaged: .*name"):
        read(program(call("dill._dill", "_create_namedtuple", text(names[0]), fields, text("m"))))


def test_the_module_of_a_named_tuple_is_not_imported(read, tmp_path, monkeypatch):
    (tmp_path / "hostile.py").write_text("open('SENTINEL', 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    kind = call("dill._dill", "_create_namedtuple", text("A"), tuple_of(), text("hostile"))
    assert read(program(kind, b")", b"\x81")) == ()
    assert "hostile" not in sys.modules


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a pickle"),
        (b"PK\x03\x04 a zip file", "is not a pickle"),
        (b"\x93NUMPY\x01\x00", "is not a pickle"),
        (b"a text", "is not a pickle"),
        (pickle.dumps({"step": 1}, 0), "is not a pickle of protocol 2"),
        (b"\x80\x06N.", "is not a pickle of protocol 2 to 5"),
        (b"\x80\x02", "is damaged"),
        (program()[:-1] + b"}", "is damaged"),
        (b"\x80\x02\xff.", "is damaged"),
        (program(b"cos\nsys\\x74em\n"), r"asks for os\.sys\\\\x74em"),
        (program(b"X\xff\xff\xff\x7f"), "is damaged"),  # a length of two gigabytes
        (program(b"\x8d" + struct.pack("<Q", 2**62)), "is damaged"),
        (program(b"\x8e" + struct.pack("<Q", 2**62)), "is damaged"),
        (program(b"\x8e" + struct.pack("<Q", 2**64 - 1)), "is damaged"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N", "is damaged"),
        (program(), "is damaged: pop from empty list"),
        (program(b"t"), "is damaged"),
        (program(b"(", b"."), "is damaged: pop from empty list"),
        (program(b"h\x07"), "is damaged: Memo value not found at index 7"),
        (program(number(1), number(2), b"a"), "is damaged: 'int' object has no attribute"),
        (program(number(1), number(2), number(3), b"s"), "sets the item <int> of <int>"),
        (program(b"}", b"(", number(1), b"u"), "is damaged"),
        (program(b"}", b")", number(1), b"s"), "sets the item <tuple> of <dict>"),
        (program(b"]", number(0), number(1), b"s"), "sets the item <int> of <list>"),
        (program(name_of("_codecs", "encode"), text("x"), b"R"), "calls <_Constructor> with x"),
        (program(number(1), number(2), STACK_GLOBAL), "STACK_GLOBAL requires str"),
        (program(call("collections", "OrderedDict", number(1))), "makes a mapping of <int>"),
        (program(call("collections", "OrderedDict", tuple_of(number(1)))), "mapping of <tuple>"),
        (program(b"]", b"q\x00", b"h\x00", b"a"), "contains itself"),
        (program(b"N", b"\x85" * 100_000), "nested too deeply"),
        (program(b"]" * 100_000, b"a" * 99_999), "nested too deeply"),
    ],
    ids=case_name,
)
def test_damaged_files_are_refused(read, data, message):
    with pytest.raises(CheckpointError, match=message):
        read(data)


DEEP = put(b"N", b"\x85" * 400_000)


@pytest.mark.parametrize(
    "data",
    [
        program(b"}", DEEP, b"N", b"s"),
        program(b"}(", DEEP, b"N", b"u"),
        program(call("dill._dill", "_get_attr", call(*IMPORT, text("numpy")), DEEP)),
        program(call("dill._dill", "_load_type", DEEP)),
        program(call(*IMPORT, DEEP)),
    ],
    ids=["item", "items", "attribute", "type", "module"],
)
def test_deeply_nested_keys_are_refused_before_they_are_hashed(read, data):
    """Python's own hash of such a key overflows the C stack."""
    with pytest.raises(CheckpointError):
        read(data)


def doubling():
    """Instructions for a list of 2^50 leaves, kept as entry 50; each holds the last twice."""
    levels = [b"]q\x00"]
    for entry in range(50):
        get = bytes((ord("h"), entry))
        levels += [b"](", get, get, b"e", bytes((ord("q"), entry + 1))]
    return put(*levels)


HUGE = b"h\x32"  # entry 50


@pytest.mark.parametrize(
    "use",
    [
        call("numpy", "dtype", HUGE),
        call("_codecs", "encode", text("x"), HUGE),
        call("_codecs", "encode", HUGE, text("latin1")),
        put(call(*IMPORT, HUGE), b")R"),
        call("dill._dill", "_get_attr", HUGE, text("x")),
        call("dill._dill", "_get_attr", call(*IMPORT, text("numpy")), HUGE),
        call("dill._dill", "_load_type", HUGE),
        call("dill._dill", "_create_namedtuple", HUGE, tuple_of(), text("m")),
        call("dill._dill", "_create_namedtuple", text("A"), tuple_of(HUGE), text("m")),
        call("collections", "OrderedDict", HUGE),
        put(b"}", tuple_of(HUGE), b"Ns"),
        put(HUGE, b")R"),
        put(name_of("_codecs", "encode"), HUGE, b"R"),
        put(HUGE, b"Nb"),
        array([1], data=HUGE),
    ],
)
def test_messages_do_not_print_the_values_of_a_file(read, use):
    """To print one whose size doubles with each level would take all time and memory."""
    with pytest.raises(CheckpointError) as refused:
        read(program(doubling(), use))
    assert len(str(refused.value)) < 500 and "\n" not in str(refused.value)


def test_a_value_that_doubles_with_each_level_is_read_quickly(read):
    got = read(program(doubling()))
    assert got[0] is got[1]


def test_no_length_or_index_in_a_file_allocates_memory(read):
    huge = [
        program(b"X\xff\xff\xff\x7f"),
        program(b"\x8d" + struct.pack("<Q", 2**40)),
        program(b"\x8e" + struct.pack("<Q", 2**40)),
        b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N",
        program(b"Nr\xff\xff\xff\xff", array([2**40])),
    ]
    tracemalloc.start()
    try:
        for data in huge:
            with pytest.raises(CheckpointError):
                read(data)
        assert read(program(b"Nr\xff\xff\xff\xff")) is None  # an index of 2^32 - 1
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_field_of_a_named_tuple_is_not_called(read):
    """APPEND calls the attribute of that name of whatever is on the stack."""
    fields = tuple_of(text("append"), text("extend"))
    kind = call("dill._dill", "_create_namedtuple", text("A"), fields, text("m"))
    value = put(kind, tuple_of(name_of("_codecs", "encode"), name_of("_codecs", "encode")), b"\x81")
    for instructions in (put(b"N", b"a"), put(b"(N", b"e")):
        with pytest.raises(CheckpointError, match="is damaged"):
            read(program(value, instructions))


def test_every_truncation_of_a_checkpoint_is_refused(read):
    state = {"step": 3, "online": {"w": ARRAYS["matrix"]}, "rng": ARRAYS["0-d"]}
    data = pickle.dumps(state, 2)
    assert len(data) > 300
    for end in range(len(data)):
        with pytest.raises(CheckpointError):
            read(data[:end])


def test_every_changed_byte_is_read_or_refused_but_never_run(read):
    data = pickle.dumps({"step": 3, "online": {"w": ARRAYS["matrix"]}}, 2)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(3000):
        damaged = bytearray(data)
        damaged[random.integers(len(data))] = random.integers(256)
        try:
            read(bytes(damaged))
        except CheckpointError:
            refused += 1
    assert refused > 300


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none.pkl cannot be read \(No such file"):
        pickles.load(tmp_path / "none.pkl")
    with pytest.raises(CheckpointError, match="cannot be read"):
        pickles.load(tmp_path)


def test_python_reads_the_same(read):
    """A plain pickle is read as Python's own unpickler reads it."""
    value = {"a": [1, (2.5, None)], "b": {"c": ARRAYS["matrix"]}}
    for protocol in (2, 3, 4):
        data = pickle.dumps(value, protocol)
        want = pickle.load(io.BytesIO(data))
        got = read(data)
        assert got["a"] == want["a"]
        np.testing.assert_array_equal(got["b"]["c"], want["b"]["c"], strict=True)


@pytest.mark.parametrize(
    ("made", "again"),
    [
        (put(name_of("_codecs", "encode"), tuple_of(text("x" * 40_000), text("latin1"))), b"R"),
        (
            put(
                name_of("collections", "OrderedDict"),
                tuple_of(put(b"}(", *(put(number(i), b"N") for i in range(5_000)), b"u")),
            ),
            b"R",
        ),
        (
            put(
                name_of("dill._dill", "_create_namedtuple"),
                tuple_of(text("N"), put(b"]", text("a"), b"a"), text("m")),
            ),
            b"R",
        ),
    ],
    ids=["bytes", "mappings", "named tuples"],
)
def test_calls_that_multiply_data_are_refused(read, made, again):
    """A few bytes of the file make something new of what was read before."""
    function = made[: made.index(b"\n", made.index(b"\n") + 1) + 1]
    arguments = made[len(function) :]
    stored = put(b"](", function, b"q\x00", arguments, b"q\x01", again)
    calls = put(b"h\x00h\x01", again) * 2_000
    with pytest.raises(CheckpointError, match="makes far more data than its size explains"):
        read(program(stored, calls, b"e"))


def test_names_cannot_control_the_terminal(read):
    with pytest.raises(CheckpointError) as refused:
        read(program(text("os\x1b[2J"), text("system"), STACK_GLOBAL))
    assert "\x1b" not in str(refused.value) and "os\\x1b[2J.system" in str(refused.value)
