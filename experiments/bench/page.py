"""Puts the tables of the results that `--output` wrote into docs/performance.md."""

import re
from collections.abc import Callable
from pathlib import Path

from byol_jax.errors import UserError
from experiments.bench import report

# Text between such a pair of lines is replaced; the name is that of a file in the folder of
# results, without its suffix.
PLACE = r"(<!-- {kind}: (?P<name>[\w/-]+) -->\n).*?(<!-- end -->\n)"
EMPTY = "Not measured yet."


def replaced(text: str, kind: str, content: Callable[[str], str]) -> str:
    """A page with `content(name)` at each place of a kind."""

    def fill(match: re.Match) -> str:
        return f"{match[1]}\n{content(match['name'])}\n\n{match[3]}"

    return re.sub(PLACE.format(kind=kind), fill, text, flags=re.DOTALL)


def filled(text: str, results: Path) -> str:
    """The page with a table at each place that has a file of results.

    Raises:
      UserError: a file cannot be read as results, or the page has no place for it.
    """
    places = {match["name"] for match in re.finditer(PLACE.format(kind="bench"), text, re.DOTALL)}
    for path in sorted(results.rglob("*.json")):
        name = path.relative_to(results).with_suffix("").as_posix()
        if name not in places:
            raise UserError(
                f"the page has no place for {path}: add the lines '<!-- bench: {name} -->' and "
                "'<!-- end -->'."
            )

    def content(name: str) -> str:
        path = results / f"{name}.json"
        return report.load(path).markdown() if path.exists() else EMPTY

    return replaced(text, "bench", content)


def write(page: Path, results: Path) -> None:
    """Fills the page in place.

    Raises:
      UserError: the page or the folder does not exist; or as `filled`.
    """
    if not page.is_file():
        raise UserError(f"--page={page} does not exist.")
    if not results.is_dir():
        raise UserError(f"--results={results} is not a folder.")
    text = page.read_text(encoding="utf-8")
    page.write_text(filled(text, results), encoding="utf-8")
