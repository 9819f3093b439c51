"""README and docs: their Python runs as printed; commands, settings and presets exist."""

import re
from pathlib import Path

import numpy as np

from byol_jax.cli import config_flag
from byol_jax.cli.__main__ import COMMANDS
from byol_jax.runs import config as config_lib
from byol_jax.runs import kinds, tree

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
DOCS = [README, *PAGES.values()]


def test_the_readme_is_one_screen():
    assert len(README.partition("## More")[0].splitlines()) <= 65


def test_the_python_runs():
    page = PAGES["python.md"]
    code = re.search(r"<!-- tests/test_readme.py.*?```python\n(.*?)```", page, re.S).group(1)
    names = {}
    exec(compile(code, "python.md", "exec"), names)
    assert int(names["state"].step) == 20
    assert names["features"].shape == (512, 64)
    assert np.all(np.isfinite(names["features"]))


def test_presets_are_those_of_the_table():
    table = re.findall(r"^\| `(\w+)` \|", PAGES["presets.md"], re.M)
    assert set(config_flag.names()) == set(table)
    assert len(table) == len(set(table))


def test_commands_and_presets_of_the_docs_exist():
    commands = {name for text in DOCS for name in re.findall(r"byol-jax ([a-z-]+)", text)}
    assert commands >= {"pretrain", "evaluate", "export", "import-reference"}
    assert commands <= {*COMMANDS, "help"}
    presets = {name for text in DOCS for name in re.findall(r"--config=([\w./]+)", text)}
    files = {name for name in presets if name.endswith(".py")}
    assert presets - files - {"...", "NAME", "CONFIG", "FILE"} <= set(config_flag.names())


def test_settings_of_the_docs_exist():
    keys = {key for kind in kinds.KINDS for key in tree.flat(config_lib.default(kind))}
    keys |= {section for key in keys for section in _sections(key)}
    named = {key for text in DOCS for key in re.findall(r"--config\.([a-z][\w.]*\w)[=` ]", text)}
    assert len(named) > 50
    assert {key.replace("VIEW", "view1") for key in named} - keys == set()


def _sections(key):
    parts = key.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]
