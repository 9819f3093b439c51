r"""Evaluates an encoder on other data sets: the paper's transfer experiments.

byol-jax transfer --checkpoint=DIR [--protocol=logistic|finetune] [--step=N] \
    [--datasets=cifar10,dtd,folder:PATH,...] [--data_dir=DIR] [--against=PATH,...] \
    [--baselines=random,pixels|none] [--on_decode_error=error|skip] \
    [--finetune_learning_rates=RATE,...] [--finetune_epochs=NUMBER,...] \
    [--finetune_weight_decays=DECAY,...] [--finetune_batch_size=NUMBER] \
    [--stopped_exit_code=0] [--cpu_devices=N] [--import=MODULE]

By default the paper's twelve, of which those are evaluated that TFDS has prepared in --data_dir,
and the others are named. The metric is the one that the paper reports, with its figure beside.

    logistic    logistic regression on frozen features of central squares, as of `evaluate`
    finetune    all weights are trained, with each of the paper's 56 settings (7 rates, 8 weight
                decays) for 20,000 steps of 256 images, and with the best again; flags choose fewer.
                A stopped or killed command resumes if it is given again

DIR/eval/transfer.json, or transfer-finetune.json, is written after each data set, and keeps those
of earlier calls.
"""

import contextlib
import functools
import json
import sys
from typing import Any

from absl import flags

from byol_jax.cli import app, import_flag, shared_flags
from byol_jax.errors import ConfigError, DataError, UserError

SEVERAL = "map"  # the metric of images with several labels each
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The --workdir of a pre-training run.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
PROTOCOL = flags.DEFINE_enum(
    "protocol", "logistic", ["logistic", "finetune"], "How encoders are evaluated; see above."
)
DATASETS = flags.DEFINE_list(
    "datasets",
    [],
    "Names of the paper's data sets, or sources such as folder:PATH; all by default.",
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data; its own by default.")
AGAINST = flags.DEFINE_list("against", [], "Other encoders to compare with: paths.")
BASELINES = shared_flags.define_baselines(["random"])
ON_DECODE_ERROR = shared_flags.define_on_decode_error()
TRIED = shared_flags.define_tried("finetune_")
STOPPED = shared_flags.define_stopped_exit_code()
CPU_DEVICES = shared_flags.define_cpu_devices()
IMPORT = import_flag.define()
flags.mark_flags_as_required(["checkpoint"])


def main() -> int:
    """Evaluates on each data set; returns the exit code."""
    from byol_jax.evaluate import benchmarks

    names = DATASETS.value or list(benchmarks.BENCHMARKS)
    for name in names:
        if benchmarks.benchmark(name) is None:
            raise ConfigError(
                f"--datasets={name} is neither one of {', '.join(benchmarks.BENCHMARKS)} nor a "
                "source such as folder:PATH or tfds:NAME."
            )
    shared_flags.check_tried([PROTOCOL.value], TRIED)
    shared_flags.use_cpu_devices(CPU_DEVICES)
    import_flag.apply(IMPORT)

    from byol_jax.cli import encoders
    from byol_jax.runs import kinds, paths
    from byol_jax.runs import run as run_lib
    from byol_jax.train import signals
    from byol_jax.train.finetune.choices import TRANSFER

    recipe = shared_flags.recipe(TRANSFER, TRIED)
    recipe.choices()  # a wrong number is an error now
    workdir = paths.path(CHECKPOINT.value)
    trained = run_lib.restore(workdir, STEP.value)
    config = trained.run.config.copy_and_resolve_references()
    kinds.require_images(config.data.kind, "transfer")
    config.data.on_decode_error = ON_DECODE_ERROR.value or config.data.on_decode_error
    fine_tunes = PROTOCOL.value == "finetune"
    rows = encoders.of_run(trained, BASELINES.value)
    rows |= {path: encoders.of_path(path, config) for path in AGAINST.value}
    results, missing = {}, {}
    step = int(trained.state.step)
    at_step = "" if STEP.value is None else f"-step{STEP.value}"
    report_name = "transfer-finetune" if fine_tunes else "transfer"
    output = workdir / "eval" / f"{report_name}{at_step}.json"
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(signals.stop_requests()) if fine_tunes else None
        for name in names:
            benchmark = benchmarks.benchmark(name)
            try:
                train, test = _open(benchmark, config)
                if fine_tunes:
                    folder = output.with_suffix("")
                    details = _fine_tune(rows, config, recipe, train, test, folder, stop)
                else:
                    details = _logistic(benchmark, rows, config, train, test)
            except UserError as error:
                missing[name] = str(error)
                continue
            if details is None:  # stopped by a signal
                break
            results[name] = {
                "metric": benchmark.metric,
                "published": benchmark.finetuned if fine_tunes else benchmark.linear,
                **details,
            }
            report = {"step": step, "data_sets": _earlier(output, step) | results}
            with paths.translate_write_errors(output):
                output.parent.mkdir(exist_ok=True)
                output.write_text(json.dumps(report, indent=2) + "\n")
    for line in _table(results, list(rows)):
        print(line)
    for name, reason in missing.items():
        print(f"  {name}: {reason}")
    if stop is not None and stop.requested:
        return STOPPED.value
    if not results:
        raise DataError("none of the data sets could be evaluated.")
    print(f"written to {output}")
    return 0


def _earlier(output: Any, step: int) -> dict[str, Any]:
    """The data sets of an earlier call for the same checkpoint."""
    try:
        match json.loads(output.read_text()):
            case {"step": then, "data_sets": dict(found)} if then == step:
                return found
    except (OSError, ValueError):  # none, or of another program: it is replaced
        pass
    return {}


def _open(benchmark: Any, config: Any) -> list[Any]:
    """The splits to fit on and to test on; raises UserError if they cannot be read."""
    from byol_jax import data

    if not benchmark.source:
        raise DataError(f"{benchmark.why_not}.")
    train, test = (
        data.open_source(
            benchmark.source,
            split,
            data_dir=DATA_DIR.value,
            channels=config.data.channels,
            value_range=config.data.value_range,
        )
        for split in (benchmark.train_split, benchmark.test_split)
    )
    if benchmark.metric == SEVERAL:
        if PROTOCOL.value == "finetune":
            raise DataError("its images have several labels each: choose --protocol=logistic.")
        return [train, test]
    if train.num_classes is None:
        raise DataError(f"{train.name} has no labels: name labelled images.")
    return [train, data.match_classes(train, test)]


def _logistic(
    benchmark: Any, rows: dict[str, Any], config: Any, train: Any, test: Any
) -> dict[str, Any]:
    """Accuracies of logistic regression, by encoder."""
    from byol_jax import data, evaluate
    from byol_jax.cli import encoders

    # The paper's images: the complete shorter side.
    rows = {
        name: row._replace(view=data.CentralView(row.view.image_size, 1.0))
        for name, row in rows.items()
    }
    if benchmark.metric == SEVERAL:
        config = config.copy_and_resolve_references()
        config.data.on_decode_error = "error"  # all rows of the labels have an image
    left_out: dict[str, None] = {}
    (train_features, train_labels), (test_features, test_labels) = (
        encoders.features(rows, config, source, left_out) for source in (train, test)
    )
    classify = functools.partial(evaluate.logistic, num_classes=train.num_classes)
    if benchmark.metric == SEVERAL:
        classify = evaluate.multi_label
        train_labels, test_labels = train.label_sets(), test.label_sets()
    details = {}
    for name in rows:
        _log(f"logistic on {benchmark.name}: {name}")
        details[name] = classify(
            train_features.pop(name), train_labels, test_features.pop(name), test_labels
        )
    counts = {"train_examples": len(train_labels), "test_examples": len(test_labels)}
    return counts | {"left_out": list(left_out), "details": details}


def _fine_tune(
    rows: dict[str, Any],
    config: Any,
    recipe: Any,
    train: Any,
    test: Any,
    folder: Any,
    stop: Any,
) -> dict[str, Any] | None:
    """Accuracies of fine-tuned encoders, by encoder; None if a signal stopped it."""
    from byol_jax import data
    from byol_jax.cli import finetune_rows
    from byol_jax.runs.kinds import images

    def skipped(message: str) -> None:  # the reports list them
        pass

    sweeps = finetune_rows.sweeps(
        rows,
        recipe,
        data.hold_out(train),
        train,
        test,
        images.crop(config),
        skipped if config.data.on_decode_error == "skip" else None,
    )
    outcome = finetune_rows.run(sweeps, folder, stop, _log)
    if outcome is None or stop.requested:
        return None
    details, failed = outcome
    if not details:
        raise next(iter(failed.values()))
    return {"failed": {name: str(error) for name, error in failed.items()}, "details": details}


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _table(results: dict[str, Any], rows: list[str]) -> list[str]:
    """Lines of text: a data set in each, an encoder in each column."""
    rows = [row for row in rows if any(row in found["details"] for found in results.values())]
    columns = [*rows, "paper, ResNet-50"]
    widths = [max(len(column), 6) for column in columns]
    first = max(12, *map(len, results), 0) if results else 12
    lines = [_line("", "metric", columns, widths, first)]
    for name, found in results.items():
        details = found["details"]
        shares = [100 * details[row][found["metric"]] if row in details else None for row in rows]
        shares.append(found["published"])
        cells = ["" if share is None else f"{share:.1f}%" for share in shares]
        metric = {"top1": "top-1", "mean_per_class": "per class", SEVERAL: "mAP"}[found["metric"]]
        lines.append(_line(name, metric, cells, widths, first))
    return lines


def _line(name: str, metric: str, cells: list[str], widths: list[int], first: int) -> str:
    padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
    return "  ".join([f"  {name:{first}s}", f"{metric:9s}", *padded]).rstrip()


if __name__ == "__main__":
    app.run(main)
