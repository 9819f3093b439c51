"""Looks at every image of a source before a long run, decoding it as training does.

python -m byol_jax.cli.check_data --data=folder:PATH|tfds:NAME|npz:PATH|embedded [--split=NAME] \
    [--data_dir=DIR] [--channels=1|3] [--workers=N]
python -m byol_jax.cli.check_data --config=byol_jax/presets/cifar10.py [--config.key=value ...]

Lists what cannot be decoded, and what can but is odd (`odd:`). Of a config's own source, both the
images to train on and those to test on are looked at. Exit codes: 0 every image can be decoded, 1
some cannot.
"""

import os
from typing import TYPE_CHECKING

import tqdm
from absl import flags
from ml_collections import ConfigDict, config_flags

from byol_jax.cli import app
from byol_jax.errors import UserError

if TYPE_CHECKING:
    from byol_jax.data.source import Source

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of byol_jax/presets/: its data are looked at.", lock_config=True
)
DATA = flags.DEFINE_string("data", None, "tfds:NAME, folder:, npz:PATH, embedded; or the config's.")
SPLIT = flags.DEFINE_string("split", None, "Which split; by default what the config names.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.")
CHANNELS = flags.DEFINE_integer("channels", None, "1 for gray images, 3 (the default) for colour.")
WORKERS = flags.DEFINE_integer(
    "workers", os.cpu_count() or 1, "How many images to decode at a time.", lower_bound=1
)


def main() -> None:
    """Checks as the flags say."""
    has_config = isinstance(CONFIG.value, ConfigDict)
    if flags.FLAGS["config"].present and not has_config:
        path = flags.FLAGS["config"].config_filename
        raise UserError(f"--config={path} cannot be loaded: is it a file with a get_config()?")
    if not has_config and DATA.value is None:
        raise UserError("say what to look at: --data=folder:PATH, say, or --config=FILE.")
    if not (DATA.value or CONFIG.value.data.source):
        raise UserError(
            "config.data.source is empty: say where the images are with --data=folder:PATH or "
            "--config.data.source=folder:PATH."
        )
    # Here, so that a wrong flag is answered at once.
    from byol_jax.runs import config as config_lib
    from byol_jax.runs import inputs

    config = CONFIG.value if has_config else config_lib.default()
    config = config.copy_and_resolve_references()
    config.data.source = DATA.value or config.data.source
    config.data.dir = DATA_DIR.value or config.data.dir
    # The embedded images are gray, whatever a default says.
    gray = config.data.source == "embedded"
    config.data.channels = CHANNELS.value or (1 if gray else config.data.channels)
    splits = [SPLIT.value or config.data.train_split]
    # Of another source than the config's, it may well not be a split.
    if not SPLIT.value and not DATA.value and config.data.test_split:
        splits.append(config.data.test_split)
    sources = [inputs.open_split(config, split) for split in splits]
    sentences = [sentence for source in sources if (sentence := _look_through(source))]
    if sentences:
        raise UserError(
            f"{', '.join(sentences)} cannot be decoded; repair or remove them, or train with "
            "--config.data.on_decode_error=skip."
        )


def _look_through(source: "Source") -> str | None:
    """Lists what is bad or odd; returns how many are bad, in words, None if all are good."""
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
