"""Evaluates a pre-trained encoder on labels: frozen features, and a simple classifier on top.

python -m experiments.evaluate --checkpoint=DIR --protocol=linear|knn [--step=N] \
    [--data=SOURCE] [--data_dir=DIR] [--train_split=NAME] [--test_split=NAME]

Raw pixels and the encoder as it was before training are evaluated alike, so that the table shows
what pre-training bought. Writes DIR/eval/PROTOCOL.json.
"""

import json
from pathlib import Path

from absl import flags

from byol_jax.errors import UserError
from experiments import cli

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The --workdir of a pre-training run.")
PROTOCOL = flags.DEFINE_string("protocol", None, "linear or knn.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
DATA = flags.DEFINE_string("data", None, "tfds:NAME, folder:PATH, embedded; the run's by default.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data; the run's by default.")
TRAIN_SPLIT = flags.DEFINE_string("train_split", None, "To fit on; the run's by default.")
TEST_SPLIT = flags.DEFINE_string("test_split", None, "To test on; the run's by default, or 'test'.")
flags.mark_flags_as_required(["checkpoint", "protocol"])

BATCH_SIZE = 256
PIXEL_SIZE = 32  # larger images are shrunk to this before their pixels are used as features


def main() -> None:
    """Evaluates as the flags say."""
    from byol_jax import evaluate, parallel, runs
    from byol_jax import input as input_lib
    from byol_jax.evaluate import features

    if PROTOCOL.value not in evaluate.PROTOCOLS:
        known = ", ".join(evaluate.PROTOCOLS)
        raise UserError(f"--protocol={PROTOCOL.value} is not one of {known}.")
    workdir = Path(CHECKPOINT.value)
    run, learner, state = runs.restore(workdir, STEP.value)
    config = run.config
    train_source, test_source = (
        input_lib.open_source(
            DATA.value or config.data.source,
            split,
            data_dir=DATA_DIR.value or config.data.dir or None,
            channels=config.data.channels,
        )
        for split in (
            TRAIN_SPLIT.value or config.data.train_split,
            TEST_SPLIT.value or config.data.test_split or "test",
        )
    )
    for source in (train_source, test_source):
        if source.num_classes is None:
            raise UserError(
                f"{source.name} has no labels to evaluate on: name labelled images with --data."
            )
    if train_source.class_names != test_source.class_names:
        raise UserError(
            f"{train_source.name} and {test_source.name} have different classes: choose splits of "
            "one data set."
        )

    embed = parallel.embedder(learner)
    fresh = runs.initial_state(learner, config)
    size = config.data.image_size
    encoders = {
        "byol": (lambda images: embed(state, images, BATCH_SIZE), size),
        "random_init": (lambda images: embed(fresh, images, BATCH_SIZE), size),
        "pixels": (features.pixels, min(size, PIXEL_SIZE)),
    }
    results = {}
    for name, (featurise, image_size) in encoders.items():
        sets = (
            features.collect(
                featurise,
                input_lib.eval_batches(
                    source,
                    batch_size=BATCH_SIZE,
                    image_size=image_size,
                    crop_fraction=config.crop.test_fraction,
                ),
            )
            for source in (train_source, test_source)
        )
        arrays = [array for pair in sets for array in pair]
        results[name] = evaluate.PROTOCOLS[PROTOCOL.value](
            *arrays, num_classes=train_source.num_classes
        )

    report = {
        "protocol": PROTOCOL.value,
        "data": test_source.name,
        "train_examples": train_source.num_examples,
        "test_examples": test_source.num_examples,
        "step": int(state.step),
        "top1": {name: result["top1"] for name, result in results.items()},
        "details": results,
    }
    path = workdir / "eval" / f"{PROTOCOL.value}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error
    print(
        f"{PROTOCOL.value} on {test_source.name}: {test_source.num_examples} images, "
        f"{test_source.num_classes} classes, step {int(state.step)}"
    )
    for name, top1 in report["top1"].items():
        print(f"  {name:12s} {100 * top1:5.1f}%")
    print(f"written to {path}")


if __name__ == "__main__":
    cli.run(main)
