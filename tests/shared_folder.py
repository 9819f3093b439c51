"""One of several processes, each with a folder of its own where one is to be shared."""

from pathlib import Path

from absl import flags

from experiments import cli

FOLDER = flags.DEFINE_string("folder", None, "Where to make them.")
ADDRESS = flags.DEFINE_string("coordinator_address", None, "As of experiments.pretrain.")
PROCESSES = flags.DEFINE_integer("num_processes", None, "Likewise.")
PROCESS = flags.DEFINE_integer("process_id", None, "Likewise.")


def main() -> None:
    """Joins the others, and looks whether they share it."""
    from byol_jax import hosts

    hosts.SHARED_SECONDS = 1
    hosts.join(ADDRESS.value, PROCESSES.value, PROCESS.value)
    own = Path(FOLDER.value, str(PROCESS.value))
    own.mkdir()
    hosts.check_shared(own)


if __name__ == "__main__":
    cli.run(main)
