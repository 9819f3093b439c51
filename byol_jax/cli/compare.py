r"""Writes one HTML file with runs side by side: settings that differ, results and curves.

byol-jax compare RUN RUN... [--output=compare.html] [--import=MODULE]

RUN is the --workdir of a pre-training run on any kind of data; it may be unfinished. The page shows
what is in the folders: config.json, metrics.jsonl, and eval/*.json of `byol-jax evaluate` and
`byol-jax transfer`. Nothing is computed. The file opens in a browser without a network.

docs/report.md describes the page.
"""

from absl import flags

from byol_jax.cli import app, import_flag

RUN = flags.DEFINE_multi_string("run", [], "RUN: the --workdir of a run; two or more.")
OUTPUT = flags.DEFINE_string("output", "compare.html", "The file.")
IMPORT = import_flag.define()


def main() -> None:
    """Writes the page."""
    import_flag.apply(IMPORT)

    from byol_jax import report

    written = report.compare(RUN.value, OUTPUT.value)
    print(f"written to {written}")


if __name__ == "__main__":
    app.run(main, "RUN...")
