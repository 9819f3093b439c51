"""Which settings of several runs differ."""

from typing import Any, NamedTuple

from byol_jax.runs import run as run_lib
from byol_jax.runs import tree

MAIN = (  # that are shown in any case, and first
    *("data.kind", "data.source", "data.image_size", "encoder.name", "objective.name"),
    *("batch_size", "epochs", "steps", "optimizer.name", "optimizer.base_learning_rate"),
    *("optimizer.weight_decay", "target.rule", "target.tau_base", "seed"),
)
ABSENT = "–"  # of a setting that a run does not have
SHOWN = 100  # characters of a value


class Settings(NamedTuple):
    """Settings by dotted key, each as text by run."""

    differing: dict[str, list[str]]  # MAIN, the others, then those that change no result
    main: dict[str, str]  # those of MAIN that are the same in all runs
    equal: dict[str, str]  # the others


def compare(runs: list[run_lib.Run], records: list[dict[str, Any]]) -> Settings:
    """The settings of runs.

    Args:
      runs: two or more.
      records: the content of their config.json, whose versions and devices are compared too.
    """
    all_of_them = [
        tree.flat(run.config) | _facts(run, record)
        for run, record in zip(runs, records, strict=True)
    ]
    keys = dict.fromkeys(key for settings in all_of_them for key in settings)
    differing, equal = {}, {}
    for key in sorted(keys, key=_place):
        values = [settings.get(key, ABSENT) for settings in all_of_them]
        if any(value != values[0] for value in values):
            differing[key] = [_text(value) for value in values]
        else:
            equal[key] = _text(values[0])
    main = {key: equal.pop(key) for key in MAIN if key in equal}
    return Settings(differing, main, equal)


def _facts(run: run_lib.Run, record: dict[str, Any]) -> dict[str, Any]:
    """What is no setting and may differ too."""
    found = {"training examples": run.data.get("num_examples"), "classes": run.data["num_classes"]}
    found["fingerprint of the data"] = (run.data.get("fingerprint") or "unknown")[:12]
    found |= {"updates in all": run.total_steps, "processes": record.get("processes", ABSENT)}
    if isinstance(record.get("computed_by"), dict):
        found["computed by"] = run_lib.describe(record["computed_by"])
    if isinstance(record.get("versions"), dict):
        found |= {f"version of {name}": text for name, text in record["versions"].items()}
    return found


def _place(key: str) -> tuple[int, int, str]:
    if key in MAIN:
        return 0, MAIN.index(key), key
    return 1 + key.startswith(run_lib.MUTABLE_ON_RESUME), 0, key


def _text(value: Any) -> str:
    if value is None:
        return "none"
    text = f"{value:,}" if type(value) is int else str(value)
    return (text if len(text) <= SHOWN else f"{text[:SHOWN]}…") or "empty"
