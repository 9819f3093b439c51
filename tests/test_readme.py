"""The README's Python is run as it stands, and its files and configs exist."""

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_ten_lines_of_python_run():
    code = re.search(r"<!-- tests/test_readme.py.*?```python\n(.*?)```", README, re.S).group(1)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert int(names["state"].step) == 20
    assert names["features"].shape == (512, 64)
    assert np.all(np.isfinite(names["features"]))


def test_every_file_that_the_readme_links_to_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) >= 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_config_is_in_the_readme():
    presets = {path.name for path in (ROOT / "byol_jax/presets").glob("[a-z]*.py")}
    assert presets == set(re.findall(r"^\| `(\w+\.py)` \|", README, re.M))
