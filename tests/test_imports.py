"""The order of the rooms: who may import whom. The imports are read from the source.

The order keeps each concern in one place, so that the algorithm can be read, tested and reused
alone. When a test fails, move the code to a room where its import is allowed.
"""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = sorted((ROOT / "byol_jax").rglob("*.py"))
SOURCES = LIBRARY + sorted((ROOT / "experiments").rglob("*.py"))

# Each room, and all rooms that it may import from, itself excluded. `byol_jax` is __init__.py.
CORE = (
    *("errors", "models", "augment", "optim", "byol"),
    *("objectives", "targets", "adversarial", "parallel"),
)
MAY_IMPORT = {
    "errors": (),
    "backend": ("errors",),
    "models": ("errors",),
    "augment": ("errors",),
    "optim": ("errors",),
    "evaluate": ("errors",),
    "byol": ("errors", "models", "augment", "optim"),
    "objectives": ("errors", "models", "augment", "optim", "byol"),
    "targets": ("errors", "models", "augment", "optim", "byol"),
    "adversarial": ("errors", "models", "augment", "optim", "byol"),
    "parallel": CORE[:-1],
    "data": (*CORE, "backend"),
    "runs": (*CORE, "backend", "data", "evaluate"),
    "export": (*CORE, "backend", "data", "evaluate", "runs"),
    "train": (*CORE, "backend", "data", "evaluate", "runs", "export"),
    "report": (*CORE, "backend", "data", "evaluate", "runs", "export", "train"),
    "presets": ("errors", "augment", "runs"),
    "cli": (*CORE, "backend", "data", "evaluate", "runs", "export", "train", "report", "presets"),
    "byol_jax": ("runs", "train"),
}
ALGORITHM = ("models", "augment", "optim", "byol", "objectives", "targets", "adversarial")
NOT_FOR_ALGORITHM = (
    *("absl", "io", "ml_collections", "orbax", "os", "pathlib", "shutil", "tempfile"),
    *("tensorflow", "tensorflow_datasets"),
)
TENSORFLOW = ("tensorflow", "tensorflow_datasets")


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def imports(path, *, at_module_level=False):
    """Dotted names that a file imports; `from a import b` counts as a and as a.b.

    Args:
      path: the file.
      at_module_level: without imports inside functions and `if TYPE_CHECKING`.
    """
    found = set()
    nodes = [parse(path)]
    while nodes:
        node = nodes.pop()
        is_late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        )
        if not (at_module_level and is_late):
            nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parent.parts
            parents = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if name in ("import_module", "__import__") and node.args:
                found |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    return found


def is_under(name, packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def importers(*packages):
    """Files, relative to the root, that import any of the packages."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        if any(is_under(name, packages) for name in imports(path))
    }


def room(name):
    """The room of a module of the library: `byol_jax.data.tfds` -> `data`."""
    return name.split(".")[1] if "." in name else name


def library_modules(names):
    """The modules of the library among imported names; the package where a name is no module."""
    for name in names:
        if is_under(name, ["byol_jax"]):
            while name not in MODULES:
                name = name.rpartition(".")[0]
            yield name


def test_every_form_of_import_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "byol_jax" / "data" / "example.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import a.b as c, d\n"
        "from e import f\n"
        "from . import g\n"
        "from .h import i\n"
        "from .. import j\n"
        "if TYPE_CHECKING:\n"
        "    import k\n"
        "def l():\n"
        "    import m\n"
        "    importlib.import_module('n')\n",
        encoding="utf-8",
    )
    at_module_level = {"a.b", "d", "e", "e.f", "byol_jax", "byol_jax.j"} | {
        "byol_jax.data",
        "byol_jax.data.g",
        "byol_jax.data.h",
        "byol_jax.data.h.i",
    }
    assert imports(path, at_module_level=True) == at_module_level
    assert imports(path) == at_module_level | {"k", "m", "n"}


def test_the_package_has_eleven_rooms_and_eight_files():
    entries = {path.stem for path in (ROOT / "byol_jax").iterdir() if path.stem != "__pycache__"}
    folders = {e for e in entries if (ROOT / "byol_jax" / e).is_dir()}
    core = {"byol", "objectives", "targets", "adversarial", "optim", "parallel"}
    files = core | {"__init__", "errors"}
    assert entries - folders == files
    assert folders | (entries - folders) - {"__init__"} == set(MAY_IMPORT) - {"byol_jax"}
    assert len(folders) <= 11


@pytest.mark.parametrize("folder", sorted({path.parent for path in LIBRARY}), ids=lambda p: p.name)
def test_every_room_describes_itself(folder):
    docstring = ast.get_docstring(parse(folder / "__init__.py"))
    assert docstring and "TODO" not in docstring
    if folder.parent.name == "byol_jax":
        assert len(docstring.splitlines()) >= 3, "what lives in the room, and what may not"


@pytest.mark.parametrize("importer", MAY_IMPORT)
def test_rooms_import_only_from_rooms_before_them(importer):
    allowed = {importer, *MAY_IMPORT[importer]}
    wrong = [
        (name, imported)
        for name, path in MODULES.items()
        if name.startswith("byol_jax") and room(name) == importer
        # `from byol_jax import data` names the package, too.
        for imported in library_modules(imports(path) - {"byol_jax"})
        if room(imported) not in allowed
    ]
    assert not wrong


def test_no_modules_import_each_other():
    graph = {
        name: set(library_modules(imports(path, at_module_level=True))) - {name}
        for name, path in MODULES.items()
    }
    for name, imported in graph.items():
        # A module in a package runs after the package's __init__, which may import it.
        graph[name] = {other for other in imported if not name.startswith(other + ".")}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("name", ALGORITHM)
def test_the_algorithm_knows_arrays_and_modules_only(name):
    paths = [path for module, path in MODULES.items() if is_under(module, [f"byol_jax.{name}"])]
    assert paths
    for path in paths:
        assert not {found for found in imports(path) if is_under(found, NOT_FOR_ALGORITHM)}
        names = {node.id for node in ast.walk(parse(path)) if isinstance(node, ast.Name)}
        assert "open" not in names, "the algorithm reads and writes no files"


def test_evaluate_knows_arrays_only():
    for module, path in MODULES.items():
        if is_under(module, ["byol_jax.evaluate"]):
            assert not {n for n in imports(path) if is_under(n, (*NOT_FOR_ALGORITHM, "flax"))}


def test_only_data_imports_tensorflow():
    found = importers(*TENSORFLOW)
    assert found and all(path.startswith("byol_jax/data/") for path in found)
    users = importers("byol_jax.data._tensorflow") - {"byol_jax/export/savedmodel.py"}
    assert all(path.startswith(("byol_jax/data/", "experiments/")) for path in users)


def test_only_checkpoint_imports_orbax():
    assert importers("orbax") == {"byol_jax/runs/checkpoint.py"}


def test_only_parallel_says_pmap():
    found = set()
    for path in SOURCES:
        for node in ast.walk(parse(path)):
            if "pmap" in (getattr(node, field, None) for field in ("id", "attr", "name")):
                found.add(path.relative_to(ROOT).as_posix())
    assert found == {"byol_jax/parallel.py"}


def test_the_library_does_not_import_experiments():
    assert not {path for path in importers("experiments") if not path.startswith("experiments/")}


def run_without(packages, program):
    """Runs a program in which importing any of the packages fails."""
    block = f"import sys\nfor name in {packages!r}:\n    sys.modules[name] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", block + program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_the_library_imports_without_tensorflow():
    modules = [f"byol_jax.{name}" for name in (*ALGORITHM, "evaluate", "train.health", "runs.run")]
    run_without(TENSORFLOW, f"import byol_jax, {', '.join(modules)}\n")


def test_an_export_is_loaded_with_the_packages_of_a_plain_install(tmp_path):
    from encoders import random_encoder

    from byol_jax.cli.app import EXTRAS
    from byol_jax.runs import encoder

    small = random_encoder("resnet8", image_size=16, stem="strided", width_multiplier=0.25)
    encoder.save(small, tmp_path / "export")
    run_without(
        (*EXTRAS, "onnx", "onnxruntime", "importlib_resources", "torch"),
        f"import numpy, byol_jax\nencoder = byol_jax.load({str(tmp_path / 'export')!r})\n"
        "assert encoder.embed(numpy.zeros((2, 16, 16, 3), numpy.uint8)).shape == (2, 16)\n",
    )
