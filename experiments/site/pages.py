"""The pages of the site that are made from other files, and links as the site has them."""

import json
import os
import re
from pathlib import Path

from experiments.site import commands, settings

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"\[([^]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def for_site(text: str, source: Path, page: str) -> str:
    """A Markdown text with links for the site.

    Args:
      text: of a file, whose links are relative to its folder.
      source: that file.
      page: where the text is on the site, relative to docs/.

    Returns:
      The text. Links to files of docs/ are relative to the page, and those to a notebook lead to
      its page; of links to other files and to folders only the words are left.
    """

    def link(match: re.Match) -> str:
        words, target, anchor = match.groups()
        path = Path(os.path.normpath(source.parent / target))
        if not path.exists():  # a made page; or a mistake, which MkDocs reports
            return match[0]
        if not path.is_file() or not path.is_relative_to(DOCS):
            return words
        if path.suffix == ".ipynb":
            path = path.with_suffix(".md")
        relative = os.path.relpath(path, (DOCS / page).parent)
        return f"[{words}]({Path(relative).as_posix()}{anchor or ''})"

    return LINK.sub(link, text)


def index() -> str:
    """The README."""
    path = ROOT / "README.md"
    return for_site(path.read_text(), path, "index.md")


def first_run() -> str:
    """The notebook, with its cells of code as blocks."""
    path = DOCS / "first_run.ipynb"
    blocks = []
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        blocks.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    text = for_site("\n\n".join(blocks), path, "first_run.md")
    return f"{text}\n\nThis page is also [a notebook]({path.name}).\n"


PAGES = {  # by name, relative to docs/
    "index.md": index,
    "first_run.md": first_run,
    "commands.md": commands.page,
    "settings.md": settings.page,
}
