r"""Recommends items to users, by a run on interactions, or measures how well it does.

byol-jax recommend --checkpoint=DIR [--step=N] [--split=test|val] [--data=csv:FILE] \
    [--baselines=random,popularity,item_knn,bpr|none]
byol-jax recommend --checkpoint=DIR --output=FILE.csv [--users=ID,...] [--top=10] [--step=N] \
    [--data=csv:FILE]

Without --output it ranks, for each user, all items that are new to the user, and prints recall,
NDCG and hit rate of the held-out one, for k = 10 and 20, beside baselines: the same encoder with
random weights; how often an item occurs; items that are similar by their users; and matrix
factorisation by BPR, with as many epochs and features as the run, and the learning rate of three
that is best on `val` (so its numbers on `val` itself are too good). It writes
DIR/eval/recommend-SPLIT.json.

With --output it writes a table of user, rank, item and score: items that the user has in none of
the splits.
"""

import csv
import importlib
import json
from pathlib import Path
from typing import Any

from absl import flags

from byol_jax.cli import app
from byol_jax.errors import CheckpointError, ConfigError, DataError

BASELINE_NAMES = ("random", "popularity", "item_knn", "bpr")

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The --workdir of a run on interactions.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
DATA = flags.DEFINE_string("data", None, "csv:FILE, where the file of the run is now.")
SPLIT = flags.DEFINE_enum("split", "test", ["test", "val"], "The interactions to predict.")
BASELINES = flags.DEFINE_list(
    "baselines", list(BASELINE_NAMES), f"Some of {', '.join(BASELINE_NAMES)}; or none."
)
OUTPUT = flags.DEFINE_string("output", None, "The CSV file of recommendations to write.")
USERS = flags.DEFINE_list("users", None, "For --output: ids of users; all by default.")
TOP = flags.DEFINE_integer("top", 10, "For --output: how many items.", lower_bound=1)
flags.mark_flag_as_required("checkpoint")


def main() -> None:
    """Measures recommendations, or writes some."""
    baselines = [] if BASELINES.value == ["none"] else BASELINES.value
    for name in baselines:
        if name not in BASELINE_NAMES:
            raise ConfigError(f"--baselines={name} is not one of {', '.join(BASELINE_NAMES)}.")
    if {"item_knn", "bpr"} & set(baselines) and OUTPUT.value is None:
        importlib.import_module("implicit")  # says now that it is not installed
    if USERS.value is not None and OUTPUT.value is None:
        raise ConfigError("--users is for --output: add it, or leave --users out.")

    from byol_jax.runs import inputs, paths
    from byol_jax.runs import run as run_lib
    from byol_jax.runs.kinds import Interactions
    from byol_jax.runs.recommender import Recommender

    trained = run_lib.restore(paths.path(CHECKPOINT.value), STEP.value)
    config = trained.run.config
    if config.data.kind != Interactions.name:
        raise ConfigError(f"--checkpoint is of {config.data.kind}, not of interactions.")
    config = config.copy_and_resolve_references()
    config.data.source = DATA.value or config.data.source
    source = inputs.open_split(config, "train" if OUTPUT.value else SPLIT.value)
    if source.fingerprint() != trained.run.data["fingerprint"]:
        raise DataError(
            f"{config.data.source} has changed since the run began, and what is held out with it: "
            "name the file that the run was trained on with --data=csv:FILE."
        )
    if OUTPUT.value is not None:
        _write_recommendations(Recommender(trained, source), source)
        return
    rows = {"byol": Recommender(trained, source).scores}
    rows |= _baselines(baselines, trained, source)
    _report(rows, source, int(trained.state.step))


def _baselines(names: list[str], trained: Any, source: Any) -> dict[str, Any]:
    """Scores by the name of a baseline."""
    from byol_jax.evaluate import recommendation
    from byol_jax.runs import run as run_lib
    from byol_jax.runs.recommender import Recommender

    run, sizes = trained.run, (len(source.users), len(source.items))
    train = source.splits["train"]
    epochs = -(-run.total_steps // run.steps_per_epoch)
    initial = run_lib.initial_state(trained.learner, run.config)
    untrained = trained._replace(state=initial)
    make = {
        "random": lambda: Recommender(untrained, source).scores,
        "popularity": lambda: recommendation.popularity(train, sizes[1]),
        "item_knn": lambda: recommendation.item_knn(train, *sizes),
        "bpr": lambda: recommendation.bpr(
            train, source.splits["val"], *sizes, run.config.encoder.features, epochs
        ),
    }
    return {name: make[name]() for name in names}


def _report(rows: dict[str, Any], source: Any, step: int) -> None:
    """Prints the table of all rows, and writes it."""
    from byol_jax import evaluate
    from byol_jax.evaluate.recommendation import recommendation
    from byol_jax.runs import paths

    found = {name: recommendation(row, source.pairs, source.seen) for name, row in rows.items()}
    print(f"recommend on {source.name}: {found['byol']['users']} users, step {step}")
    for line in evaluate.table(found):
        print(line)
    at = "" if STEP.value is None else f"-step{STEP.value}"
    path = paths.path(CHECKPOINT.value) / "eval" / f"recommend-{SPLIT.value}{at}.json"
    report = {"protocol": "recommend", "step": step, "data": source.name, "details": found}
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}.") from error
    print(f"written to {path}")


def _write_recommendations(recommender: Any, source: Any) -> None:
    """Writes the items of the highest scores for each user."""
    import numpy as np

    from byol_jax.evaluate import recommendation

    numbers = {user: number for number, user in enumerate(source.users)}
    users = list(dict.fromkeys(source.users if USERS.value is None else USERS.value))
    for user in users:
        if user not in numbers:
            raise ConfigError(f"--users={user} is no user of {source.name}.")
    seen, count = np.concatenate([*source.splits.values()]), 0
    path, some = Path(OUTPUT.value), recommendation.USERS_AT_A_TIME
    try:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["user", "rank", "item", "score"])
            for start in range(0, len(users), some):
                of = users[start : start + some]
                chosen = np.array([numbers[user] for user in of])
                best = recommendation.top(recommender.scores, chosen, seen, TOP.value)
                for user, items, scores in zip(of, *best, strict=True):
                    for rank, (item, score) in enumerate(zip(items, scores, strict=True), 1):
                        if np.isfinite(score):
                            count += 1
                            writer.writerow([user, rank, source.items[item], f"{score:.6g}"])
    except OSError as error:
        raise ConfigError(f"--output={path} cannot be written: {error.strerror}.") from error
    print(f"{path}: {count} recommendations for {len(users)} users")


if __name__ == "__main__":
    app.run(main)
