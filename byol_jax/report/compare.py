"""From the folders of several runs to one page."""

from collections.abc import Sequence

from byol_jax.errors import CheckpointError, ConfigError
from byol_jax.report import progress, results, settings, shell
from byol_jax.runs import paths
from byol_jax.runs import run as run_lib
from byol_jax.train import metrics


def compare(
    workdirs: Sequence[str | paths.AnyPath], output: str | paths.AnyPath = "compare.html"
) -> paths.AnyPath:
    """Writes one HTML file with runs side by side, which loads nothing else.

    The runs may be of any kind of data, unfinished, of unequal lengths and without evaluations.
    Nothing is computed but what their files say.

    Args:
      workdirs: the folders of two or more runs.
      output: the file.

    Returns:
      The path of the file.

    Raises:
      ConfigError: fewer than two runs, or one twice.
      CheckpointError: a folder holds no run, one of its files cannot be read, or the file cannot
        be written.
    """
    folders = [paths.path(workdir) for workdir in workdirs]
    folders = [folder.resolve() if paths.is_local(folder) else folder for folder in folders]
    if len(folders) < 2:
        raise ConfigError("name two or more runs to compare, such as runs/a runs/b.")
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise ConfigError(f"{twice[0]} is named twice: name each run once.")
    output = paths.path(output)
    shell.check_output(output)
    for folder in folders:
        if not folder.is_dir():
            raise CheckpointError(f"{folder} holds no run: there is no such folder.")
    runs = [run_lib.read(folder) for folder in folders]
    records = [paths.read_record(folder) for folder in folders]
    rows = [metrics.read_rows(folder / "metrics.jsonl") for folder in folders]
    names = _names(folders)
    found = settings.compare(runs, records)
    comparable = not {*progress.SAME_EVALUATION} & {*found.differing}
    several, single, notes = results.compare(folders, names)
    charts, more = progress.charts(runs, rows)
    html = shell.fill(
        "compare",
        drawn={
            "runs": [
                {"name": name, "steps_per_epoch": run.steps_per_epoch}
                for name, run in zip(names, runs, strict=True)
            ],
            "charts": [chart._asdict() for chart in charts + more],
        },
        library=shell.plotly(),
        names=names,
        folders=folders,
        settings=found,
        states=progress.states(names, runs, rows),
        values=progress.last_values(names, rows, comparable=comparable),
        comparable=comparable,
        several=several,
        single=single,
        charts=charts,
        more=more,
        notes=notes,
    )
    paths.write_atomically(output, html)
    return output


def _names(folders: list[paths.AnyPath]) -> list[str]:
    """The last parts of different paths, as many as make the names differ."""
    for count in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
