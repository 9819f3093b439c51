"""From the folder of a run to its page."""

import itertools
import shlex

from byol_jax import data
from byol_jax.errors import ConfigError, DataError
from byol_jax.report import (
    dense,
    evaluations,
    features,
    findings,
    page,
    shell,
    thumbnails,
    training,
)
from byol_jax.report.findings import Log, timed
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import inputs, kinds, paths
from byol_jax.runs import run as run_lib
from byol_jax.train import metrics

MOST = 10_000  # images of a page: more make it large, and its map slow


def write(
    workdir: str | paths.AnyPath,
    output: str | paths.AnyPath | None = None,
    *,
    source: str | None = None,
    data_dir: str | None = None,
    split: str | None = None,
    test_split: str | None = None,
    step: int | None = None,
    images: int = MOST,
    baselines: tuple[str, ...] = ("random", "pixels"),
    log: Log = lambda line: None,
) -> paths.AnyPath:
    """Writes one HTML file about a run, which loads nothing else.

    Args:
      workdir: the folder of a run on images.
      output: the file; None for report.html in the run's folder.
      source: of images, such as "folder:PATH"; None for the run's.
      data_dir: where TFDS keeps its data; None for the run's.
      split: whose images are shown; None for the run's training split.
      test_split: on which kNN is tested, and in which near-duplicates of the images that are shown
        are looked for; "" for none; None for the run's or, of another source, its "test" if there
        is one.
      step: the checkpoint; None for the newest.
      images: of each split at most, 2 to 10,000; of more, these are drawn at random.
      baselines: "random" for the untrained encoder, "pixels" for the images themselves.
      log: takes a line about each part, with its seconds.

    Returns:
      The path of the file.

    Raises:
      ConfigError: a value is out of range, or the run is not on images.
      CheckpointError: no such run or checkpoint, or the file cannot be written.
      DataError: the images cannot be read.
    """
    if not 2 <= images <= MOST:
        raise ConfigError(f"--images={images}: a page shows 2 to {MOST:,} images.")
    workdir = paths.path(workdir)
    if paths.is_local(workdir):
        workdir = workdir.resolve()  # the page may be read from elsewhere
    output = workdir / "report.html" if output is None else paths.path(output)
    kinds.require_images(run_lib.read(workdir).config.data.kind, "A report")
    shell.check_output(output)
    library = shell.plotly()
    with timed(log, "checkpoint"):
        trained = run_lib.restore(workdir, step)
    sources = _open(trained, source, data_dir, split, test_split)
    rows = [features.ROWS[name] for name in baselines if name in features.ROWS]
    if sources[0].num_classes is None:  # pixels have nothing but their accuracy
        rows = [row for row in rows if row != features.PIXELS]
    side = thumbnails.side(min(images, sources[0].num_examples), trained.run.config.data.image_size)
    with timed(log, "features"):
        embed = features.embedders(trained, rows)
        shown, test = (
            of and features.compute(trained, of, embed, limit=images, side=side) for of in sources
        )
    found = findings.compute(shown, test, log)
    with timed(log, "colours of maps"):
        coloured = dense.colours(
            encoder_lib.Model(trained), shown.source, shown.index[_examples(found)]
        )
    with timed(log, "page"):
        history = metrics.read_rows(workdir / "metrics.jsonl")
        tables, notes = evaluations.tables(workdir / "eval")
        views = workdir / "views.png"
        at = int(trained.state.step)
        html = page.render(
            name=workdir.name,
            step=at,
            load=_load(workdir, None if step is None else at),
            commands=_commands(workdir, shown),
            facts=training.facts(workdir, trained.run, at, history),
            verdicts=[
                training.health_of(trained.run.config, history),
                training.trend_of(history, trained.run.total_steps),
            ],
            curves=training.curves(history),
            views=views.read_bytes() if views.exists() else None,
            tables=tables,
            notes=notes
            + [f"Left out: {text}" for of in (shown, test) if of for text in of.left_out],
            shown=shown,
            test=test,
            found=found,
            dense=coloured,
            library=library,
        )
        paths.write_atomically(output, html)
    return output


def _open(
    trained: run_lib.Trained,
    source: str | None,
    data_dir: str | None,
    split: str | None,
    test_split: str | None,
) -> tuple[data.ImageSource, data.ImageSource | None]:
    """The images to show, and those to test on; the latter with the former's classes, if any."""
    config = trained.run.config.copy_and_resolve_references()
    config.data.source = source or config.data.source
    config.data.dir = data_dir or config.data.dir
    split = split or ("train" if source else config.data.train_split)
    shown = inputs.open_split(config, split)
    wanted = test_split
    if wanted is None:
        wanted = config.data.test_split or ("test" if source else "")
    if not wanted or wanted == split:
        return shown, None
    try:
        test = inputs.open_split(config, wanted)
    except DataError:
        if test_split is None:  # training needs none either, such as of images without labels
            return shown, None
        raise
    if shown.num_classes is None or test.num_classes is None:
        return shown, test
    return shown, data.match_classes(shown, test)


def _examples(found: findings.Findings) -> list[int]:
    """A few images, ascending: the most typical ones of the clusters, in turn."""
    in_turn = itertools.zip_longest(*(group.typical for group in found.groups))
    chosen = [index for turn in in_turn for index in turn if index is not None]
    return sorted(chosen[: dense.PICTURES])


def _load(workdir: paths.AnyPath, step: int | None) -> str:
    at = "" if step is None else f", step={step}"
    return (
        "import byol_jax\n\n"
        f"encoder = byol_jax.load({str(workdir)!r}{at})\n"
        "features = encoder.embed(images)  # uint8 (n, height, width, channels) -> float32 (n, d)\n"
    )


def _commands(workdir: paths.AnyPath, shown: features.Images) -> list[str]:
    folder = shlex.quote(str(workdir))
    protocols = "label_free" if shown.labels is None else "knn,logistic,few_shot"
    return [
        f"byol-jax evaluate --checkpoint={folder} --protocol={protocols}",
        f"byol-jax export --checkpoint={folder} --output={folder}/export",
        f"byol-jax export --what=features --checkpoint={folder} --output={folder}/features",
    ]
