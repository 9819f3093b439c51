"""How oneDNN is compiled, loaded and chosen, and what is said where it cannot be."""

import importlib.metadata
import os
import subprocess

import jax
import pytest

from byol_jax import backend
from byol_jax.backend import onednn
from byol_jax.errors import ConfigError


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Forgets what was loaded, and keeps what is compiled in an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *_, **__: None)  # twice is an error
    onednn._register.cache_clear()
    yield tmp_path / "byol_jax"
    onednn._register.cache_clear()


def needs_oneDNN():  # noqa: N802 (its name)
    try:
        onednn._find_packages()
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the packages of byol_jax[cpu]")


def test_xla_is_jaxs_own():
    assert backend.choose_convolution(backend.XLA) == (jax.lax.conv_general_dilated, "XLA")


def test_elsewhere_than_on_a_cpu_it_is_xla(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert backend.choose_convolution(backend.ONEDNN) == (jax.lax.conv_general_dilated, "XLA")


def test_equal_choices_are_equal():
    assert backend.choose_convolution(backend.AUTO) == backend.choose_convolution(backend.AUTO)


def test_it_is_compiled_once(fresh, monkeypatch):
    needs_oneDNN()
    assert onednn._register() == ""
    (compiled,) = fresh.iterdir()
    onednn._register.cache_clear()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert onednn._register() == "" and list(fresh.iterdir()) == [compiled]


@pytest.mark.parametrize(
    ("cores", "devices", "limit", "want"),
    [(8, 2, "", 4), (8, 3, "", 2), (2, 4, "", 1), (8, 1, "3", 3), (2, 1, "8", 2), (4, 2, "x", 2)],
)
def test_the_devices_share_the_cores(monkeypatch, cores, devices, limit, want):
    monkeypatch.setattr(onednn, "cores", lambda: cores)
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert onednn._threads(devices) == want


def missing(_):
    raise importlib.metadata.PackageNotFoundError


def test_without_the_packages_the_extra_is_named(fresh, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", missing)
    function, description = backend.choose_convolution(backend.AUTO)
    assert function is jax.lax.conv_general_dilated
    assert description == "XLA (for oneDNN: pip install 'byol_jax[cpu]')"
    with pytest.raises(ConfigError, match=r"oneDNN cannot .*: pip install 'byol_jax\[cpu\]'\.$"):
        backend.choose_convolution(backend.ONEDNN)


def test_without_a_compiler_it_says_so(fresh, monkeypatch):
    needs_oneDNN()
    monkeypatch.setenv("PATH", str(fresh))
    assert onednn._register() == "no C++ compiler (c++, g++, clang++)"
    assert not fresh.exists()


def test_a_compiler_that_fails_leaves_nothing(fresh, monkeypatch, tmp_path):
    needs_oneDNN()
    (tmp_path / "c++").write_text("#!/bin/sh\necho 'error: no space' >&2\nexit 1\n")
    (tmp_path / "c++").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert onednn._register() == f"{tmp_path}/c++ failed (error: no space)"
    assert list(fresh.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_reason(fresh):
    needs_oneDNN()
    fresh.touch()  # a file
    assert "byol_jax" in onednn._register()


def test_a_damaged_package_is_a_reason(fresh, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda _: [])
    assert "install it again" in onednn._register()
