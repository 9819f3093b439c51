"""How well measures without labels rank encoders: Kendall's tau, and regret.

    python -m experiments.ranking --runs=DIR/NAME*[,DIR/OTHER*] [--output=FILE.json]

Reads what `byol-jax evaluate --protocol=label_free,logistic` wrote into each run, for one
checkpoint or several (`--step`). Tau is 1 if a measure orders all encoders as logistic regression
does, 0 if the order says nothing. Regret is how much accuracy is lost by taking the encoder that
is best by the measure, in place of the best one.
"""

import glob
import json
from pathlib import Path

from absl import flags

from byol_jax.cli import app
from byol_jax.errors import DataError
from experiments.ranking.rank import SCORES, lines_of_accuracy, rank, read

RUNS = flags.DEFINE_list("runs", None, "Folders of runs, or patterns of them.", required=True)
OUTPUT = flags.DEFINE_string("output", "", "JSON file to write.")


def main() -> None:
    """Prints and writes the rankings."""
    found = [path for pattern in RUNS.value for path in sorted(glob.glob(pattern))]
    encoders = [encoder for path in found for encoder in read(Path(path))]
    if len(encoders) < 3:
        raise DataError(
            f"{len(encoders)} evaluated encoders are too few to rank: run `byol-jax evaluate "
            "--protocol=label_free,logistic` on three runs or more, and name them by --runs."
        )
    rankings = {name: rank(score, encoders) for name, score in SCORES.items()}
    print(f"{len(encoders)} encoders, {lines_of_accuracy(encoders)}")
    for name, ranking in rankings.items():
        print(f"  {name:24s} tau {ranking.tau:5.2f}   regret {100 * ranking.regret:4.1f}%")
    if OUTPUT.value:
        record = {name: ranking._asdict() for name, ranking in rankings.items()}
        Path(OUTPUT.value).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
