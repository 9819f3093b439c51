"""How many devices a CPU is divided into."""

import pytest

from byol_jax import backend
from byol_jax.backend import cpu_devices


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
    assert not backend.use_cpu_devices(3)  # tests/conftest.py sets XLA_FLAGS


def test_it_is_too_late_once_jax_has_started(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    cpu_devices.jax.devices()
    assert not backend.use_cpu_devices(3)
