"""Evaluates a pre-trained encoder on labels: frozen features, and a simple classifier on top.

python -m byol_jax.cli.evaluate --checkpoint=DIR --protocol=linear|knn [--step=N] \
    [--data=SOURCE] [--data_dir=DIR] [--train_split=NAME] [--test_split=NAME] \
    [--on_decode_error=error|skip]

Raw pixels and the same encoder with random weights are evaluated alike, so that the table shows
what pre-training bought. Writes DIR/eval/PROTOCOL.json; with another step or other data than the
run's own, their names are added to the file's.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from absl import flags

from byol_jax.cli import app
from byol_jax.errors import UserError

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The --workdir of a pre-training run.")
PROTOCOL = flags.DEFINE_string("protocol", None, "linear or knn.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
DATA = flags.DEFINE_string("data", None, "tfds:NAME, folder:, npz:PATH, embedded; or the run's.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data; the run's by default.")
TRAIN_SPLIT = flags.DEFINE_string("train_split", None, "To fit on; the run's by default.")
TEST_SPLIT = flags.DEFINE_string("test_split", None, "To test on; the run's by default, or 'test'.")
ON_BAD = flags.DEFINE_enum(
    "on_decode_error",
    None,
    ["error", "skip"],
    "Images that cannot be decoded; the run's by default.",
)
flags.mark_flags_as_required(["checkpoint", "protocol"])

PIXEL_SIZE = 32  # larger images are shrunk to this before their pixels are used as features


def main() -> None:
    """Evaluates as the flags say."""
    from byol_jax import data, evaluate, parallel
    from byol_jax.runs import inputs, paths
    from byol_jax.runs import run as run_lib

    if PROTOCOL.value not in evaluate.PROTOCOLS:
        known = ", ".join(evaluate.PROTOCOLS)
        raise UserError(f"--protocol={PROTOCOL.value} is not one of {known}.")
    workdir = paths.path(CHECKPOINT.value)
    run, learner, state = run_lib.restore(workdir, STEP.value)
    config = run.config.copy_and_resolve_references()
    config.data.source = DATA.value or config.data.source
    config.data.dir = DATA_DIR.value or config.data.dir
    config.data.on_decode_error = ON_BAD.value or config.data.on_decode_error
    source = inputs.open_split(config, TRAIN_SPLIT.value or config.data.train_split)
    if source.num_classes is None:
        raise UserError(
            f"{source.name} has no labels to evaluate on: name labelled images with --data."
        )
    test_source = inputs.open_split(config, TEST_SPLIT.value or config.data.test_split or "test")
    test_source = data.match_classes(source, test_source)

    embed_with = parallel.embedder(learner)
    fresh = run_lib.initial_state(learner, config)
    size, batch_size = config.data.image_size, inputs.eval_batch_size(config)
    encoders = {
        "byol": (lambda images: embed_with(state)(images, batch_size), size),
        "random_init": (lambda images: embed_with(fresh)(images, batch_size), size),
        "pixels": (evaluate.pixels, min(size, PIXEL_SIZE)),
    }
    # The same images are met for each kind of features: told once.
    left_out: dict[str, None] = {}
    bad = left_out.setdefault if config.data.on_decode_error == "skip" else None
    results = {}
    for name, (featurise, image_size) in encoders.items():
        train_set, test_set = (
            evaluate.collect(
                featurise,
                inputs.eval_batches(config, split, image_size=image_size, on_decode_error=bad),
            )
            for split in (source, test_source)
        )
        results[name] = evaluate.PROTOCOLS[PROTOCOL.value](
            *train_set, *test_set, num_classes=source.num_classes
        )

    report = {
        "protocol": PROTOCOL.value,
        "data": test_source.name,
        "train_examples": source.num_examples,
        "test_examples": test_source.num_examples,
        "left_out": list(left_out),
        "step": int(state.step),
        "top1": {name: result["top1"] for name, result in results.items()},
        "details": results,
    }
    # Another checkpoint or other data than the run's own must not overwrite its result.
    name = PROTOCOL.value
    if STEP.value is not None:
        name += f"-step{STEP.value}"
    if any(flag.value for flag in (DATA, TRAIN_SPLIT, TEST_SPLIT)):
        name += "-" + re.sub(r"[^\w.]+", "-", test_source.name)
    path = workdir / "eval" / f"{name}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error
    for name in left_out:
        print(f"left out: {name}")
    for line in table(report):
        print(line)
    print(f"written to {path}")


def table(report: dict[str, Any]) -> Iterator[str]:
    """The report in words: a row for each kind of features, a column for each number."""
    yield (
        f"{report['protocol']} on {report['data']}: {report['test_examples']} images, "
        f"step {report['step']}"
    )
    details = report["details"]
    columns = {"top-1": report["top1"]}
    if report["protocol"] == "knn":
        columns = {
            f"k = {k}": {name: found["top1_by_k"][k] for name, found in details.items()}
            for k in details["byol"]["top1_by_k"]
        }
    yield " " * 14 + "".join(f"{title:>9s}" for title in columns)
    for name in report["top1"]:
        cells = "".join(f"{100 * values[name]:8.1f}%" for values in columns.values())
        yield f"  {name:12s}{cells}"


if __name__ == "__main__":
    app.run(main)
