"""The results in RUN/eval/*.json of several runs side by side."""

from byol_jax.report import evaluations, tables
from byol_jax.runs import paths

TRAINED = "byol"  # the row of a run's own encoder; the others are baselines
# Columns in which no direction is better: the interval belongs to the column before it, and what is
# measured without labels, but for the two ranks, has no best value.
NEITHER = {"95%", "step", "alpha-ReQ", "alignment", "uniformity"}
LOWER = {"median rank"}


def compare(
    workdirs: list[paths.AnyPath], names: list[str]
) -> tuple[list[tables.Table], list[tables.Table], list[str]]:
    """The results of runs.

    Only those of one name of file, protocol, data and number of images are comparable.

    Args:
      workdirs: the folders of the runs.
      names: of the runs.

    Returns:
      Tables of the results that several runs have, each with the baselines of the first of them;
      tables of the results of one run only; and a line for each file that holds no such result.
    """
    grouped: dict[tuple[str, str], dict[int, evaluations.Table]] = {}
    notes = []
    for number, (workdir, name) in enumerate(zip(workdirs, names, strict=True)):
        found, skipped = evaluations.tables(workdir / "eval")
        notes += [f"{name}: {note}" for note in skipped]
        for one in found:
            grouped.setdefault((one.file, one.about), {})[number] = one
    several, single = [], []
    for (_, about), by_run in grouped.items():
        made = _table(about, {run: by_run[run] for run in sorted(by_run)}, names)
        (several if len(by_run) > 1 else single).append(made)
    return several, single, notes


def _table(about: str, by_run: dict[int, evaluations.Table], names: list[str]) -> tables.Table:
    numbers: dict[tuple[str, int | None], dict[str, str]] = {}
    for run, found in by_run.items():
        own = TRAINED if TRAINED in found.rows else next(iter(found.rows))
        numbers[names[run], run] = _row(found, own) | {"step": f"{found.step:,}"}
    first = next(iter(by_run))
    rows = by_run[first].rows
    for name in rows:
        if name != (TRAINED if TRAINED in rows else next(iter(rows))):
            numbers[f"{name}, of {names[first]}", None] = _row(by_run[first], name)
    titles = {title for row in numbers.values() for title in row}
    return tables.table(about, numbers, higher=titles - NEITHER - LOWER, lower=LOWER)


def _row(found: evaluations.Table, name: str) -> dict[str, str]:
    cells = zip(found.titles, found.rows[name], strict=True)
    return {title: text for title, text in cells if text}
