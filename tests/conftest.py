"""Settings of all tests: four virtual CPU devices, compilation, and the paths of data."""

import contextlib
import gc
import os
import tempfile
from pathlib import Path

from compilation import XLA_FLAGS

# Before anything imports jax.
os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + f" {XLA_FLAGS} --xla_force_host_platform_device_count=4"
)

# Within one call of pytest, runs of the same tiny config share their compiled programs. Under
# pytest-xdist the first process makes the folder, and its workers inherit the variable.
if "PYTEST_XDIST_WORKER" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="byol_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest

from byol_jax.train import plots

# All other tests compile without XLA's optimisations: compilation takes most of their time, and
# this halves it. In these, the authors' numbers are compared with what users run, and `scale` reads
# the optimised program.
OPTIMISED = {"test_reference", "test_scale"}
# These start first, so that no core runs one of them alone at the end.
LONGEST = (
    "test_processes",
    "test_commands",
    "test_loop",
    "test_faults",
    "test_resume",
    "test_byol",
    "test_variants",
)
# Tracing makes millions of objects, few of which are garbage: it is looked for less often.
gc.set_threshold(200_000, 20, 20)

REFERENCE = Path(__file__).parent / "data" / "reference"
SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_modifyitems(items):
    """Puts the longest files first and keeps the order within each file."""
    rank = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.module.__name__, len(rank)))


@pytest.fixture(scope="module", autouse=True)
def compilation(request):
    """Sets how a test file and its subprocesses compile."""
    if request.module.__name__ in OPTIMISED:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def pictures():
    """Leaves out the pictures of runs in this process: they take a second of each.

    Returns a context in which they are drawn.
    """
    drawing = {"curves": plots.curves, "first_views": plots.first_views}

    @contextlib.contextmanager
    def drawn():
        with pytest.MonkeyPatch.context() as patch:
            for name, function in drawing.items():
                patch.setattr(plots, name, function)
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "curves", lambda path, metrics: None)
        patch.setattr(plots, "first_views", lambda path, kind, learner, state, batch: None)
        yield drawn


@pytest.fixture(scope="session")
def reference_data():
    """The folder of numbers made by the authors' code; see the README in it."""
    return REFERENCE


@pytest.fixture(scope="session")
def shared():
    """A function from a name to its path in ../shared: CIFAR-10, photographs and other data sets.

    They are not part of this repository: the test is skipped if the path does not exist.
    """

    def find(name):
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs ../shared/{name}, which is not part of this repository")
        return path

    return find
