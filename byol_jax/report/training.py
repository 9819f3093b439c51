"""What a run's config and metrics say: what was trained, whether it is healthy, whether to stop."""

from typing import Any, NamedTuple

import numpy as np

from byol_jax.runs import paths
from byol_jax.runs import run as run_lib
from byol_jax.train import health, metrics, plots, timer

CURVES = plots.CURVES | {"alpha-ReQ": ("alpha_req",), "Learning rate": ("learning_rate",)}
DRAWN = 600  # points of a line at most: more cannot be told apart
FEWEST = 6  # evaluations that a trend is read from
# A change over half of the evaluations that is worth training for: of an accuracy, of RankMe.
WORTH = {"knn_test_top1": 0.005, "rankme": 0.01}


class Verdict(NamedTuple):
    """A judgement in words."""

    state: str  # "good", "warning", "bad" or "unknown"
    title: str  # a few words
    text: str  # one or two sentences


class Curve(NamedTuple):
    """Metrics that are drawn into one chart."""

    title: str
    lines: dict[str, tuple[list[int], list[float]]]  # steps and values, by metric


def curves(rows: list[dict[str, Any]]) -> list[Curve]:
    """The charts of metrics.jsonl, those that have values."""
    found = []
    for title, names in CURVES.items():
        lines = {name: line(rows, name) for name in names}
        if lines := {name: found for name, found in lines.items() if found[0]}:
            found.append(Curve(title, lines))
    return found


def line(rows: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric: about DRAWN at most, with the first and the last."""
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    points = points[:: -(-len(points) // DRAWN)][:-1] + points[-1:] if points else []
    return [step for step, _ in points], [value for _, value in points]


def health_of(config: Any, rows: list[dict[str, Any]]) -> Verdict:
    """Whether the projections have collapsed, by the thresholds of `health.CollapseMonitor`."""
    checks = [row for row in rows if "projection_std" in row and "projection_rank" in row]
    if not checks:
        return Verdict("unknown", "Health is unknown", "metrics.jsonl has no spread and no rank.")
    monitor, warnings = health.CollapseMonitor(config), []
    for row in checks:
        # JSON lines have null for NaN, which counts as collapsed.
        std, rank = (
            float("nan") if row[key] is None else row[key]
            for key in ("projection_std", "projection_rank")
        )
        warning = monitor.check(row["step"], std, rank)
        warnings += [warning] if warning else []
    measured = (
        f"At step {checks[-1]['step']:,} the projections have a spread of {std:.2f} (1 is spread "
        f"evenly, below {monitor.min_std:g} is collapsed) and an effective rank of {rank:.1f} "
        f"(below {monitor.min_rank:g} is collapsed)."
    )
    if monitor.has_collapsed:
        return Verdict("bad", "The representation has collapsed", warnings[-1])
    if monitor.collapsed_checks:
        return Verdict(
            "warning",
            "The last checks look like a collapse",
            f"{measured} That is too few checks in a row to be sure.",
        )
    if warnings:
        return Verdict("warning", "It had collapsed, and recovered", f"{measured} {warnings[-1]}")
    return Verdict("good", "No collapse", measured)


def trend_of(rows: list[dict[str, Any]], total_steps: int) -> Verdict:
    """Whether the encoder still gets better: a line through the later half of its evaluations.

    By its accuracy by kNN or, without labels, by its RankMe, as `metrics.score`.
    """
    scored = [row for row in rows if metrics.score(row) is not None]
    if len(scored) < FEWEST:
        return Verdict(
            "unknown",
            "Too few evaluations",
            f"The run has {len(scored)}; {FEWEST} or more show whether the encoder still "
            "improves (config.evaluation.every_steps).",
        )
    name = next(key for key in WORTH if scored[-1].get(key) is not None)
    scored = [row for row in scored if row.get(name) is not None]
    later = scored[len(scored) // 2 :]
    steps = np.array([row["step"] for row in later], float)
    values = np.array([row[name] for row in later], float)
    change, error = _change(steps, values)
    worth = WORTH[name] * (1 if name == "knn_test_top1" else values.mean())
    best = max(scored, key=lambda row: row[name])
    what = "kNN accuracy" if name == "knn_test_top1" else "RankMe"
    text = (
        f"From step {later[0]['step']:,} to {later[-1]['step']:,} the {what} changed by "
        f"{_shown(name, change, signed=True)} (a line through {len(later)} evaluations). The best "
        f"was {_shown(name, best[name])} at step {best['step']:,}."
    )
    ended = later[-1]["step"] >= total_steps
    if change > max(worth, 2 * error):
        advice = (
            " A new run with more steps would probably be better." if ended else " Let it go on."
        )
        return Verdict("good", "Still improving", text + advice)
    if change < -max(worth, 2 * error):
        advice = " Use the checkpoint of the best step, or train for fewer steps."
        return Verdict("warning", "Getting worse", text + advice)
    return Verdict("good", "Levelled off", text + " More steps of this kind would change little.")


def _change(steps: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """The rise of a line through points from the first to the last, and its standard error."""
    x = (steps - steps[0]) / max(steps[-1] - steps[0], 1)
    slope, offset = np.polyfit(x, values, 1)
    rest = values - slope * x - offset
    variance = rest @ rest / max(len(x) - 2, 1) / max(((x - x.mean()) ** 2).sum(), 1e-12)
    return float(slope), float(np.sqrt(variance))


def _shown(name: str, value: float, signed: bool = False) -> str:
    sign = "+" if signed else ""
    if name == "knn_test_top1":
        return f"{100 * value:{sign}.1f} points" if signed else f"{value:.1%}"
    return f"{value:{sign}.1f}"


def facts(
    workdir: paths.AnyPath, run: run_lib.Run, step: int, rows: list[dict[str, Any]]
) -> dict[str, str]:
    """What was trained, by name, as text."""
    config, record = run.config, paths.read_record(workdir)
    images = run.data.get("num_examples")
    found = {
        "Data": f"{run.data['name']} ({images:,} images)" if images else run.data["name"],
        "Classes": str(run.data["num_classes"] or "no labels"),
        "Encoder": f"{config.encoder.name} at {config.data.image_size} pixels",
        "Objective": config.objective.name,
        "Batch": f"{config.batch_size:,} images",
        "Steps": f"{step:,} of {run.total_steps:,} ({step / run.steps_per_epoch:.1f} epochs)",
        "Optimizer": f"{config.optimizer.name}, rate {config.optimizer.base_learning_rate:g}",
        "Seed": str(config.seed),
    }
    if taken := seconds(rows, config.batch_size, [step])[0]:
        found["Time in training"] = f"about {timer.duration(taken)}, from the logged images/s"
    if isinstance(record.get("computed_by"), dict):
        found["Computed by"] = run_lib.describe(record["computed_by"])
    versions = record.get("versions")
    if isinstance(versions, dict):
        found["Versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return found


def seconds(
    rows: list[dict[str, Any]], batch_size: int, steps: list[int]
) -> list[float] | list[None]:
    """The time of the updates up to some steps, from their images per second; None if not logged.

    Without evaluations and checkpoints. Behind the last logged step, the mean rate holds on.
    """
    at, taken = [0], [0.0]
    for row in rows:
        if rate := row.get("images_per_second"):
            taken.append(taken[-1] + (row["step"] - at[-1]) * batch_size / rate)
            at.append(row["step"])
    if len(at) == 1:
        return [None] * len(steps)
    known = np.interp(steps, at, taken)
    return (known * np.maximum(np.array(steps) / at[-1], 1)).tolist()
