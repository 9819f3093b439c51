"""How many devices a CPU is divided into."""

import pytest

from byol_jax import backend
from byol_jax.backend import cpu_devices
from byol_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("cores", "batch_size", "want"),
    [
        (1, 128, 1),
        (2, 128, 2),
        (2, 15, 1),  # fewer than 8 rows each
        (2, 17, 1),
        (8, 128, 8),
        (8, 48, 6),
        (8, 100, 5),
        (8, 97, 1),
        (128, 4096, 16),
        (128, 4, 1),
    ],
)
def test_the_largest_number_that_divides_a_batch(monkeypatch, cores, batch_size, want):
    monkeypatch.setattr(cpu_devices, "cores", lambda: cores)
    assert backend.most_cpu_devices(batch_size) == want


def test_a_number_that_the_user_set_is_kept():
    backend.use_cpu_devices(3)  # tests/conftest.py sets XLA_FLAGS
    assert cpu_devices.jax.config.jax_num_cpu_devices == -1


def test_it_is_too_late_once_jax_has_started(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    backend.check_cpu_devices(4)
    backend.use_cpu_devices(3)
    with pytest.raises(ConfigError, match=r"^--cpu_devices=3, but JAX already has 4: leave"):
        backend.check_cpu_devices(3)


@pytest.mark.parametrize(
    ("quota", "want"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("?", 8)]
)
def test_a_container_may_have_fewer_cores(monkeypatch, tmp_path, quota, want):
    monkeypatch.setattr(cpu_devices.os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr(cpu_devices, "QUOTA", tmp_path / "cpu.max")
    assert backend.cores() == 8
    (tmp_path / "cpu.max").write_text(quota)
    assert backend.cores() == want
