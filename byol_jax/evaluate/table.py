"""The results of a protocol as text: a row for each encoder, a column for each number."""

from collections.abc import Iterator
from typing import Any


def table(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Lines of text.

    Args:
      results: what a protocol returned, by the name of the encoder.
    """
    rows = {name: dict(cells(result)) for name, result in results.items()}
    titles = list(dict.fromkeys(title for row in rows.values() for title in row))
    widths = [
        max(len(title), *(len(row.get(title, "")) for row in rows.values())) for title in titles
    ]
    first = max(12, *map(len, rows))

    def line(name: str, row: list[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        return "  ".join([f"  {name:{first}s}", *padded]).rstrip()

    yield line("", titles)
    for name, row in rows.items():
        yield line(name, [row.get(title, "") for title in titles])


def cells(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Title and text of each number of a result of a protocol that has a column."""
    if "shots" in result:
        for shot, found in result["top1_by_shots"].items():
            yield f"{shot} per class", f"{_percent(found['mean'])} +-{100 * found['std']:.1f}"
        return
    if "top1_by_k" in result:
        yield f"k = {result['k']}", _percent(result["top1"])
    elif "recall" in result:
        for k, recall in result["recall"].items():
            yield f"recall@{k}", _percent(recall)
        if "median_rank" in result:
            yield "median rank", f"{result['median_rank']:.4g}"
        for k, ndcg in result.get("ndcg", {}).items():
            yield f"NDCG@{k}", _percent(ndcg)
        for k, share in result.get("hit_rate", {}).items():
            yield f"hit@{k}", _percent(share)
    elif "top1" in result:
        yield "top-1", _percent(result["top1"])
    if "interval" in result:
        low, high = result["interval"]
        yield "95%", f"{100 * low:.1f} to {100 * high:.1f}"
    for key, title in {
        "top5": "top-5",
        "mean_per_class": "mean per class",
        "map": "mAP",
        "miou": "mIoU",
        "pixel_accuracy": "pixels",
    }.items():
        if key in result:
            yield title, _percent(result[key])
    for key, title in {
        "nmi": "NMI",
        "ari": "ARI",
        "rankme": "RankMe",
        "lidar": "LiDAR",
        "alpha_req": "alpha-ReQ",
        "alignment": "alignment",
        "uniformity": "uniformity",
    }.items():
        if result.get(key) is not None:
            yield title, f"{result[key]:.3g}"

    for k, top1 in result.get("top1_by_k", {}).items():
        if k != result["k"]:
            yield f"k = {k}", _percent(top1)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
