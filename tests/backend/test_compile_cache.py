"""The cache of compiled programs over several starts, and the count of compilations."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from byol_jax.backend import compile_cache

ROOT = Path(__file__).parents[2]
START = """
import sys, jax, jax.numpy as jnp
from byol_jax.backend import compile_cache
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
update = jax.pmap(
    lambda state, x: state + jax.lax.psum(jnp.sin(x).sum(), "batch"),
    axis_name="batch", in_axes=(None, 0), out_axes=None, donate_argnums=0,
)
with compile_cache.use_cache(sys.argv[1]) as problem, compile_cache.Compilations() as compilations:
    update(jnp.ones(3), jnp.ones((jax.local_device_count(), 2)))
print(hits.count("/jax/compilation_cache/cache_hits"), compilations.count, problem)
"""


def start(folder, **environment):
    """Compiles two programs in a process of its own; returns cache hits, programs, and problem.

    JAX reads most of its settings once, and the tests' own cache must not interfere.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", START, str(folder)],
        env=clean | {"JAX_PLATFORMS": "cpu"} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    hits, count, problem = done.stdout.rstrip("\n").split(" ", 2)
    return int(hits), int(count), problem


def test_the_second_start_compiles_nothing_but_damaged_entries(tmp_path):
    folder = tmp_path / "made" / "cache"
    hits, count, problem = start(folder)
    assert (hits, problem) == (0, "") and count > 0
    entries = {path.name: path.read_bytes() for path in folder.glob("*-cache")}
    assert len(entries) == count
    assert start(folder) == (count, count, "")

    ours = next(name for name in entries if "lambda" in name or "fun" in name)
    (folder / ours).write_bytes(entries[ours][:100])
    assert start(folder) == (count - 1, count, "")
    assert (folder / ours).stat().st_size > 100
    assert start(folder) == (count, count, "")


def test_settings_of_jax_win(tmp_path):
    theirs = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "theirs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    start(tmp_path / "ours", **theirs)
    assert list((tmp_path / "theirs").glob("*-cache"))
    assert not (tmp_path / "ours").exists()


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").touch()
    hits, count, problem = start(tmp_path / "file" / "cache")
    assert hits == 0 and count > 0
    assert problem.startswith("Compiled programs are not kept: ") and "Not a directory" in problem


def test_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compile_cache.default_folder() == tmp_path / "byol_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(compile_cache.default_folder()) == "~/.cache/byol_jax"


def test_the_oldest_entries_go_first(tmp_path):
    for age, name in enumerate("abcdef"):
        path = tmp_path / f"jit_{name}-cache"
        path.write_bytes(bytes(10))
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / "other").write_bytes(bytes(1000))
    compile_cache._make_room(tmp_path, largest=60)
    assert len(list(tmp_path.iterdir())) == 7
    compile_cache._make_room(tmp_path, largest=59)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"jit_a-cache", "jit_b-cache", "other"}


def test_other_warnings_are_shown_as_before(tmp_path):
    (tmp_path / "jit_f-0-cache").touch()
    (tmp_path / "jit_fg-0-cache").touch()
    shown = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        show = warnings.showwarning = lambda message, *args, **kwargs: shown.append(str(message))
        with compile_cache._replace_damaged(tmp_path):
            warnings.warn(
                "Error reading persistent compilation cache entry for 'jit_f': short", stacklevel=1
            )
            warnings.warn("something else", stacklevel=1)
        assert warnings.showwarning is show
    assert shown == ["something else"]
    assert [path.name for path in tmp_path.iterdir()] == ["jit_fg-0-cache"]


def test_compilations_are_counted_while_the_context_is_open():
    f, x = jax.jit(lambda x: x + 1), jnp.ones(3)
    with compile_cache.Compilations() as compilations:
        f(x)
        assert compilations.count == 1
        assert compilations.seconds > 0
        f(x)
        assert compilations.count == 1
    with pytest.raises(ZeroDivisionError), compile_cache.Compilations() as interrupted:
        _ = 1 / 0
    f(jnp.ones(4))
    assert (compilations.count, interrupted.count) == (1, 0)
