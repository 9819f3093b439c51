"""README: its Python runs as printed; its files, commands and presets exist."""

import re
from pathlib import Path

import numpy as np

from byol_jax.cli import config_flag
from byol_jax.cli.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = [README, *(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))]


def test_the_python_runs():
    code = re.search(r"<!-- tests/test_readme.py.*?```python\n(.*?)```", README, re.S).group(1)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert int(names["state"].step) == 20
    assert names["features"].shape == (512, 64)
    assert np.all(np.isfinite(names["features"]))


def test_linked_files_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) >= 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_presets_are_those_of_the_table():
    assert set(config_flag.names()) == set(re.findall(r"^\| `(\w+)` \|", README, re.M))


def test_commands_and_presets_of_the_docs_exist():
    commands = {name for text in DOCS for name in re.findall(r"byol-jax ([a-z-]+)", text)}
    assert commands >= {"pretrain", "evaluate", "export", "import-reference"}
    assert commands <= {*COMMANDS, "help"}
    presets = {name for text in DOCS for name in re.findall(r"--config=([\w./]+)", text)}
    files = {name for name in presets if name.endswith(".py")}
    assert presets - files - {"...", "NAME", "CONFIG", "FILE"} <= set(config_flag.names())
