"""How far several runs are, how they do, and their curves."""

from typing import Any, NamedTuple

import numpy as np

from byol_jax.report import tables, training
from byol_jax.runs import run as run_lib
from byol_jax.train import timer

METRICS = [name for names in training.CURVES.values() for name in names]  # that are drawn first
BETTER = ["knn_test_top1", "probe_test_top1", "rankme"]  # the higher: as `metrics.score`
LAST = [*BETTER, *(name for name in METRICS if name not in (*BETTER, "learning_rate"))]
SAME_EVALUATION = (  # without which the metrics of BETTER are not comparable
    *("data.source", "data.train_split", "data.test_split"),
    *("evaluation.train_examples", "evaluation.test_examples", "fingerprint of the data"),
)

Rows = list[dict[str, Any]]


class Chart(NamedTuple):
    """A metric of several runs."""

    metric: str
    title: str
    lines: list[dict[str, Any]]  # 'run' (its number), 'steps', 'values', 'seconds' or None


def states(names: list[str], runs: list[run_lib.Run], rows: list[Rows]) -> tables.Table:
    """Steps, epochs, time, and what is said about collapse and progress."""
    numbers = {}
    for number, (name, run, of_run) in enumerate(zip(names, runs, rows, strict=True)):
        step = of_run[-1]["step"] if of_run else 0
        rates = [row["images_per_second"] for row in of_run if row.get("images_per_second")]
        (taken,) = training.seconds(of_run, run.config.batch_size, [step])
        found = {
            "steps": f"{step:,} of {run.total_steps:,}",
            "epochs": f"{step / run.steps_per_epoch:.1f}",
            "time of updates": "" if taken is None else timer.duration(taken),
            "examples/s": f"{np.median(rates):.3g}" if rates else "",
            "collapse": training.health_of(run.config, of_run).title,
            "progress": training.trend_of(of_run, run.total_steps).title,
        }
        numbers[name, number] = {key: shown for key, shown in found.items() if shown}
    order = ["steps", "epochs", "time of updates", "examples/s"]
    return tables.table("How far the runs are", numbers, higher=set(), order=order)


def last_values(names: list[str], rows: list[Rows], *, comparable: bool) -> tables.Table:
    """The last value of each metric in LAST; the best are marked if they are comparable."""
    numbers = {}
    for number, (name, of_run) in enumerate(zip(names, rows, strict=True)):
        lines = {metric: training.line(of_run, metric)[1] for metric in LAST}
        numbers[name, number] = {
            title(metric): text(metric, values[-1]) for metric, values in lines.items() if values
        }
    best = {title(metric) for metric in BETTER} if comparable else set()
    order = [title(metric) for metric in LAST]
    return tables.table("The last value of each metric", numbers, higher=best, order=order)


def charts(runs: list[run_lib.Run], rows: list[Rows]) -> tuple[list[Chart], list[Chart]]:
    """The curves of METRICS, and of the other metrics of metrics.jsonl by name."""
    known = {key for of_run in rows for row in of_run for key in row} - {"step", "epoch"}
    found = []
    for metric in [*METRICS, *sorted(known - {*METRICS})]:
        lines = []
        for number, (run, of_run) in enumerate(zip(runs, rows, strict=True)):
            steps, values = training.line(of_run, metric)
            if steps:
                seconds = training.seconds(of_run, run.config.batch_size, steps)
                lines.append({"run": number, "steps": steps, "values": values, "seconds": seconds})
        if lines:
            found.append(Chart(metric, title(metric), lines))
    main = sum(chart.metric in METRICS for chart in found)
    return found[:main], found[main:]


def title(metric: str) -> str:
    """The name of a metric as words."""
    return metric.replace("_", " ")


def text(metric: str, value: float) -> str:
    """The value of a metric as text."""
    return f"{100 * value:.1f}%" if metric.endswith("top1") else f"{value:.4g}"
