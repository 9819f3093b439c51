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
# Under pytest-xdist the first process makes the folder, and its workers inherit the variable.
if "PYTEST_XDIST_WORKER" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="byol_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest

# Tests of what a run does, rather than of its numbers, compile without XLA's optimisations: in half
# the time, and compiling is what takes most of it.
QUICKLY_COMPILED = {
    *("test_commands", "test_features", "test_faults", "test_processes", "test_nonfinite"),
    *("test_resume", "test_init_from", "test_loop"),
}
# These begin first, so that no core is left alone with one of them at the end.
LONGEST = (
    "test_processes",
    "test_commands",
    "test_loop",
    "test_faults",
    "test_resume",
    "test_byol",
)
SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_modifyitems(items):
    """Puts the longest files first; the order within a file stays."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.module.__name__, len(rank)))


@pytest.fixture(scope="module", autouse=True)
def compilation(request):
    """Sets how the programs of a test file are compiled, its subprocesses' too."""
    if request.module.__name__ not in QUICKLY_COMPILED:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def shared():
    """A function from a path below ../shared to that path; skips the test where it is absent."""

    def find(name):
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs {name}, which is not beside this checkout")
        return path

    return find
