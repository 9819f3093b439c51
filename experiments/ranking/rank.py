"""Measures without labels as scores of encoders, and how well a score ranks them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import kendalltau

# Scores by measure: higher is better, according to its paper.
SCORES: dict[str, Callable[[dict[str, float]], float | None]] = {
    "RankMe": lambda found: found["rankme"],
    "LiDAR": lambda found: found["lidar"],
    "alpha-ReQ": lambda found: None if found["alpha_req"] is None else -abs(found["alpha_req"] - 1),
    "alignment": lambda found: -found["alignment"],
    "uniformity": lambda found: -found["uniformity"],
    "alignment + uniformity": lambda found: -found["alignment"] - found["uniformity"],
}


class Ranking(NamedTuple):
    """How well a measure ranks encoders."""

    tau: float  # Kendall's tau-b, from -1 to 1
    regret: float  # in accuracy, 0 to 1
    encoders: int


def read(run: Path) -> list[tuple[dict[str, float], float]]:
    """The measures and the accuracy of each evaluated checkpoint of a run."""
    encoders = {}  # by step: the last checkpoint may have been evaluated by its number too
    for path in sorted((run / "eval").glob("label_free*.json")):
        other = path.with_name(path.name.replace("label_free", "logistic", 1))
        if other.exists():
            measures, accuracy = json.loads(path.read_text()), json.loads(other.read_text())
            encoders[measures["step"]] = measures["details"]["byol"], accuracy["top1"]["byol"]
    return list(encoders.values())


def rank(
    score: Callable[[dict[str, float]], float | None],
    encoders: list[tuple[dict[str, float], float]],
) -> Ranking:
    """How well a score ranks encoders; those without one are left out, and NaN if all are."""
    pairs: list[tuple[Any, float]] = [(score(found), top1) for found, top1 in encoders]
    pairs = [(value, top1) for value, top1 in pairs if value is not None]
    if not pairs:
        return Ranking(float("nan"), float("nan"), 0)
    values, accuracies = zip(*pairs, strict=True)
    # Of encoders with the same score, any may be taken: the worst counts.
    chosen = min(top1 for value, top1 in pairs if value == max(values))
    return Ranking(
        float(kendalltau(values, accuracies).statistic), max(accuracies) - chosen, len(pairs)
    )


def lines_of_accuracy(encoders: list[tuple[dict[str, float], float]]) -> str:
    """The range of accuracies, as text."""
    accuracies = [top1 for _, top1 in encoders]
    return f"logistic {100 * min(accuracies):.1f}% to {100 * max(accuracies):.1f}%"
