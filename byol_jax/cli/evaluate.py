r"""Evaluates a pre-trained encoder: a simple classifier on its frozen features.

byol-jax evaluate --checkpoint=DIR --protocol=logistic|knn [--step=N] \
    [--baselines=random_init,pixels] [--data=SOURCE] [--data_dir=DIR] [--train_split=NAME] \
    [--test_split=NAME] [--on_decode_error=error|skip] [--cpu_devices=N] [--import=MODULE]

Baselines show what pre-training added: the same encoder with random weights, and raw pixels of
images shrunk to 32 pixels. All share one pass over the images. --baselines= leaves both out. Host
memory holds the features of all encoders (4 bytes a number), and one more copy while a classifier
is fitted.

Writes DIR/eval/PROTOCOL.json. With another step or other data than the run's, the file's name
includes them; it ends in -skip if images were left out.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

from byol_jax.cli import app, import_flag
from byol_jax.errors import CheckpointError, ConfigError, DataError

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The --workdir of a pre-training run.")
PROTOCOL = flags.DEFINE_string("protocol", None, "logistic (regression) or knn.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
BASELINES = flags.DEFINE_list(
    "baselines", ["random_init", "pixels"], "What to compare with: random_init, pixels, or nothing."
)
flags.register_validator(
    "baselines", {"random_init", "pixels"}.issuperset, "name random_init, pixels, both or neither."
)
DATA = flags.DEFINE_string(
    "data", None, "tfds:NAME, folder:PATH, npz:PATH, embedded; or the run's."
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data; the run's by default.")
TRAIN_SPLIT = flags.DEFINE_string("train_split", None, "To fit on; the run's by default.")
TEST_SPLIT = flags.DEFINE_string("test_split", None, "To test on; the run's by default, or 'test'.")
ON_DECODE_ERROR = flags.DEFINE_enum(
    "on_decode_error",
    None,
    ["error", "skip"],
    "What to do about images that cannot be decoded; as in the run by default.",
)
CPU_DEVICES = flags.DEFINE_integer(
    "cpu_devices",
    None,
    "Devices that JAX divides the CPU into; by default one for each core, at most 16.",
    lower_bound=1,
)
IMPORT = import_flag.define()
flags.mark_flags_as_required(["checkpoint", "protocol"])


def main() -> None:
    """Evaluates as the flags say."""
    from byol_jax import backend, evaluate, parallel
    from byol_jax.runs import inputs, paths
    from byol_jax.runs import run as run_lib

    if PROTOCOL.value == "linear":
        raise ConfigError(
            "--protocol=linear is not available: what was called linear is now --protocol=logistic,"
            " and the paper's linear protocol is not implemented yet."
        )
    if PROTOCOL.value not in evaluate.PROTOCOLS:
        known = ", ".join(evaluate.PROTOCOLS)
        raise ConfigError(f"--protocol={PROTOCOL.value} is not one of {known}.")
    backend.use_cpu_devices(CPU_DEVICES.value or min(backend.cores(), backend.MAX_CPU_DEVICES))
    if CPU_DEVICES.value:
        backend.check_cpu_devices(CPU_DEVICES.value)
    import_flag.apply(IMPORT)
    workdir = paths.path(CHECKPOINT.value)
    run, learner, state = run_lib.restore(workdir, STEP.value)
    config = run.config.copy_and_resolve_references()
    train_source, test_source = _open_sources(config)

    embed_with, batch_size = parallel.embedder(learner), inputs.eval_batch_size(config)

    def embedder(state: Any) -> Callable:
        embed = embed_with(state)  # sends the state to the devices: once, not for every batch
        return lambda images: embed(images, batch_size)

    encoders = {"byol": embedder(state)}
    if "random_init" in BASELINES.value:
        encoders["random_init"] = embedder(run_lib.initial_state(learner, config))
    if "pixels" in BASELINES.value:
        encoders["pixels"] = evaluate.pixels
    _log(f"computed by {run_lib.describe(run_lib.computed_by(config))}")
    _log(f"computing features of {', '.join(encoders)} at {config.data.image_size} pixels")
    left_out: dict[str, None] = {}
    train_features, train_labels = _features(encoders, config, train_source, left_out)
    test_features, test_labels = _features(encoders, config, test_source, left_out)
    results = {}
    for name in encoders:
        rows, columns = train_features[name].shape
        _log(f"{PROTOCOL.value}: {rows} x {columns} features of {name}")
        results[name] = evaluate.PROTOCOLS[PROTOCOL.value](
            train_features.pop(name),  # freed when the next one is evaluated
            train_labels,
            test_features.pop(name),
            test_labels,
            num_classes=train_source.num_classes,
        )

    report = {
        "protocol": PROTOCOL.value,
        "data": test_source.name,
        "train_data": train_source.name,
        "train_examples": len(train_labels),
        "test_examples": len(test_labels),
        "left_out": list(left_out),
        "step": int(state.step),
        "top1": {name: result["top1"] for name, result in results.items()},
        "details": results,
    }
    for name in left_out:
        print(f"left out: {name}")
    for line in table(report):
        print(line)
    # Another checkpoint or other data must not overwrite the run's own result.
    name = PROTOCOL.value
    if STEP.value is not None:
        name += f"-step{STEP.value}"
    if any(flag.value for flag in (DATA, DATA_DIR, TRAIN_SPLIT, TEST_SPLIT)):
        parts = (DATA_DIR.value, TRAIN_SPLIT.value, test_source.name)
        data = re.sub(r"[^\w.]+", "-", "-".join(filter(None, parts)))
        name += f"-{data[-100:]}"  # the names of files are limited
    if left_out:
        name += "-skip"
    path = workdir / "eval" / f"{name}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}.") from error
    print(f"written to {path}")


def _open_sources(config: Any) -> tuple[Any, Any]:
    """The sources to fit on and to test on; first sets what the flags override in the config."""
    from byol_jax import data
    from byol_jax.runs import inputs

    config.data.source = DATA.value or config.data.source
    config.data.dir = DATA_DIR.value or config.data.dir
    config.data.on_decode_error = ON_DECODE_ERROR.value or config.data.on_decode_error
    train_source = inputs.open_split(config, TRAIN_SPLIT.value or config.data.train_split)
    if train_source.num_classes is None:
        raise DataError(
            f"{train_source.name} has no labels to evaluate on: name labelled images with --data."
        )
    test_source = inputs.open_split(config, TEST_SPLIT.value or config.data.test_split or "test")
    return train_source, data.match_classes(train_source, test_source)


def _features(
    encoders: dict[str, Callable], config: Any, source: Any, left_out: dict
) -> tuple[dict[str, Any], Any]:
    """Features by encoder, float32 (n, d), and labels, int32 (n,), in one pass over a source.

    Images that cannot be decoded become keys of `left_out`, if the config skips them.
    """
    import tqdm

    from byol_jax import evaluate
    from byol_jax.runs import inputs

    on_decode_error = left_out.setdefault if config.data.on_decode_error == "skip" else None
    batches = inputs.eval_batches(config, source, on_decode_error=on_decode_error)
    with tqdm.tqdm(
        desc=source.name, total=source.num_examples, unit="image", unit_scale=True, disable=None
    ) as progress:

        def embed(images: Any) -> dict[str, Any]:
            features = {name: encode(images) for name, encode in encoders.items()}
            progress.update(len(images))
            return features

        return evaluate.collect(embed, batches, source.num_examples)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def table(report: dict[str, Any]) -> Iterator[str]:
    """The report as text: a row for each kind of features, a column for each number."""
    yield (
        f"{report['protocol']} on {report['data']}: {report['test_examples']} images, "
        f"step {report['step']}"
    )
    details = report["details"]
    columns = {"top-1": report["top1"]}
    if report["protocol"] == "knn":
        columns = {
            f"k = {k}": {name: result["top1_by_k"][k] for name, result in details.items()}
            for k in details["byol"]["top1_by_k"]
        }
    yield " " * 14 + "".join(f"{title:>9s}" for title in columns)
    for name in report["top1"]:
        cells = "".join(f"{100 * values[name]:8.1f}%" for values in columns.values())
        yield f"  {name:12s}{cells}"


if __name__ == "__main__":
    app.run(main)
