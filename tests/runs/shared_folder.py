"""One of several processes, each with its own folder in place of a shared one."""

from pathlib import Path

from absl import flags

from byol_jax.cli import app

FOLDER = flags.DEFINE_string("folder", None, "The parent of the folders.")
ADDRESS = flags.DEFINE_string("coordinator_address", None, "As for pretrain.")
PROCESSES = flags.DEFINE_integer("num_processes", None, "As for pretrain.")
PROCESS = flags.DEFINE_integer("process_id", None, "As for pretrain.")


def main() -> None:
    """Joins the others and checks whether the folder is shared."""
    from byol_jax.runs import processes

    processes.SHARED_SECONDS = 1
    processes.join(ADDRESS.value, PROCESSES.value, PROCESS.value)
    own = Path(FOLDER.value, str(PROCESS.value))
    own.mkdir()
    processes.check_shared(own)


if __name__ == "__main__":
    app.run(main)
