"""The documentation: links, navigation, pages that are made, and the site."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from byol_jax.cli.__main__ import COMMANDS
from byol_jax.runs import config as config_lib
from byol_jax.runs import kinds, tree
from experiments.site import commands, pages, settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


@pytest.fixture(scope="module")
def commands_page():
    return commands.page()


def links(text):
    """Targets of the links of a Markdown text, without those in blocks of code."""
    text = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.M | re.S)
    return re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)


def anchors(text):
    """The anchors of the headings of a Markdown text, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(path):
    broken = []
    for link in links(path.read_text()):
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        made = file.is_relative_to(DOCS) and str(file.relative_to(DOCS)) in pages.PAGES
        found = file.exists() or made
        if not found or (anchor and file.exists() and anchor not in anchors(file.read_text())):
            broken.append(link)
    assert broken == []


def test_there_are_links():
    assert len(links((ROOT / "README.md").read_text())) > 20
    assert links("[a](b.md)\n```\n[c](d.md)\n```\n[e](https://f)") == ["b.md"]


def test_every_page_can_be_reached_from_the_readme():
    reached, left = set(), {ROOT / "README.md"}
    while left:
        path = left.pop()
        reached.add(path)
        targets = {link.partition("#")[0] for link in links(path.read_text())}
        found = {(path.parent / target).resolve() for target in targets if target.endswith(".md")}
        left |= {file for file in found if file.is_file()} - reached
    made_of = {DOCS / "api.md"}  # which is empty where it is not on the site
    assert {path for path in FILES if path not in reached} == made_of


def test_every_page_is_in_the_navigation_once():
    def named(entry):
        if isinstance(entry, str):
            return [entry]
        entries = entry.values() if isinstance(entry, dict) else entry
        return [page for item in entries for page in named(item)]

    navigation = named(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    files = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert set(navigation) == files | set(pages.PAGES)
    assert len(navigation) == len(set(navigation))


def test_made_pages_do_not_replace_files():
    assert [name for name in pages.PAGES if (DOCS / name).exists()] == []


def test_links_to_what_is_not_on_the_site_are_words():
    source = DOCS / "results" / "README.md"
    text = (
        "[a](../scale.md#anchor) [b](../../byol_jax/byol.py) [c](ranking) ![d](../report.png) "
        "[e](https://example.org) [f](#here) [g](../first_run.ipynb) [h](nowhere.md)"
    )
    assert pages.for_site(text, source, "results/README.md") == (
        "[a](../scale.md#anchor) b c ![d](../report.png) "
        "[e](https://example.org) [f](#here) [g](../first_run.md) [h](nowhere.md)"
    )
    text = pages.for_site("[a](docs/scale.md) [b](CHANGELOG.md)", ROOT / "README.md", "index.md")
    assert text == "[a](scale.md) b"


def test_every_command_and_flag_is_listed(commands_page):
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", commands_page, re.M | re.S))
    assert list(sections) == list(COMMANDS)
    assert "| `--checkpoint` |" in sections["evaluate"]
    assert re.search(r"\| `--top` \| How many .* \| `10` \|", sections["search"])


def test_flags_of_the_docs_exist(commands_page):
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", commands_page, re.M | re.S))
    seen = 0
    for path in FILES:
        text = path.read_text().replace("\\\n", " ")
        for name, rest in re.findall(r"^    byol-jax ([a-z-]+)(.*)$", text, re.M):
            given = set(re.findall(r"--(?!config\.)([a-z]\w*)", rest.partition("#")[0]))
            listed = re.findall(r"`--(?:\[no\])?(\w+)`", sections.get(name, ""))
            assert given <= {*listed, "help"}, f"{path.name}: byol-jax {name}"
            seen += len(given)
    assert seen > 40


def test_every_setting_is_listed():
    page = settings.page()
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*) \|$", page, re.M))
    for kind in kinds.KINDS:
        for key in tree.flat(config_lib.default(kind)):
            if not key.startswith(("encoder.", "text_encoder.", "target.encoder.")):
                assert re.sub(r"views\.view[12]\.", "views.VIEW.", key) in rows
    assert rows["batch_size"] == "`4096` | images in an update, over all devices"
    assert rows["views.VIEW.blur_prob"].startswith("`1.0` and `0.1`")
    assert rows["views.VIEW.scale_std"].endswith("for each channel (the last axis), normal")
    assert "| `augment.function` | `''` | MODULE:FUNCTION of your own" in page
    assert "| `vicreg` | `invariance=25.0`" in page


def test_extras_are_those_of_the_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    table = re.findall(r"^\| (`.*`) \|", (DOCS / "install.md").read_text(), re.M)
    assert {*re.findall(r"`(\w+)`", " ".join(table)), "train", "dev"} == set(extras)
    containers = (ROOT / "Containerfile").read_text() + (DOCS / "container.md").read_text()
    named = re.findall(r"EXTRAS=([\w,]+)", containers)
    assert {extra for part in named for extra in part.split(",")} == {"train", "cuda12"}


def test_a_container_gets_the_files_that_it_copies():
    copied = re.findall(r"^COPY (.*) \S+$", (ROOT / "Containerfile").read_text(), re.M)
    copied = {name for names in copied for name in names.split()}
    assert copied == set(re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.M))
    assert all((ROOT / name).exists() for name in copied)


def test_comments_are_found():
    source = "# above\n# it\nconfig.a = 1  # beside\nconfig.b.c = '#'\n\n# far\n\nd: int = 2  # d"
    assert settings.comments(source) == {"a": "above it beside", "b.c": "", "d": "d"}


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")),
    reason="needs pip install -r requirements-docs.txt",
)
def test_the_site_is_built_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    # Not --quiet, with which --strict would not see warnings.
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("INFO")] == []
    assert "byol_jax.load" in (tmp_path / "api.html").read_text()
    assert "--dry_run" in (tmp_path / "commands.html").read_text()
