"""Who may import whom: the imports are read from the source, nothing is run.

The rules keep each concern in one place, so that the algorithm can be read, tested and reused
without its surroundings. When one fails, move the code to where its import is allowed.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = sorted((ROOT / "byol_jax").rglob("*.py"))
SOURCES = LIBRARY + sorted((ROOT / "experiments").rglob("*.py"))

# The algorithm knows arrays and Flax modules. Of the library it sees itself and the errors.
ALGORITHM = ("byol", "contrastive", "networks", "views", "optim")
ALGORITHM_MAY_IMPORT = {f"byol_jax.{name}" for name in (*ALGORITHM, "errors")}
SURROUNDINGS = (
    "absl",
    "io",
    "ml_collections",
    "orbax",
    "os",
    "pathlib",
    "shutil",
    "tempfile",
    "tensorflow",
    "tensorflow_datasets",
)


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def package_of(path):
    return path.relative_to(ROOT).parent.parts


def imports(path):
    """Dotted names a file imports, anywhere in it; `from a import b` counts as a and as a.b."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package_of(path)
            above = parents[: len(parents) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if name in ("import_module", "__import__") and node.args:
                found |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    return found


def is_under(name, package):
    return name == package or name.startswith(package + ".")


def importers(*packages):
    """Library and experiment files, relative to the root, that import any of the packages."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        if any(is_under(name, package) for name in imports(path) for package in packages)
    }


def test_the_reader_sees_every_form_of_import(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "byol_jax" / "input" / "example.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import a.b as c, d\n"
        "from e import f\n"
        "from . import g\n"
        "from .h import i\n"
        "from .. import j\n"
        "def k():\n"
        "    import l\n"
        "    importlib.import_module('m')\n",
        encoding="utf-8",
    )
    assert imports(path) == (
        {"a.b", "d", "e", "e.f", "l", "m"}
        | {"byol_jax.data", "byol_jax.data.g", "byol_jax.data.h", "byol_jax.data.h.i"}
        | {"byol_jax", "byol_jax.j"}
    )


@pytest.mark.parametrize("name", ALGORITHM)
def test_the_algorithm_does_not_know_its_surroundings(name):
    path = ROOT / "byol_jax" / f"{name}.py"
    assert path.is_file()
    found = imports(path)
    assert not {n for n in found if any(is_under(n, package) for package in SURROUNDINGS)}
    of_the_library = {n for n in found if is_under(n, "byol_jax")} - {"byol_jax"}
    strangers = {n for n in of_the_library if not any(is_under(n, a) for a in ALGORITHM_MAY_IMPORT)}
    assert not strangers
    opened = [n for n in ast.walk(tree(path)) if isinstance(n, ast.Name) and n.id == "open"]
    assert not opened, "the algorithm reads and writes no files"


def test_only_input_imports_tensorflow():
    found = importers("tensorflow", "tensorflow_datasets")
    assert found, "no file imports TensorFlow: has the input moved?"
    assert not {path for path in found if not path.startswith("byol_jax/input/")}


def test_only_checkpoint_imports_orbax():
    assert importers("orbax") == {"byol_jax/checkpoint.py"}


def test_only_parallel_says_pmap():
    said = set()
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            words = (getattr(node, field, None) for field in ("id", "attr", "name"))
            if "pmap" in words:
                said.add(path.relative_to(ROOT).as_posix())
    assert said == {"byol_jax/parallel.py"}


def test_the_library_does_not_import_experiments():
    assert LIBRARY
    experiments = {path for path in importers("experiments") if not path.startswith("experiments/")}
    assert not experiments


def test_the_library_imports_without_tensorflow():
    program = (
        "import sys\n"
        "for name in ('tensorflow', 'tensorflow_datasets'):\n"
        "    sys.modules[name] = None\n"
        "import byol_jax\n"
        "import byol_jax.evaluate, byol_jax.train.health\n"
        + "".join(f"import byol_jax.{name}\n" for name in ALGORITHM)
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
