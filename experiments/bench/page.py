"""docs/performance.md: its tables are put in from what `--output` wrote, its prose stays."""

import re
from pathlib import Path

from byol_jax.errors import UserError
from experiments.bench import report

# What stands between such a pair of lines is replaced; the name is that of a file below the folder
# of results, without its ending.
PLACE = re.compile(r"(<!-- bench: (?P<name>[\w/-]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
EMPTY = "Not measured yet."


def filled(text: str, results: Path) -> str:
    """The page with a table at each place for which there is a file of results.

    Raises:
      UserError: a file of results is none, or the page has no place for it.
    """
    places = {match["name"] for match in PLACE.finditer(text)}
    for path in sorted(results.rglob("*.json")):
        name = path.relative_to(results).with_suffix("").as_posix()
        if name not in places:
            raise UserError(
                f"the page has no place for {path}: add the lines '<!-- bench: {name} -->' and "
                "'<!-- end -->' where it should be."
            )

    def fill(match: re.Match) -> str:
        path = results / f"{match['name']}.json"
        content = report.load(path).markdown() if path.exists() else EMPTY
        return f"{match[1]}\n{content}\n\n{match[3]}"

    return PLACE.sub(fill, text)


def write(page: Path, results: Path) -> None:
    """Fills the page in place.

    Raises:
      UserError: there is no such page or folder; or as `filled`.
    """
    if not page.is_file():
        raise UserError(f"--page={page} is not there: name the page that has the places.")
    if not results.is_dir():
        raise UserError(f"--results={results} is not a folder: name where --output has written.")
    text = page.read_text(encoding="utf-8")
    page.write_text(filled(text, results), encoding="utf-8")
