r"""Fine-tunes a pre-trained encoder on labels: a classifier, all of whose weights are trained.

byol-jax finetune --checkpoint=DIR --workdir=OUT [--data=SOURCE] [--data_dir=DIR] \
    [--train_split=NAME] [--test_split=NAME] [--labels=1.0] [--label_list=FILE] \
    [--recipe=semi_supervised|transfer] [--learning_rates=RATE,...] [--epochs=NUMBER,...] \
    [--weight_decays=DECAY,...] [--batch_size=NUMBER] [--seed=0] [--from_scratch] [--step=N] \
    [--on_decode_error=error|skip] [--stopped_exit_code=0] [--cpu_devices=N] [--import=MODULE]

Trains a classifier with each combination of learning rate, epochs and weight decay, chooses the
best on held-out training images (a tenth of them, at most 10,009), and tests it. --recipe says
what is tried, as in two experiments of the paper; other flags change parts of it:

    semi_supervised   rates .005, .01, .02, .05, .1; 30 and 50 epochs; no decay; batch 1024
    transfer          7 rates from .0001 to .1, each with no decay and 7 decays from 1e-6 to 1e-3,
                      divided by the rate; 20,000 steps; batch 256. The best is trained again on the
                      held-out images too, and then tested

--labels=0.01 trains on a hundredth of the labels of each class; --label_list names a file with the
names of the images to train on, one on each line. The same command again resumes. Writes the
accuracy, OUT/finetune.json, and OUT/classifier:

    byol_jax.load("OUT/classifier").predict(images)
    byol-jax export --checkpoint=OUT/classifier --output=ONNX --format=onnx
"""

import json
from collections.abc import Callable
from typing import Any

from absl import flags

from byol_jax.cli import app, import_flag, shared_flags
from byol_jax.errors import ConfigError, DataError

CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "The --workdir of a pre-training run, an exported encoder, or a file of weights of "
    "torchvision's ResNets or timm's ViTs and ConvNeXts.",
)
STEP = flags.DEFINE_integer("step", None, "Checkpoint of the run; the newest by default.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that is written.")
DATA = flags.DEFINE_string(
    "data", None, "tfds:NAME, folder:PATH, npz:PATH, embedded; or the run's."
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data; the run's by default.")
TRAIN_SPLIT = flags.DEFINE_string("train_split", None, "To train on; the run's by default.")
TEST_SPLIT = flags.DEFINE_string("test_split", None, "To test on; the run's by default, or 'test'.")
LABELS = flags.DEFINE_float(
    "labels", 1.0, "Share of the labels of each class to train on.", lower_bound=0, upper_bound=1
)
LABEL_LIST = flags.DEFINE_string("label_list", None, "File of the images to train on, one a line.")
RECIPE = flags.DEFINE_enum(
    "recipe", "semi_supervised", ["semi_supervised", "transfer"], "Which settings are tried."
)
TRIED = shared_flags.define_tried()
SEED = flags.DEFINE_integer(
    "seed", 0, "Of everything random.", lower_bound=0, upper_bound=2**31 - 1
)
ON_DECODE_ERROR = flags.DEFINE_enum(
    "on_decode_error",
    "error",
    ["error", "skip"],
    "What to do about images that cannot be decoded: stop, or leave them out.",
)
STOPPED = shared_flags.define_stopped_exit_code()
FROM_SCRATCH = flags.DEFINE_bool(
    "from_scratch", False, "Start from random weights, to see what pre-training was worth."
)
CPU_DEVICES = shared_flags.define_cpu_devices()
IMPORT = import_flag.define()
flags.mark_flags_as_required(["checkpoint", "workdir"])


def main() -> int:
    """Fine-tunes as the flags say; returns the exit code."""
    if RECIPE.value == "transfer" and (LABELS.value != 1 or LABEL_LIST.value):
        raise ConfigError(
            "--recipe=transfer trains on all labels in the end: leave out --labels and "
            "--label_list, or choose --recipe=semi_supervised."
        )
    shared_flags.use_cpu_devices(CPU_DEVICES)
    import_flag.apply(IMPORT)

    from byol_jax import data
    from byol_jax.runs import paths, processes
    from byol_jax.train.finetune import sweep as sweep_lib
    from byol_jax.train.finetune.choices import RECIPES
    from byol_jax.train.signals import stop_requests

    recipe = shared_flags.recipe(RECIPES[RECIPE.value], TRIED)
    encoder = _encoder()
    train, test, crop = _sources(encoder)
    if LABEL_LIST.value:
        names = _lines(LABEL_LIST.value)
        fitted, others = data.listed(train, names)
        print(f"{fitted.num_examples} images of {len(names)} names")
        if others is None:
            fitted, held_out = data.hold_out(fitted)
        else:
            _, held_out = data.hold_out(others)
    else:
        fitted, held_out = data.hold_out(train)
    fitted = data.some_of_each_class(fitted, LABELS.value, SEED.value)
    sweep = sweep_lib.of_recipe(
        recipe,
        fitted,
        train,
        encoder=encoder,
        held_out=held_out,
        test=test,
        crop=crop,
        seed=SEED.value,
        from_scratch=FROM_SCRATCH.value,
        left_out=_print_left_out() if ON_DECODE_ERROR.value == "skip" else None,
    )
    workdir = paths.path(WORKDIR.value)
    print(
        f"{len(sweep.choices)} choices, {sweep.images} images in all: {fitted.num_examples} to "
        f"train on, {held_out.num_examples} to choose on, {test.num_examples} to test on",
        flush=True,
    )
    advice = "make --batch_size smaller"
    with processes.translate_errors(advice), stop_requests() as stop:
        report = sweep_lib.run(sweep, workdir, stop, lambda line: print(line, flush=True))
    if report is None:
        return STOPPED.value
    low, high = report["interval"]
    print(
        f"{report['data']}: top-1 {100 * report['top1']:.1f}% (95%: {100 * low:.1f} to "
        f"{100 * high:.1f}) with {json.dumps(report['choice'])}"
    )
    print(f"written to {workdir / 'finetune.json'} and {workdir / 'classifier'}")
    return 0


def _print_left_out() -> Callable[[str], None]:
    """A function that prints each message once."""
    printed = set()

    def left_out(message: str) -> None:
        if message not in printed:
            printed.add(message)
            print(f"left out: {message}", flush=True)

    return left_out


def _lines(path: str) -> list[str]:
    from byol_jax.runs import paths

    try:
        lines = paths.path(path).read_text().splitlines()
        return [line.strip() for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"--label_list={path} cannot be read ({error}).") from error


def _encoder() -> Any:
    import byol_jax
    from byol_jax.export.convert.weights import open_weights
    from byol_jax.runs import paths

    if paths.path(CHECKPOINT.value).is_file():
        if STEP.value is not None:
            raise ConfigError("--step is of a run, and --checkpoint names a file: leave it out.")
        return open_weights(CHECKPOINT.value)
    return byol_jax.load(CHECKPOINT.value, STEP.value).encoder


def _sources(encoder: Any) -> tuple[Any, Any, Any]:
    """Training and test images, and how training views are cropped: as in pre-training."""
    from ml_collections import ConfigDict

    from byol_jax import data
    from byol_jax.runs import config as config_lib
    from byol_jax.runs import kinds
    from byol_jax.runs.kinds import images

    kinds.require_images(encoder.kind.name, "finetune")
    record = encoder.config["training"].get("config") or {}
    of_run = record.get("data", {})
    spec = DATA.value or of_run.get("source")
    if spec in (None, config_lib.UNKNOWN_SOURCE):
        raise ConfigError(
            f"{CHECKPOINT.value} does not name its training data: name labelled images with --data."
        )
    if spec != of_run.get("source"):
        of_run = {"dir": of_run.get("dir")}  # the name of a split has no meaning for other data
    options = {
        "data_dir": DATA_DIR.value or of_run.get("dir") or None,
        "channels": encoder.config["channels"],
        "value_range": encoder.config.get("value_range", ()),
    }
    train = data.open_source(
        spec, TRAIN_SPLIT.value or of_run.get("train_split") or "train", **options
    )
    if train.num_classes is None:
        raise DataError(
            f"{train.name} has no labels to train on: name labelled images with --data."
        )
    test = data.open_source(spec, TEST_SPLIT.value or of_run.get("test_split") or "test", **options)
    crop = images.crop(ConfigDict({"crop": record["crop"]})) if record else data.Crop()
    return train, data.match_classes(train, test), crop


if __name__ == "__main__":
    app.run(main)
