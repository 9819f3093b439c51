"""Hostile files: nothing in them is executed, nothing outside their folder is touched, and they are
refused by a one-line error, quickly and without much memory.

Pickles are tested in tests/export/test_pickles.py.
"""

import ast
import json
import pickle
import re
import shutil
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from encoders import random_encoder, random_trained

import byol_jax
from byol_jax.errors import UserError
from byol_jax.export.convert import torchvision
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import run as run_lib

ROOT = Path(__file__).parents[2]
IMAGES = np.zeros((1, 16, 16, 1), np.uint8)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """An export of a small encoder."""
    directory = tmp_path_factory.mktemp("export")
    small = random_encoder(
        "resnet8", image_size=16, stem="strided", width_multiplier=0.25, channels=1
    )
    encoder_lib.save(small, directory)
    return directory


@pytest.fixture
def export(original, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(original, tmp_path / "export"))


@pytest.fixture
def run(tmp_path):
    """A run's folder with an empty checkpoint; its config is refused before that is read."""
    directory = tmp_path / "run"
    directory.mkdir()
    run_lib.prepare_workdir(directory, random_trained(0).run)
    (directory / "checkpoints" / "1").mkdir(parents=True)
    return directory


def change(directory, key, value):
    """Writes one value of config.json, at a dotted key."""
    path = directory / "config.json"
    record = json.loads(path.read_text())
    *parents, leaf = key.split(".")
    node = record
    for parent in parents:
        node = node[parent]
    node[leaf] = value
    path.write_text(json.dumps(record))


def error_of(directory):
    """The one-line error of `load`, which takes little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as caught:
            byol_jax.load(directory)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**27
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def calls():
    """Every call in the library and the entry points: file, name as written, keywords."""
    for path in sorted([*(ROOT / "byol_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                yield path.relative_to(ROOT), ast.unparse(node.func), keywords


def test_no_call_executes_code_in_a_file():
    found = {}
    for path, name, keywords in calls():
        assert name not in ("eval", "exec", "compile", "yaml.load", "numpy.load"), path
        assert name.partition(".")[0] not in ("dill", "joblib", "shelve", "marshal"), path
        assert name not in ("pickle.load", "pickle.loads", "pickle.Unpickler"), path
        assert name not in ("shutil.unpack_archive", "zipfile.ZipFile", "tarfile.open"), path
        if name == "np.load":
            assert keywords["allow_pickle"] == "False"
        if name == "torch.load":
            assert keywords["weights_only"] == "True"
        if name in ("torch.load", "pickles.load"):
            found[name] = path.as_posix()
    assert found == {
        "torch.load": "byol_jax/export/convert/torchvision.py",
        "pickles.load": "byol_jax/export/convert/reference_checkpoint.py",
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoder", None, "garbles"),
        ("encoder", [], "garbles"),
        ("encoder.name", "../../etc/passwd", "encoder.name='../../etc/passwd' is not one of"),
        ("encoder.name", "antigravity:fly", "name='antigravity:fly' .* is not imported"),
        ("encoder.name", "os:system", "name='os:system' is no subclass of flax.linen.Module"),
        ("encoder.name", 7, "encoder.name=7 is of another type"),
        ("encoder.unknown", 7, "has no config.encoder.unknown"),
        ("encoder.width_multiplier", 1e9, "does not fit its config.json"),
        ("encoder.width_multiplier", 0, "width_multiplier=0 leaves no channel"),
        ("encoder.width_multiplier", float("nan"), "width_multiplier=nan must be"),
        ("encoder.width_multiplier", float("inf"), "width_multiplier=inf must be"),
        ("encoder.stem", None, "stem=None is not one of"),
        ("encoder.stem_channels", -1, "stem_channels=-1 must be"),
        ("encoder.stem_channels", 10**11, "does not fit its config.json"),
        ("encoder.stage_channels", [1, 2], r"must be 3 whole numbers"),
        ("encoder.stage_channels", ["a", 2, 3], "must be 3 whole numbers"),
        ("dtype", "object", "dtype='object' is not one of"),
        ("image_size", 0, "image_size=0 must be"),
        ("image_size", 10**30, "image_size=1|garbles"),
        ("image_size", "16", "garbles"),
        ("channels", 10**9, "channels=1000000000 must be at least 1 and at most 1024"),
        ("mean", [], "'mean' or 'std' is empty"),
        ("mean", "x", "config.views.mean"),
        ("std", [0.0], "config.views.std"),
        ("std", None, "garbles"),
        ("training", "x", "'training' lacks 'method'"),
        ("training", {"method": 1, "step": 2, "data": 3}, "'data' of 'training' is not"),
        (
            "training",
            {"method": 1, "step": 2, "config": {"crop": {}}},
            "setting: 'test_fraction'",
        ),
        ("training.config", {"crop": {"test_fraction": 1e9}}, "test_fraction=1000000000.0 must"),
    ],
)
def test_a_hostile_config_of_an_export_is_refused(export, key, value, message):
    change(export, key, value)
    error = error_of(export)
    assert str(export) in error and re.search(message, error), error
    assert "antigravity" not in sys.modules  # of the standard library: it opens a browser


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe{",
        b"[" * 100_000,
        b'{"format": ' * 50_000,
        b'{"format": ' + b"9" * 5_000 + b"}",
        b'"format"',
    ],
    ids=["empty", "not UTF-8", "deep list", "deep object", "long number", "text"],
)
def test_a_config_that_is_no_object_is_refused(export, content):
    (export / "config.json").write_bytes(content)
    assert "config.json cannot be read" in error_of(export)
    shutil.rmtree(export)
    export.mkdir()
    (export / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="holds something else than an earlier export"):
        encoder_lib.save(random_encoder("resnet8", image_size=16), export)


def tensor(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({}, None),
        ({}, 2**60),
        ({}, 100_000_000),
        ({"params/conv1/kernel": tensor([10**12], 0, 4 * 10**12)}, None),
        ({"params/conv1/kernel": tensor([0, 10**12], 0, 0)}, None),
        ({"params/conv1/kernel": tensor([2**62, 4], 0, 0)}, None),
        ({"params": tensor([1], 0, 4), "params/x": tensor([1], 4, 8)}, None),
        ({"/".join("a" * 50_000): tensor([2], 0, 8)}, None),
        ({"": tensor([2], 0, 8)}, None),
        ({"../../outside": tensor([2], 0, 8)}, None),
        ({"x": tensor([8], 0, 8, "F8_E4M3")}, None),
        ({"x": tensor([4], 0, 8, "BF16")}, None),
        ([], None),
    ],
    ids=[
        *("nothing", "endless header", "long header", "huge shape", "huge empty shape"),
        *("overflow", "leaf and branch", "deep name", "no name", "name is a path", "8 bits"),
        *("bfloat16", "list"),
    ],
)
def test_hostile_weights_are_refused(export, header, length):
    text = json.dumps(header).encode()
    size = struct.pack("<Q", len(text) if length is None else length)
    (export / "model.safetensors").write_bytes(size + text + bytes(8))
    assert "model.safetensors" in error_of(export)
    assert sorted(path.name for path in export.parent.iterdir()) == ["export"]
    with pytest.raises(UserError):
        torchvision.from_state_dict(torchvision.read(export / "model.safetensors"))


class Writes:
    """Makes a file if a pickle of it is executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "was here"))


@pytest.mark.parametrize("kind", ["pickle", "archive", "climbing archive"])
def test_code_in_weights_is_not_executed(tmp_path, kind):
    pytest.importorskip("torch")
    path, trace = tmp_path / "weights" / "model.pth", tmp_path / "trace"
    path.parent.mkdir()
    code = pickle.dumps({"conv1.weight": Writes(trace)}, protocol=2)
    if kind == "pickle":
        path.write_bytes(code)
    else:
        inside = "model" if kind == "archive" else "../model"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{inside}/data.pkl", code)
            archive.writestr(f"{inside}/version", "3\n")
            archive.writestr(f"{inside}/byteorder", "little")
    with pytest.raises(UserError, match=r"cannot be read safely by torch\.load"):
        torchvision.read(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights"]
    assert [path.name for path in path.parent.iterdir()] == ["model.pth"]


def test_an_export_through_links_keeps_their_targets(export, tmp_path):
    """The cache of the Hugging Face Hub has such links: they are followed to read, and replaced."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.move(export / name, outside / name)
        (export / name).symlink_to(outside / name)
    before = {path.name: path.read_bytes() for path in outside.iterdir()}
    opened = byol_jax.load(export)
    assert opened.embed(IMAGES).shape == (1, 16)
    opened.variables["params"]["conv1"]["kernel"] *= 2
    encoder_lib.save(opened, export)
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == before
    assert not (export / "model.safetensors").is_symlink()
    arrays = safetensors.numpy.load_file(export / "model.safetensors")
    kernel = arrays["params/conv1/kernel"]
    np.testing.assert_array_equal(kernel, opened.variables["params"]["conv1"]["kernel"])


def test_a_device_is_not_opened(export):
    (export / "config.json").unlink()
    (export / "config.json").symlink_to("/dev/zero")
    assert "no config.json" in error_of(export)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config", 3),
        ("config.encoder.name", "../../etc/passwd"),
        ("config.encoder.name", "antigravity:fly"),
        ("config.target.encoder.name", "antigravity:fly"),
        ("config.encoder.width_multiplier", 0),
        ("config.encoder.width_multiplier", float("inf")),
        ("config.encoder.stage_channels", ["a", 2, 3]),
        ("config.heads.projector_layers", 10**6),
        ("config.heads.projector_layers", -1),
        ("config.dtype", "object"),
        ("config.views.mean", None),
        ("config.views.mean", ["a"]),
        ("config.seed", -5),
        ("config.seed", 2**70),
        ("config.steps", 10**400),
        ("config.data.image_size", 0),
        ("config.data.image_size", 10**30),
        ("config.data.channels", -1),
        ("config.accum_steps", 0),
        ("config.crop", None),
        ("data", None),
        ("data", {}),
        ("data.num_classes", "x"),
        ("data.num_classes", -1),
        ("steps_per_epoch", None),
        ("steps_per_epoch", "a"),
        ("steps_per_epoch", 0),
        ("steps_per_epoch", float("inf")),
    ],
)
def test_a_hostile_config_of_a_run_is_refused(run, key, value):
    change(run, key, value)
    with pytest.raises(UserError):
        run_lib.read(run)
    assert str(run) in error_of(run)
    assert "antigravity" not in sys.modules


def test_a_config_of_a_run_that_cannot_be_parsed_is_refused(run):
    for content in (b"\xff\xfe", b"[" * 100_000, b"[]", b"9" * 5_000):
        (run / "config.json").write_bytes(content)
        with pytest.raises(UserError, match=r"config.json"):
            run_lib.read(run)
        error_of(run)
