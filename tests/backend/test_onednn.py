"""How oneDNN is compiled, loaded and chosen, and the reasons where it cannot be."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from byol_jax import backend
from byol_jax.backend import onednn
from byol_jax.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Forgets what was loaded, and keeps what is compiled in an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *_, **__: None)  # twice is an error
    onednn._load.cache_clear()
    yield tmp_path / "byol_jax"
    onednn._load.cache_clear()


@pytest.fixture
def packages():
    """Skips the test where there are no packages, or it is another machine."""
    reason = onednn._load().reason
    if "pip install" in reason or "Linux" in reason:
        pytest.skip(f"needs the packages of oneDNN: {reason}")


@pytest.fixture
def loaded(packages):
    """Skips the test where oneDNN cannot be loaded."""
    if reason := onednn._load().reason:
        pytest.skip(f"needs oneDNN: {reason}")


def test_xla_is_jaxs_own():
    assert backend.choose_convolution(backend.XLA) == (jax.lax.conv_general_dilated, "xla", 1, "")


def test_elsewhere_than_on_a_cpu_it_is_xla(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert backend.choose_convolution(backend.ONEDNN).function is jax.lax.conv_general_dilated
    backend.check_convolution(backend.ONEDNN)


def test_equal_choices_are_equal(loaded):
    chosen = backend.choose_convolution(backend.AUTO)
    assert chosen == backend.choose_convolution(backend.ONEDNN) and chosen.name == "onednn"
    backend.check_convolution(backend.ONEDNN)


def test_it_is_compiled_once_and_again_if_damaged(loaded, fresh, monkeypatch):
    assert onednn._load().reason == ""
    (compiled,) = fresh.iterdir()
    assert compiled.stat().st_mode & 0o777 == 0o755
    onednn._load.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
        assert onednn._load().reason == ""
    onednn._load.cache_clear()
    damaged = fresh / "damaged"
    damaged.write_bytes(compiled.read_bytes()[:1000])
    damaged.replace(compiled)  # another file: the loaded one is in use
    assert onednn._load().reason == "" and list(fresh.iterdir()) == [compiled]


WITHOUT_AVX512 = """
import jax, jax.numpy as jnp, numpy as np
from byol_jax import backend
from byol_jax.backend import convolution as c, onednn
from byol_jax.errors import ConfigError

assert onednn._load().dtypes == ("float32",), onednn._load()
ours = backend.choose_convolution("auto").function
bfloat16 = backend.choose_convolution("auto", dtype="bfloat16")
assert bfloat16.name == "xla" and "it has float32 only" in bfloat16.note
try:
    backend.check_convolution("onednn", "bfloat16")
    raise AssertionError
except ConfigError as error:
    assert "it has float32 only" in str(error)
for dtype, by_onednn in (("float32", True), ("bfloat16", False)):
    x, k = jnp.ones((1, 4, 4, 2), dtype), jnp.ones((3, 3, 2, 2), dtype)
    f = jax.jit(lambda x, k: ours(x, k, (1, 1), "SAME", None, None, c.LAYOUT))
    assert (c.TARGET in f.lower(x, k).as_text()) == by_onednn
    f(x, k).block_until_ready()

x = np.random.default_rng(0).standard_normal((3, 8, 8, 4), np.float32)
slope = lambda convolve: jax.grad(
    lambda k: (convolve(x, k, (2, 2), "SAME", None, None, c.LAYOUT) ** 2).sum()
)(jnp.ones((1, 1, 4, 8)))
np.testing.assert_allclose(slope(ours), slope(jax.lax.conv_general_dilated), rtol=1e-4)
"""


def test_without_avx512_xla_has_bfloat16_and_the_gradient_of_a_narrow_shortcut_is_right(loaded):
    """The kernel of 1 x 1 with a stride, of which oneDNN's own gradient is wrong."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_AVX512], env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(
    ("cores", "devices", "limit", "want"),
    [(8, 2, "", 4), (8, 3, "", 2), (2, 4, "", 1), (8, 1, "3", 3), (2, 1, "8", 2), (8, 2, "4", 2)],
)
def test_the_devices_share_the_cores(monkeypatch, cores, devices, limit, want):
    monkeypatch.setattr(onednn, "cores", lambda: cores)
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert onednn._threads(devices) == want


def test_without_the_packages_the_extra_is_named(fresh, monkeypatch):
    def missing(_):
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "files", missing)
    chosen = backend.choose_convolution(backend.AUTO)
    assert chosen.function is jax.lax.conv_general_dilated and chosen.name == "xla"
    assert chosen.note == "pip install 'byol_jax[cpu]'"
    with pytest.raises(ConfigError, match=r"cannot be used \(pip install 'byol_jax\[cpu\]'\);"):
        backend.check_convolution(backend.ONEDNN)
    backend.check_convolution(backend.AUTO)
    # What a run was trained with must not keep it from being opened elsewhere.
    assert backend.choose_convolution(backend.ONEDNN) == chosen


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "aarch64")])
def test_other_machines_are_not_told_to_install_it(fresh, monkeypatch, system, machine):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(onednn.platform, "machine", lambda: machine)
    assert onednn._load().reason == "it is available on Linux with x86-64 only"


def test_without_a_compiler_it_says_so(packages, fresh, monkeypatch):
    monkeypatch.setenv("PATH", str(fresh))
    monkeypatch.delenv("CXX", raising=False)
    assert onednn._load().reason == "no C++ compiler (c++, g++, clang++)"
    assert not fresh.exists()


def test_a_compiler_that_fails_leaves_nothing(packages, fresh, monkeypatch, tmp_path):
    (tmp_path / "mine").write_text("#!/bin/sh\necho 'error: no space' >&2\nexit 1\n")
    (tmp_path / "mine").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "mine"))
    assert onednn._load().reason == f"{tmp_path}/mine failed (error: no space)"
    assert list(fresh.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_reason(loaded, fresh):
    fresh.touch()  # a file
    reason = onednn._load().reason
    assert reason.startswith(f"{fresh} cannot be written (") and "XDG_CACHE_HOME" in reason


def test_a_damaged_package_is_a_reason(packages, fresh, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda _: [])
    assert "install it again" in onednn._load().reason
