r"""Decodes every image of a source as training does, to find bad ones before a long run.

byol-jax check-data --data=folder:PATH|glob:PATTERN|list:FILE|tfds:NAME|npz:PATH|embedded \
    [--split=NAME] [--data_dir=DIR] [--channels=N] [--workers=N]
byol-jax check-data --config=cifar10 [--config.key=value ...]

Lists the images that cannot be decoded, and those that can but look wrong (`odd:`). With a
config's own source, both its training and its test images are checked. Exit codes: 0 every image
can be decoded, 1 some cannot.
"""

import os
from typing import TYPE_CHECKING

from absl import flags

from byol_jax.cli import app, config_flag
from byol_jax.errors import ConfigError, DataError

if TYPE_CHECKING:
    from byol_jax.data.source import Source

CONFIG = config_flag.define()
DATA = flags.DEFINE_string(
    "data", None, "folder:PATH, glob:PATTERN, list:FILE and others; the config's by default."
)
SPLIT = flags.DEFINE_string("split", None, "Split to check; by default those of the config.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the TFDS data sets.")
CHANNELS = flags.DEFINE_integer(
    "channels", None, "1 for gray images, 3 (the default) for colour, others."
)
WORKERS = flags.DEFINE_integer(
    "workers", os.cpu_count() or 1, "Number of images to decode at a time.", lower_bound=1
)


def main() -> None:
    """Checks the images; raises `DataError` if some cannot be decoded."""
    if CONFIG.value is None and DATA.value is None:
        raise ConfigError("name the images to check: --data=folder:PATH, or --config=NAME.")
    if not (DATA.value or CONFIG.value.data.source):
        raise ConfigError(
            "config.data.source is empty: name the images with --data=folder:PATH or "
            "--config.data.source=folder:PATH."
        )
    # Imported here, so that wrong flags are answered at once.
    from byol_jax.runs import config as config_lib
    from byol_jax.runs import inputs, kinds

    config = (CONFIG.value or config_lib.default()).copy_and_resolve_references()
    kinds.require_images(config.data.kind, "check-data")
    config.data.source = DATA.value or config.data.source
    config.data.dir = DATA_DIR.value or config.data.dir
    # The embedded images are gray.
    gray = config.data.source == "embedded"
    config.data.channels = CHANNELS.value or (1 if gray else config.data.channels)
    splits = [SPLIT.value or config.data.train_split]
    # Another source than the config's need not have this split.
    if not SPLIT.value and not DATA.value and config.data.test_split:
        splits.append(config.data.test_split)
    sources = [inputs.open_split(config, split) for split in splits]
    failures = [failure for source in sources if (failure := _check_source(source))]
    if failures:
        raise DataError(
            f"{', '.join(failures)} cannot be decoded; repair or remove them, or train with "
            "--config.data.on_decode_error=skip."
        )


def _check_source(source: "Source") -> str | None:
    """Lists bad and odd images; returns "N of M images of NAME", or None if none is bad."""
    import tqdm

    from byol_jax.data.check import check

    for warning in source.warnings:
        print(warning)
    bad = odd = 0
    findings = check(source, WORKERS.value)
    for finding in tqdm.tqdm(
        findings, source.name, source.num_examples, unit="image", disable=None
    ):
        if finding.decode_error is not None:
            bad += 1
            tqdm.tqdm.write(f"{finding.name}: {finding.decode_error}")
        elif finding.warnings:
            odd += 1
            tqdm.tqdm.write(f"odd: {finding.name}: {'; '.join(finding.warnings)}")
    total = f"{source.num_examples} images of {source.name}"
    if bad:
        return f"{bad} of {total}"
    print(f"All {total} can be decoded" + (f"; {odd} of them odd, as listed." if odd else "."))
    return None


if __name__ == "__main__":
    app.run(main)
