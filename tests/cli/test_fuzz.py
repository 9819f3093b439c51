"""Random values, flags and files: each is accepted or ends in a one-line error.

A few examples of each, always the same; for more, raise `max_examples` and drop `derandomize`.
"""

import io
import json
import shutil
import struct
import sys

import pytest
from absl import flags
from encoders import random_encoder, random_trained
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_config

import byol_jax
from byol_jax.cli import app, config_flag
from byol_jax.errors import UserError
from byol_jax.runs import config as config_lib
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import run as run_lib
from byol_jax.runs.resolve import resolve


def examples(count):
    """The same examples in every run."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


def keys(tree, prefix=""):
    """The dotted keys of a nested dictionary, of its inner nodes too."""
    for key, value in tree.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")


CONFIG_KEYS = sorted(keys(config_lib.default().to_dict()))
LEAVES = [key for key in CONFIG_KEYS if not any(k.startswith(key + ".") for k in CONFIG_KEYS)]
# Values that are wrong for some key, and random ones.
NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 10**30, 10**400, 1e308, float("nan"), float("inf"), -0.0, 1e-320]),
    st.integers(),
    st.floats(),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def find(tree, key):
    """The node that holds a dotted key, and the last part of the key."""
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree[parent]
    return tree, leaf


def check(config):
    """A config gives a learner or a one-line error."""
    try:
        resolved, _ = resolve(config)
        run_lib.Run(resolved, {"num_classes": 3}, steps_per_epoch=5).learner()
    except UserError as error:
        assert "\n" not in str(error)


@examples(80)
@given(st.dictionaries(st.sampled_from(LEAVES), VALUES, min_size=1, max_size=3))
def test_any_value_of_a_config(values):
    config = tiny_config()
    for key, value in values.items():
        node, leaf = find(config, key)
        try:
            node[leaf] = tuple(value) if isinstance(value, list) else value
        except (TypeError, ValueError, OverflowError):
            continue  # refused by ConfigDict
    check(config)


WORDS = st.one_of(
    NUMBERS.map(str),
    st.text(st.characters(blacklist_characters="\0"), max_size=8),
    st.sampled_from(["True", "none", "1,2", "()", "[1", "folder:", "tfds:", "{}", "resnet200"]),
)
FLAGS = st.one_of(
    st.tuples(st.sampled_from(CONFIG_KEYS), WORDS).map(lambda pair: "--config.{}={}".format(*pair)),
    st.tuples(
        st.sampled_from(["seed.x", "", "views", "mean[0]", "views.mean[9]", "stesp"]), WORDS
    ).map(lambda pair: "--config.{}={}".format(*pair)),
    WORDS,
    WORDS.map(lambda word: f"--workdir={word}"),
    WORDS.map(lambda word: f"--{word}"),
)


@examples(100)
@given(st.lists(FLAGS, min_size=1, max_size=3))
def test_any_command_line(arguments):
    argv = ["pretrain", "--config=quickstart", "--workdir=W", *arguments]
    values = flags.FlagValues()
    config_flag.define(flag_values=values, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "FLAGS", values)
        patch.setattr(sys, "stderr", io.StringIO())
        try:
            app._parse("", argv)
        except SystemExit as exit_:
            text = sys.stderr.getvalue()
            assert exit_.code == 2 and text.startswith("error: ") and text.count("\n") == 1
            assert "Traceback" not in text
            return
        check(values.config)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run, and the bytes of its config.json."""
    directory = tmp_path_factory.mktemp("run")
    run_lib.prepare_workdir(directory, random_trained(0).run)
    return directory, (directory / "config.json").read_bytes()


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """The folder of an export, and the bytes of its files."""
    directory = tmp_path_factory.mktemp("export") / "export"
    small = random_encoder(
        "resnet8", image_size=16, stem="strided", width_multiplier=0.25, channels=1
    )
    encoder_lib.save(small, directory)
    return directory, {path.name: path.read_bytes() for path in directory.iterdir()}


# Damage to a file: bytes overwritten at a fraction of its length, then truncation.
DAMAGE = st.tuples(
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)), max_size=3),
    st.one_of(st.just(1.0), st.floats(0, 1)),
)


def damaged(content, damage):
    changes, rest = damage
    content = bytearray(content)
    for where, new in changes:
        start = int(where * len(content))
        content[start : start + len(new)] = new
    return bytes(content[: int(rest * len(content))])


def replaced(content, values):
    """A JSON object with other values at these fractions of the list of its keys."""
    record = json.loads(content)
    for where, value in values:
        found = list(keys(record))
        node, leaf = find(record, found[int(where * (len(found) - 1))])
        node[leaf] = value
    return json.dumps(record).encode()


# Values whose type fits some key, so that more than the type is checked.
FITTING = st.sampled_from(["x", "", 0, -1, 1, 10**30, 0.0, float("nan"), 1e308, True, [], ["x"]])
RECORDS = st.lists(st.tuples(st.floats(0, 1), st.one_of(FITTING, VALUES)), min_size=1, max_size=2)


@examples(150)
@given(st.one_of(DAMAGE, RECORDS))
def test_any_config_of_a_run(run, change):
    directory, content = run
    make = replaced if isinstance(change, list) else damaged
    (directory / "config.json").write_bytes(make(content, change))
    try:
        run_lib.read(directory).learner()
    except UserError as error:
        assert str(directory) in str(error) or "warmup_epochs" in str(error)


def load_damaged(export, name, content):
    """Loads the export with other bytes in one of its files."""
    directory, files = export
    shutil.rmtree(directory)
    directory.mkdir()
    for other, before in files.items():
        (directory / other).write_bytes(content if other == name else before)
    try:
        byol_jax.load(directory)
    except UserError as error:
        assert str(directory) in str(error)


@examples(30)
@given(st.one_of(DAMAGE, RECORDS))
def test_any_config_of_an_export(export, change):
    make = replaced if isinstance(change, list) else damaged
    load_damaged(export, "config.json", make(export[1]["config.json"], change))


@examples(15)
@given(DAMAGE)
def test_any_weights_of_an_export(export, damage):
    content = export[1]["model.safetensors"]
    load_damaged(export, "model.safetensors", damaged(content, damage))
    # The header is a small part of the file, and the only one that is parsed.
    (size,) = struct.unpack("<Q", content[:8])
    header = damaged(content[8 : 8 + size], damage)
    new = struct.pack("<Q", len(header)) + header + content[8 + size :]
    load_damaged(export, "model.safetensors", new)
