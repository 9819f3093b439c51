"""One of several processes that save and restore together, for test_checkpoint_processes.py.

The arguments are a folder for each process, and one that all share.
"""

import argparse
from pathlib import Path

import jax

from byol_jax import parallel
from byol_jax.runs import manifest, processes
from byol_jax.runs.checkpoint import Checkpoints, RetentionPolicy


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--coordinator_address")
    parser.add_argument("--num_processes", type=int)
    parser.add_argument("--process_id", type=int)
    arguments = parser.parse_args()
    processes.join(arguments.coordinator_address, arguments.num_processes, arguments.process_id)
    from test_checkpoint import ABSTRACT, state_of  # runs computations, so only after joining

    def restore(checkpoints: Checkpoints) -> None:
        saved = checkpoints.restore_newest(ABSTRACT, lambda text: print("log:", text))
        same = manifest.describe(saved.state) == manifest.describe(state_of(saved.step))
        here = {leaf.device for leaf in jax.tree.leaves(saved.state)} == {jax.local_devices()[0]}
        print("restored", saved.step, saved.loop_state, same, here, flush=True)

    *own, shared = arguments.folders
    with Checkpoints(own[jax.process_index()], RetentionPolicy(5)) as checkpoints:
        restore(checkpoints)
    with Checkpoints(shared, RetentionPolicy(5)) as checkpoints:
        for step in (3, 6):
            state = parallel.replicate(state_of(step))
            checkpoints.save(step, state, {"skipped": step / 4})
        checkpoints.wait()
        restore(checkpoints)
    processes.shutdown(failed=False)


if __name__ == "__main__":
    main()
