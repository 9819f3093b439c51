"""Four virtual CPU devices for every test, and where optional data lies."""

import os
import tempfile
from pathlib import Path

# Before anything imports jax.
os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

# Runs of the same tiny config share their compiled programs, within one call of pytest.
COMPILED = tempfile.TemporaryDirectory(prefix="byol_jax_tests_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import pytest  # noqa: E402

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared():
    """A function from a path below ../shared to that path; skips the test where it is absent."""

    def find(name):
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs {name}, which is not beside this checkout")
        return path

    return find
