r"""Evaluates a pre-trained encoder.

byol-jax evaluate --checkpoint=DIR --protocol=NAME[,NAME...] [--step=N] \
    [--against=PATH,...] [--baselines=random,pixels|none] [--data=SOURCE] [--data_dir=DIR] \
    [--train_split=NAME] [--test_split=NAME] [--on_decode_error=error|skip] [--cpu_devices=N] \
    [--linear_epochs=80] [--finetune_learning_rates=RATE,...] [--finetune_epochs=NUMBER,...] \
    [--finetune_weight_decays=DECAY,...] [--finetune_batch_size=NUMBER] \
    [--features_dir=DIR] [--features_dtype=float32|bfloat16] [--dry_run] \
    [--stopped_exit_code=0] [--import=MODULE]
byol-jax evaluate --checkpoint=DIR --protocol=dense --data=folder:PATH --masks=PATH \
    [--train_split=train] [--test_split=test] [--unlabelled=255] [--dense_size=N]

    knn         classes by a vote of the nearest training images
    linear      classes by a linear classifier, trained by SGD on random crops and flips: the
                paper's linear evaluation. It takes as long as --linear_epochs passes of the encoder
                over the training images; the same command resumes it. Without raw pixels
    logistic    classes by logistic regression: the paper's transfer protocol
    probe       classes by the linear probe that the run trained along with the encoder
    dense       classes of pixels, by a linear classifier of maps of features: --data=folder:PATH
                with PATH/SPLIT/NAME.jpg, and --masks=PATH2 with PATH2/SPLIT/NAME.png; alone
    finetune    classes by the encoder and a linear classifier, both trained on the labels: with
                each of five learning rates for 30 and 50 epochs, of which held-out training images
                choose. The same command resumes. The table's JSON names the folder of the
                classifier, which `byol_jax.load` opens. `byol-jax finetune` does more
    few_shot    classes from 1, 2, 5, 10 and 25 images of each
    cluster     classes against clusters that are found without labels
    retrieval   whether the nearest test images are of the same class
    label_free  RankMe, LiDAR, alpha-ReQ, alignment and uniformity of training images, which need no
                labels
    cross_modal of examples with two parts, such as an image and a text: whether the nearest text of
                a test image is its own, and the other way round, which needs no labels. The part
                that is asked for is the online network's prediction, and those that are searched
                are the target network's projections, as in the loss. If two parts are identical as
                an encoder sees them, the partner of either counts as right for both. Without raw
                pixels and --against

Baselines show what pre-training added: the same encoder with random weights, and raw pixels of
images shrunk to 32 pixels. --against adds other encoders, each with the image size that it was
trained at: runs, exports, and files of torchvision's ResNets or timm's ViTs and ConvNeXts
(.safetensors, .pth; ImageNet's mean and std). All protocols and encoders share one pass over the
images. Host memory holds the features of all encoders (4 bytes a number), or files in
--features_dir do (2 with --features_dtype=bfloat16); and memory two more copies of one while it is
evaluated, or three of bfloat16. --dry_run prints how long and how large they would be.

Writes DIR/eval/NAME.json for each protocol. With another step, other data or other settings, the
file's name includes them; it ends in -skip if images were left out.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from byol_jax.cli import app, import_flag, shared_flags
from byol_jax.errors import CheckpointError, ConfigError, DataError, UserError

# Those that are not in evaluate.PROTOCOLS.
OTHERS = "label_free", "linear", "probe", "dense", "finetune", "cross_modal"
LABEL_FREE, LINEAR, PROBE, DENSE, FINETUNE, CROSS_MODAL = OTHERS
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The --workdir of a pre-training run.")
PROTOCOL = flags.DEFINE_list("protocol", None, "What to compute, one or several; see above.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
LINEAR_EPOCHS = flags.DEFINE_integer(
    "linear_epochs", 80, "How often linear sees each training image.", lower_bound=1
)
TRIED = shared_flags.define_tried("finetune_")
MASKS = flags.DEFINE_string("masks", None, "For dense: the folder of masks.")
UNLABELLED = flags.DEFINE_list(
    "unlabelled", ["255"], "For dense: numbers of a mask that stand for no class."
)
DENSE_SIZE = flags.DEFINE_integer(
    "dense_size",
    None,
    "For dense: pixels that images are resized to; by default those of each encoder.",
    lower_bound=1,
)
BASELINES = shared_flags.define_baselines(["random", "pixels"])
AGAINST = flags.DEFINE_list("against", [], "Other encoders to compare with: paths.")
DATA = flags.DEFINE_string(
    "data", None, "A source of the run's kind, such as folder:PATH; the run's by default."
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data; the run's by default.")
TRAIN_SPLIT = flags.DEFINE_string("train_split", None, "To fit on; the run's by default.")
TEST_SPLIT = flags.DEFINE_string("test_split", None, "To test on; the run's by default, or 'test'.")
FEATURES_DIR = flags.DEFINE_string(
    "features_dir",
    None,
    "Folder for the features of all encoders, where they do not fit into memory; they are removed "
    "at the end.",
)
FEATURES_DTYPE = flags.DEFINE_enum(
    "features_dtype",
    "float32",
    ["float32", "bfloat16"],
    "Of the files in --features_dir: bfloat16 is half as large, and rounds to 8 bits.",
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print how long and how large the features would be, from a few batches."
)
ON_DECODE_ERROR = shared_flags.define_on_decode_error()
STOPPED = shared_flags.define_stopped_exit_code()
CPU_DEVICES = shared_flags.define_cpu_devices()
IMPORT = import_flag.define()
flags.mark_flags_as_required(["checkpoint", "protocol"])


def main() -> int:
    """Evaluates as the flags say; returns the exit code."""
    from byol_jax import evaluate

    known = [*evaluate.PROTOCOLS, *OTHERS]
    if not PROTOCOL.value:
        raise ConfigError(f"--protocol is empty: name one or several of {', '.join(known)}.")
    for protocol in PROTOCOL.value:
        if protocol not in known:
            raise ConfigError(f"--protocol={protocol} is not one of {', '.join(known)}.")
    for path in AGAINST.value:
        if path in ("", "byol", "random", "pixels", "raw"):
            raise ConfigError(
                f"--against={path} is not a path of its own: name a folder or a file, such as "
                f"./{path or 'PATH'}."
            )
    if FEATURES_DTYPE.value == "bfloat16" and FEATURES_DIR.value is None:
        raise ConfigError(
            "--features_dtype=bfloat16 is of files: name a folder for them with --features_dir."
        )
    shared_flags.check_tried(PROTOCOL.value, TRIED)
    if DENSE in PROTOCOL.value:
        _check_dense()
    shared_flags.use_cpu_devices(CPU_DEVICES)
    import_flag.apply(IMPORT)

    from byol_jax.cli import cross_modal_rows, encoders
    from byol_jax.runs import kinds, paths
    from byol_jax.runs import run as run_lib

    trained = run_lib.restore(paths.path(CHECKPOINT.value), STEP.value)
    config = trained.run.config.copy_and_resolve_references()
    of_images = {LINEAR, DENSE, FINETUNE} & set(PROTOCOL.value)
    if of_images:
        kinds.require_images(config.data.kind, f"--protocol={min(of_images)}")
    if CROSS_MODAL in PROTOCOL.value:
        cross_modal_rows.check(config)
    if DENSE not in PROTOCOL.value:
        sources = _open_sources(config)
    rows = encoders.of_run(trained, BASELINES.value)
    for path in AGAINST.value:
        if path in rows:
            raise ConfigError(f"--against={path} is the name of another row: name ./{path}.")
        rows[path] = encoders.of_path(path, config)
    if DENSE in PROTOCOL.value:
        _dense(rows, config.data.channels, int(trained.state.step))
        return 0
    left_out: dict[str, None] = {}
    parts, sweeps = _prepare(rows, config, sources, left_out)
    _log(f"computed by {run_lib.describe(run_lib.computed_by(config))}")
    if DRY_RUN.value:
        rate, sizes = encoders.estimate(rows, config, sources[0])
        images = sum(sweep.images for sweep in sweeps.values())
        for line in _estimate(rate, sizes, [source.num_examples for source in sources], images):
            print(line)
        return 0
    with _features_dir() as directory:
        frozen = set(PROTOCOL.value) - {FINETUNE, CROSS_MODAL}
        # Of training images, linear and probe read no features; of test images, label_free.
        are_read = (not frozen <= {LINEAR, PROBE}, not frozen <= {LABEL_FREE})
        if frozen:
            _log_sizes(rows)
        splits = [
            encoders.features(rows, config, source, left_out, directory, FEATURES_DTYPE.value)
            if is_read
            else (dict.fromkeys(rows), None)
            for source, is_read in zip(sources, are_read, strict=False)
        ]
        return _run(trained, config, sources, rows, splits, parts, sweeps, left_out)


def _prepare(
    rows: dict[str, Any], config: Any, sources: list[Any], left_out: dict[str, None]
) -> tuple[list[Any], dict[str, Any]]:
    """The parts of the training images to fit on and to choose on, and what finetune trains.

    Both are empty where nothing needs them. Raises UserError before anything is computed.
    """
    from byol_jax import data
    from byol_jax.cli import finetune_rows
    from byol_jax.runs.kinds import images
    from byol_jax.train.finetune.choices import SEMI_SUPERVISED

    if {LINEAR, FINETUNE}.isdisjoint(PROTOCOL.value):
        return [], {}
    parts = data.hold_out(sources[0])
    if FINETUNE not in PROTOCOL.value:
        return parts, {}
    recipe = shared_flags.recipe(SEMI_SUPERVISED, TRIED)
    skipped = left_out.setdefault if config.data.on_decode_error == "skip" else None
    return parts, finetune_rows.sweeps(rows, recipe, parts, *sources, images.crop(config), skipped)


def _log_sizes(rows: dict[str, Any]) -> None:
    from byol_jax.cli import encoders

    for size, mine in encoders.by_size(rows):
        at = "" if size is None else f" at {size} pixels"
        _log(f"computing features of {', '.join(mine)}{at}")


def _estimate(rate: float, sizes: dict[str, int], examples: list[int], images: int) -> list[str]:
    """Lines about time and memory, from images per second and the size of features.

    `images` are those of all updates of finetune, each of which counts as three passes.
    """
    lines = []
    if set(PROTOCOL.value) != {FINETUNE}:
        width, copies = {"float32": (4, 2), "bfloat16": (2, 3)}[FEATURES_DTYPE.value]
        total = sum(examples) * sum(sizes.values()) * width / 1e9
        largest = sum(examples) * max(sizes.values()) * 4 / 1e9
        lines += [
            f"{sum(examples)} images at {rate:.0f} images/s: {sum(examples) / rate / 60:.1f} "
            "minutes for the features",
            f"features: {total:.2f} GB, and {copies * largest:.2f} GB in memory for copies of the "
            "largest while it is evaluated",
        ]
    if LINEAR in PROTOCOL.value:
        minutes = LINEAR_EPOCHS.value * examples[0] / rate / 60
        lines.append(f"{LINEAR}, {LINEAR_EPOCHS.value} epochs: {minutes:.1f} minutes")
    if FINETUNE in PROTOCOL.value:
        minutes = 3 * images / (rate * len(sizes)) / 60
        lines.append(f"{FINETUNE}, {images} images in all updates: about {minutes:.1f} minutes")
    return lines


@contextlib.contextmanager
def _features_dir() -> Iterator[Any]:
    """A folder for features in --features_dir, which is removed at the end; None without it."""
    if FEATURES_DIR.value is None:
        yield None
        return
    try:
        folder = tempfile.TemporaryDirectory(prefix="features-", dir=FEATURES_DIR.value)
    except OSError as error:
        raise DataError(
            f"--features_dir={FEATURES_DIR.value} cannot be used ({error.strerror}): name a folder "
            "with room for the features."
        ) from error
    with folder as name:
        yield Path(name)


def _run(
    trained: Any,
    config: Any,
    sources: list[Any],
    rows: dict[str, Any],
    splits: list[tuple[dict[str, Any], Any]],
    parts: list[Any],
    sweeps: dict[str, Any],
    left_out: dict[str, None],
) -> int:
    """Evaluates by each protocol; prints and writes each result; returns the exit code."""
    from etils import epath

    from byol_jax import evaluate
    from byol_jax.cli import cross_modal_rows, encoders, finetune_rows, linear_rows
    from byol_jax.runs import kinds, paths
    from byol_jax.train import signals

    counts = [
        source.num_examples if labels is None else len(labels)
        for source, (_, labels) in zip(sources, splits, strict=True)
    ]
    step, unit = int(trained.state.step), kinds.of(config).unit

    def report(protocol: str, found: dict[str, dict[str, Any]]) -> None:
        """Prints the table of a protocol and writes its file."""
        messages = dict.fromkeys(text for row in found.values() for text in row.pop("left_out", []))
        record = {"protocol": protocol, "step": step, "left_out": list(left_out | messages)}
        record |= {"train_data": sources[0].name, "train_examples": counts[0]}
        evaluated = 0
        if protocol != LABEL_FREE:
            record |= {"data": sources[1].name, "test_examples": counts[1]}
            record["top1"] = {name: result["top1"] for name, result in found.items()}
            evaluated = 1
        record["details"] = found
        name, count = sources[evaluated].name, counts[evaluated]
        print(f"{protocol} on {name}: {count} {unit}, step {step}")
        for line in evaluate.table(found):
            print(line)
        print(f"written to {_write(record, sources[-1].name)}", flush=True)

    compared = {}
    if CROSS_MODAL in PROTOCOL.value:
        compared = cross_modal_rows.results(trained, BASELINES.value, config, sources[1], left_out)
    for name in left_out:
        print(f"left out: {name}")
    # The others are done in minutes; linear and finetune may take a day.
    others = [name for name in PROTOCOL.value if name not in (LINEAR, FINETUNE, CROSS_MODAL)]
    test = splits[-1][0].copy() if LINEAR in PROTOCOL.value else {}
    views = {}
    if LABEL_FREE in others:
        views = encoders.views(rows, trained.learner.augment, config, sources[0], left_out)
    results, failed = _evaluate(others, list(rows), splits, views, sources[0], trained)
    for protocol, found in results.items():
        report(protocol, found)
    if compared:
        counts[1] = compared["chance"]["queries"]
        report(CROSS_MODAL, compared)
    reasons = [f"{protocol} cannot be computed: {error}" for protocol, error in failed.items()]
    if not parts:
        _raise(reasons)
        return 0
    for reason in reasons:
        _log(reason)
    workdir, folders = paths.path(CHECKPOINT.value) / "eval", []
    with signals.stop_requests() as stop:
        if LINEAR in PROTOCOL.value:
            trained_heads = linear_rows.train(
                rows,
                config,
                parts[0],
                LINEAR_EPOCHS.value,
                left_out,
                workdir / LINEAR,
                stop,
                _log,
            )
            if trained_heads is None:
                return STOPPED.value
            heads, folders = trained_heads
            mine = {name: rows[name] for name in heads}
            held_out = encoders.features(mine, config, parts[1], left_out)
            found = linear_rows.classify(heads, held_out, (test, splits[1][1]), sources[0])
            report(LINEAR, found)
        if FINETUNE in PROTOCOL.value:
            outcome = finetune_rows.run(sweeps, workdir / FINETUNE, stop, _log)
            if outcome is None:
                return STOPPED.value
            found, errors = outcome
            if found:
                report(FINETUNE, found)
            reasons += [f"{FINETUNE} of {name}: {error}" for name, error in errors.items()]
    for folder in folders:  # the checkpoints of heads: now nothing has to resume
        epath.Path(folder).rmtree()
    _raise(reasons)
    return 0


def _raise(reasons: list[str]) -> None:
    """Raises DataError if there are any."""
    if reasons:
        raise DataError(" ".join(reasons))


def _check_dense() -> None:
    """Raises ConfigError unless the flags name images and masks, for `dense` alone."""
    for flag in (DRY_RUN, FEATURES_DIR):
        if flag.value:
            raise ConfigError(f"--{flag.name} is not for --protocol=dense: leave it out.")
    if PROTOCOL.value != [DENSE]:
        raise ConfigError("--protocol=dense is of images with masks: evaluate it alone.")
    if not (DATA.value or "").startswith("folder:") or not MASKS.value:
        raise ConfigError(
            "--protocol=dense needs --data=folder:PATH with PATH/SPLIT/NAME.jpg, and --masks=PATH2 "
            "with PATH2/SPLIT/NAME.png."
        )
    if not all(text.strip().isdigit() for text in UNLABELLED.value):
        raise ConfigError(f"--unlabelled={','.join(UNLABELLED.value)} is not a list of numbers.")


def _dense(rows: dict[str, Any], channels: int, step: int) -> None:
    """Evaluates a linear segmentation of the rows that have maps."""
    from byol_jax import evaluate
    from byol_jax.cli import dense_rows

    splits = TRAIN_SPLIT.value or "train", TEST_SPLIT.value or "test"
    found, counts = dense_rows.segment(
        rows,
        DATA.value.removeprefix("folder:"),
        MASKS.value,
        splits,
        channels=channels,
        unlabelled=[int(text) for text in UNLABELLED.value],
        size=DENSE_SIZE.value,
        log=_log,
    )
    record = {"protocol": DENSE, "step": step, "left_out": [], "details": found}
    record |= {"data": DATA.value, "masks": MASKS.value, "train_examples": counts[0]}
    record |= {"test_examples": counts[1], "splits": splits, "size": DENSE_SIZE.value}
    print(f"{DENSE} on {DATA.value}/{splits[1]}: {counts[1]} images, step {step}")
    for line in evaluate.table(found):
        print(line)
    size = f"{DENSE_SIZE.value}pixels" if DENSE_SIZE.value else ""
    name = "-".join(filter(None, (DATA.value, MASKS.value, splits[1], size, *UNLABELLED.value)))
    print(f"written to {_write(record, name)}")


def _evaluate(
    protocols: list[str],
    encoders: list[str],
    splits: list[tuple[dict[str, Any], Any]],
    views: dict[str, Any],
    source: Any,
    trained: Any,
) -> tuple[dict[str, dict[str, Any]], dict[str, UserError]]:
    """Results by protocol and encoder; and the errors of the protocols that cannot be computed.

    The features are removed from the splits, which are of `encoders.features`.
    """
    import numpy as np

    from byol_jax import evaluate

    results: dict[str, dict[str, Any]] = {protocol: {} for protocol in protocols}
    failed = {}
    for name in encoders if protocols else []:
        arrays = []  # freed when the next encoder is evaluated
        for features, labels in splits:
            found = features.pop(name)
            arrays += [None if found is None else np.asarray(found, np.float32), labels]
        rows, columns = next(array for array in arrays if array is not None).shape
        for protocol in list(results):
            if protocol == PROBE and name != "byol":  # no other encoder has one
                continue
            _log(f"{protocol}: {rows} x {columns} features of {name}")
            try:
                if protocol == LABEL_FREE:
                    found = evaluate.label_free.measures(arrays[0], views.get(name))
                elif protocol == PROBE:
                    kernel, bias = _probe(trained, source)
                    found = evaluate.linear.classify(kernel, bias, *arrays[2:])
                else:
                    found = evaluate.PROTOCOLS[protocol](*arrays, num_classes=source.num_classes)
            except UserError as error:
                failed[protocol] = error
                del results[protocol]
            else:
                results[protocol][name] = found
    return results, failed


def _probe(trained: Any, source: Any) -> tuple[Any, Any]:
    """Kernel and bias of the run's probe; raises DataError if it has other classes, or none."""
    probe = trained.state.online_params.get("probe")
    if probe is None:
        raise DataError("the run was trained without labels, so it has no probe.")
    if trained.run.data["class_names"] != list(source.class_names):
        raise DataError(
            f"the probe knows the classes of {trained.run.data['name']}, not those of "
            f"{source.name}: evaluate it on the run's own data."
        )
    return probe["kernel"], probe["bias"]


def _write(report: dict[str, Any], data: str) -> Any:
    """Writes a report on data of this name; returns its path."""
    from byol_jax.runs import paths

    # Another checkpoint or other data must not overwrite the run's own result.
    name = report["protocol"]
    if STEP.value is not None:
        name += f"-step{STEP.value}"
    if report["protocol"] == LINEAR and LINEAR_EPOCHS.value != LINEAR_EPOCHS.default:
        name += f"-{LINEAR_EPOCHS.value}epochs"
    if report["protocol"] == FINETUNE:
        for key, holder in TRIED.items():
            if value := holder.value:
                text = ",".join(value) if isinstance(value, list) else value
                name += "-" + paths.file_name(f"{key}{text}")
    if any(flag.value for flag in (DATA, DATA_DIR, TRAIN_SPLIT, TEST_SPLIT)):
        parts = "-".join(filter(None, (DATA_DIR.value, TRAIN_SPLIT.value, data)))
        name += "-" + paths.file_name(parts)
    if report["left_out"]:
        name += "-skip"
    path = paths.path(CHECKPOINT.value) / "eval" / f"{name}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}.") from error
    return path


def _open_sources(config: Any) -> list[Any]:
    """The sources to fit on and, unless only label_free is asked for, to test on.

    First sets what the flags override in the config.
    """
    from byol_jax import data
    from byol_jax.runs import inputs

    config.data.source = DATA.value or config.data.source
    if DATA_DIR.value:
        if "dir" not in config.data:
            raise ConfigError(f"--data_dir is for tfds:NAME, not for {config.data.kind}.")
        config.data.dir = DATA_DIR.value
    config.data.on_decode_error = ON_DECODE_ERROR.value or config.data.on_decode_error
    train_source = inputs.open_split(config, TRAIN_SPLIT.value or config.data.train_split)
    if set(PROTOCOL.value) == {LABEL_FREE}:
        return [train_source]
    reads_labels = not set(PROTOCOL.value) <= {LABEL_FREE, CROSS_MODAL}
    if reads_labels and train_source.num_classes is None:
        raise DataError(
            f"{train_source.name} has no labels to evaluate on: name labelled images with --data "
            f"(a single folder is no class), or choose --protocol={LABEL_FREE}."
        )
    test_source = inputs.open_split(config, TEST_SPLIT.value or config.data.test_split or "test")
    if not reads_labels:
        return [train_source, test_source]
    return [train_source, data.match_classes(train_source, test_source)]


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app.run(main)
