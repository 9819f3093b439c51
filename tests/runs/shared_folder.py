"""One of several processes, each with a folder of its own where one is to be shared."""

from pathlib import Path

from absl import flags

from byol_jax.cli import app

FOLDER = flags.DEFINE_string("folder", None, "Where to make them.")
ADDRESS = flags.DEFINE_string("coordinator_address", None, "As of experiments.pretrain.")
PROCESSES = flags.DEFINE_integer("num_processes", None, "Likewise.")
PROCESS = flags.DEFINE_integer("process_id", None, "Likewise.")


def main() -> None:
    """Joins the others, and looks whether they share it."""
    from byol_jax.runs import processes

    processes.SHARED_SECONDS = 1
    processes.join(ADDRESS.value, PROCESSES.value, PROCESS.value)
    own = Path(FOLDER.value, str(PROCESS.value))
    own.mkdir()
    processes.check_shared(own)


if __name__ == "__main__":
    app.run(main)
