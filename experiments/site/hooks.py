"""What MkDocs calls while it builds the site: https://www.mkdocs.org/user-guide/plugins/#events.

The files of docs/ can be read as they are. On the site there are also the pages of pages.py, and
links to what is not on the site are text.
"""

import sys
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # MkDocs loads this file by its path

from experiments.site import pages  # noqa: E402


def on_files(files, config):
    """Adds the pages that are made."""
    for name, make in pages.PAGES.items():
        files.append(File.generated(config, name, content=make()))
    return files


def on_page_markdown(markdown, page, **_):
    """Links of a page of docs/; those of a made page are right already."""
    name = page.file.src_uri
    if name in pages.PAGES:
        return markdown
    return pages.for_site(markdown, pages.DOCS / name, name)
