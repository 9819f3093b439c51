r"""Writes one HTML file about a run: its health, its accuracy, and a map of its images.

byol-jax report RUN [--output=FILE] [--step=N] [--images=10000] \
    [--baselines=random,pixels|none] [--data=SOURCE] [--data_dir=DIR] [--split=NAME] \
    [--test_split=NAME] [--cpu_devices=N] [--import=MODULE]

RUN is the --workdir of a pre-training run.

The file opens in a browser without a network, and holds small copies of the images that it shows:
share it only with those who may see them. Labels are used where there are any; none are needed.

docs/report.md describes the page, and how long it takes.
"""

import sys

from absl import flags

from byol_jax.cli import app, import_flag, shared_flags

RUN = flags.DEFINE_string("run", None, "RUN: the --workdir of a pre-training run.")
OUTPUT = flags.DEFINE_string("output", None, "The file; RUN/report.html by default.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
IMAGES = flags.DEFINE_integer(
    "images",
    10_000,
    "Of each split at most; of more, these are drawn at random.",
    lower_bound=2,
    upper_bound=10_000,
)
BASELINES = shared_flags.define_baselines(["random", "pixels"])
DATA = flags.DEFINE_string(
    "data", None, "A source of images, such as folder:PATH; the run's by default."
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data; the run's by default.")
SPLIT = flags.DEFINE_string("split", None, "Whose images are shown; the run's by default.")
TEST_SPLIT = flags.DEFINE_string(
    "test_split",
    None,
    "To test kNN on, and to look for near-duplicates of the images that are shown; the run's by "
    "default, or 'test' of --data if it has one. Empty for none.",
)
CPU_DEVICES = shared_flags.define_cpu_devices()
IMPORT = import_flag.define()


def main() -> None:
    """Writes the page as the flags say."""
    shared_flags.use_cpu_devices(CPU_DEVICES)
    import_flag.apply(IMPORT)

    from byol_jax import report

    written = report.write(
        RUN.value,
        OUTPUT.value,
        source=DATA.value,
        data_dir=DATA_DIR.value,
        split=SPLIT.value,
        test_split=TEST_SPLIT.value,
        step=STEP.value,
        images=IMAGES.value,
        baselines=tuple(BASELINES.value),
        log=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(f"written to {written}")


if __name__ == "__main__":
    app.run(main, "RUN")
