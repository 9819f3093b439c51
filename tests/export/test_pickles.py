"""Checkpoints are read as they were written, and nothing in a pickle is ever run."""

import collections
import io
import pickle
import struct
import sys
import types

import numpy as np
import pytest

from byol_jax.errors import UserError
from byol_jax.export.convert import pickles


@pytest.fixture
def read(tmp_path):
    """A function from the bytes of a pickle to what is read of them."""

    def read(data):
        path = tmp_path / "checkpoint.pkl"
        path.write_bytes(data)
        return pickles.load(path)

    return read


def words(value):
    """The name of a case: its words, not its bytes."""
    return value if isinstance(value, str) else ""


# What is accepted.


def dumped(value, protocol=2):
    """A pickle by Python's own pickler, of values of fake modules too."""
    return pickle.dumps(value, protocol)


@pytest.fixture
def module(monkeypatch):
    """A function that makes an empty module importable while the test runs."""

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
def test_arrays_come_back(read, name, protocol):
    got = read(dumped({"a": ARRAYS[name]}, protocol))["a"]
    assert got.dtype == ARRAYS[name].dtype
    np.testing.assert_array_equal(got, ARRAYS[name], strict=True)


@pytest.mark.parametrize("package", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_arrays_of_numpy_1_and_2_come_back(read, package):
    data = dumped([ARRAYS["matrix"], ARRAYS["scalar"]])
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
def test_plain_values_come_back(read, name, protocol):
    assert read(dumped(PLAIN[name], protocol)) == PLAIN[name]


def test_what_stands_twice_is_read_once(read):
    shared = {"w": np.ones(3)}
    got = read(dumped({"online": shared, "target": shared}))
    assert got["online"] is got["target"]


def test_ordered_dicts_come_back_as_dicts(read):
    value = collections.OrderedDict(b=1, a=collections.OrderedDict())
    got = read(dumped(value))
    assert type(got) is dict and list(got.items()) == [("b", 1), ("a", {})]


@pytest.mark.parametrize("name", ["FlatMapping", "FlatMap", "frozendict", "to_immutable_dict"])
def test_mappings_of_haiku_come_back_as_dicts(read, module, name):
    function = function_of(module("haiku._src.data_structures"), name)
    assert read(dumped(Reduced(function, {"linear": {"b": 1}}))) == {"linear": {"b": 1}}


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("jax._src.array", "_reconstruct_array"),
        ("jax._src.device_array", "reconstruct_device_array"),
        ("dill._dill", "_create_array"),
    ],
)
def test_wrapped_arrays_come_back(read, module, package, name):
    function = function_of(module(package), name)
    made_by, arguments, state = ARRAYS["matrix"].__reduce__()
    wrapped = Reduced(function, made_by, arguments, state, {"weak_type": False})
    np.testing.assert_array_equal(read(dumped(wrapped)), ARRAYS["matrix"], strict=True)


def test_named_tuples_of_dill_come_back(read):
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


def test_named_tuples_by_reference_come_back(read, module):
    names = ["online_params", "target_params", "online_state", "target_state", "opt_state"]
    kind = collections.namedtuple("_ByolExperimentState", names)
    kind.__module__ = "byol.byol_experiment"
    module("byol.byol_experiment")._ByolExperimentState = kind
    got = read(dumped(kind(*range(5))))
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


def test_the_pickles_of_this_file_mean_what_they_say(read):
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
    "module os": call("dill._dill", "_import_module", text("os")),
    "module builtins": call("dill._dill", "_import_module", text("builtins")),
    "dill._dill._create_function": call("dill._dill", "_create_function", b"N"),
    "type CodeType": call("dill._dill", "_load_type", text("CodeType")),
    "_codecs.lookup": call(
        "dill._dill",
        "_get_attr",
        call("dill._dill", "_import_module", text("_codecs")),
        text("lookup"),
    ),
    "jax._src.array.sys": name_of("jax._src.array", "sys"),
    "collections.Counter": call("collections", "Counter"),
    "functools.partial": call("functools", "partial", name_of("_codecs", "encode")),
    "operator.attrgetter": call("operator", "attrgetter", text("system")),
    "_codecs.decode": call("_codecs", "decode", latin1("x"), text("latin1")),
}


@pytest.fixture(autouse=True)
def no_sentinel(tmp_path, monkeypatch):
    """Fails the test where a command or a call of a pickle made its file."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "SENTINEL").exists()


@pytest.mark.parametrize("name", NAMED)
def test_what_a_checkpoint_does_not_need_is_refused_by_name(read, name):
    with pytest.raises(UserError, match=f"asks for {name}, which a checkpoint does not need"):
        read(program(NAMED[name]))


def test_the_sentinel_would_be_made(read, tmp_path):
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
    with pytest.raises(UserError, match=f"asks for {module}.{name}, which"):
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
    ids=words,
)
def test_other_instructions_are_refused_by_name(read, name, instruction):
    with pytest.raises(
        UserError, match=f"uses the instruction {name}, which a checkpoint does not"
    ):
        read(program(instruction))


def test_obj_is_refused_by_what_it_names(read):
    with pytest.raises(UserError, match=r"asks for os.system"):
        read(program(b"(", name_of("os", "system"), SYSTEM, b"o"))
    with pytest.raises(UserError, match="uses the instruction OBJ"):
        read(program(b"(", name_of("_codecs", "encode"), SYSTEM, b"o"))


@pytest.mark.parametrize(
    ("what", "callee"),
    [
        ("str", text("os.system")),
        ("dict", b"}"),
        ("NoneType", b"N"),
        ("_Array", EMPTY_ARRAY),
        ("numpy.ndarray", name_of("numpy", "ndarray")),
    ],
    ids=words,
)
def test_what_is_no_constructor_is_not_called(read, what, callee):
    with pytest.raises(UserError, match=f"calls {what}, which a checkpoint does not need"):
        read(program(callee, tuple_of(SYSTEM), b"R"))


STATE = put(b"}", text("__reduce__"), name_of("_codecs", "encode"), b"s")


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("constructor", name_of("_codecs", "encode")),
        ("constructor", name_of("numpy", "ndarray")),
        ("class", call("dill._dill", "_create_namedtuple", text("A"), tuple_of(), text("m"))),
        ("dict", call("collections", "OrderedDict")),
        ("list", b"]"),
        ("str", text("x")),
    ],
    ids=words,
)
def test_only_arrays_and_dtypes_have_a_state(read, what, value):
    for state in (STATE, tuple_of(b"N", STATE)):  # of __dict__, and of slots
        with pytest.raises(UserError, match=f"sets the state of a {what}, which has none"):
            read(program(value, state, b"b"))
    assert not hasattr(pickles._encode, "__wrapped__") and "__reduce__" not in vars(pickles._encode)


@pytest.mark.parametrize("code", ["O", "|O", "O8", "V8", "S8", "U2", "M8[s]", "f4,f4", "object"])
def test_arrays_of_anything_but_numbers_are_refused(read, code):
    with pytest.raises(UserError, match="is no plain number: refused"):
        read(program(array([1], code)))


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (array([10**12]), r"an array \(1000000000000,\) of float32 has 8 bytes"),
        (array([2**47, 2**47, 2]), "of float32 has 8 bytes"),
        (array([2**62]), "shape is none"),
        (array([-1]), "shape is none"),
        (array([1] * 33), "shape is none"),
        (array([3]), r"an array \(3,\) of float32 has 8 bytes"),
        (array([1]), r"an array \(1,\) of float32 has 8 bytes"),
        (array([0, 2**47, 2**47], data=latin1("")), "cannot be"),
        (array([2], data=text("text")), "not of plain numbers"),
        (array([1], data=tuple_of(name_of("_codecs", "encode"))), "not of plain numbers"),
        (put(EMPTY_ARRAY, tuple_of(number(1)), b"b"), "its five parts"),
        (EMPTY_ARRAY, "leaves a array among its values"),
        (dtype("f4"), "leaves a dtype among its values"),
        (dtype("f4", "O"), "a dtype with fields"),
        (name_of("_codecs", "encode"), "leaves a constructor among its values"),
        (call(MULTIARRAY, "scalar", dtype("f4"), latin1("\0" * 3)), "float32 has 3 bytes"),
        (call(MULTIARRAY, "scalar", text("O"), latin1("x")), "not a plain number"),
        (
            call(MULTIARRAY, "_reconstruct", name_of("collections", "OrderedDict"), tuple_of()),
            "something else than numpy.ndarray",
        ),
        (
            call("dill._dill", "_create_array", name_of("_codecs", "encode"), tuple_of(), b"N"),
            "something else than _reconstruct",
        ),
        (
            call("dill._dill", "_get_attr", text("x"), text("__class__")),
            "asks for __class__ of what is no module",
        ),
        (call("dill._dill", "_import_module", text("_codecs")), "leaves a module among"),
        (call("_codecs", "encode", text("x"), text("rot13")), "encodes text as 'rot13'"),
        (call("_codecs", "encode", text("☃"), text("latin1")), "bytes are no bytes"),
        (call("__builtin__", "bytes", number(2**40)), "calls __builtin__.bytes in a way"),
        (call("_codecs", "encode"), "calls _codecs.encode in a way that is not known"),
    ],
    ids=words,
)
def test_arrays_that_do_not_add_up_are_refused(read, pickled, message):
    with pytest.raises(UserError, match=message):
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
def test_named_tuples_of_no_names_are_refused(read, names):
    fields = tuple_of(*map(text, names[1:]))
    with pytest.raises(UserError, match="whose names are no names"):
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
        (program(b"cos\nsys\\x74em\n"), "a name has a backslash"),
        (program(b"X\xff\xff\xff\x7f"), "is damaged"),  # two gigabytes of text, says the length
        (program(b"\x8d" + struct.pack("<Q", 2**62)), "is damaged"),
        (program(b"\x8e" + struct.pack("<Q", 2**62)), "is damaged"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N", "is damaged"),
        (program(), "its stack is empty"),
        (program(b"t"), "its stack has no mark"),
        (program(b"(", b"."), "its stack is empty"),
        (program(b"h\x07"), "it reads entry 7 before"),
        (program(number(1), number(2), b"a"), "fills a list"),
        (program(number(1), number(2), number(3), b"s"), "fills a dict"),
        (program(b"}", b"(", number(1), b"u"), "a key has no value"),
        (program(b"}", b")", number(1), b"s"), "a key of type tuple"),
        (program(name_of("_codecs", "encode"), text("x"), b"R"), "the arguments of a call"),
        (program(number(1), number(2), STACK_GLOBAL), "a name is no text"),
        (program(call("collections", "OrderedDict", number(1))), "a mapping is made"),
        (program(call("collections", "OrderedDict", tuple_of(number(1)))), "are no pairs"),
        (program(b"]", b"q\x00", b"h\x00", b"a"), "something within itself"),
        (program(b"N", b"\x85" * 100_000), "nested too deep"),
        (program(b"]" * 100_000, b"a" * 99_999), "nested too deep"),
    ],
    ids=words,
)
def test_damaged_files_are_refused(read, data, message):
    with pytest.raises(UserError, match=message):
        read(data)


def test_every_truncation_of_a_checkpoint_is_refused(read):
    state = {"step": 3, "online": {"w": ARRAYS["matrix"]}, "rng": ARRAYS["0-d"]}
    data = dumped(state)
    assert len(data) > 300
    for end in range(len(data)):
        with pytest.raises(UserError):
            read(data[:end])


def test_every_changed_byte_is_read_or_refused_but_never_run(read):
    data = dumped({"step": 3, "online": {"w": ARRAYS["matrix"]}})
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(3000):
        damaged = bytearray(data)
        damaged[random.integers(len(data))] = random.integers(256)
        try:
            read(bytes(damaged))
        except UserError:
            refused += 1
    assert refused > 300


def test_what_doubles_with_every_line_is_read_in_a_moment(read):
    lines = [b"]q\x00"]
    for entry in range(50):  # each list holds the one before twice: 2^50 leaves
        lines += [b"]", bytes((ord("("), ord("h"), entry, ord("h"), entry, ord("e")))]
        lines += [bytes((ord("q"), entry + 1))]
    got = read(program(*lines))
    assert got[0] is got[1]


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none.pkl cannot be read \(No such file"):
        pickles.load(tmp_path / "none.pkl")
    with pytest.raises(UserError, match="cannot be read"):
        pickles.load(tmp_path)


def test_python_reads_the_same(read):
    """What the machine here makes of a plain pickle is what Python's own makes of it."""
    value = {"a": [1, (2.5, None)], "b": {"c": ARRAYS["matrix"]}}
    for protocol in (2, 3, 4):
        data = dumped(value, protocol)
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
def test_making_much_of_little_is_stopped(read, made, again):
    """What was read once is made into something new with each of a few bytes."""
    function = made[: made.index(b"\n", made.index(b"\n") + 1) + 1]
    arguments = made[len(function) :]
    stored = put(b"](", function, b"q\x00", arguments, b"q\x01", again)
    calls = put(b"h\x00h\x01", again) * 2_000
    with pytest.raises(UserError, match="asks for far more memory than its size explains"):
        read(program(stored, calls, b"e"))


def test_names_cannot_control_the_terminal(read):
    with pytest.raises(UserError) as refused:
        read(program(text("os\x1b[2J"), text("system"), STACK_GLOBAL))
    assert "\x1b" not in str(refused.value) and "os\\x1b[2J.system" in str(refused.value)
