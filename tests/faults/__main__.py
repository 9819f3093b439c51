"""Tries every fault and prints the table; exit code 1 where anything was lost.

    python -m tests.faults [--kills=20] [--seed=0] [--only=WORD ...] [--output=docs/faults.md]

Two programs run at a time, in folders of their own.
"""

import argparse
import concurrent.futures
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

# Before anything imports jax, here and in the programs. All of them share what was compiled.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from . import comparison, damage, disk, images, kills, leftovers, page, pods, stops
from .processes import Run
from .tally import Tally

AT_A_TIME = 2


def faults(arguments: argparse.Namespace, scratch: Path, log: Callable[[str], None]) -> dict:
    """Every fault: a name, and a function that tries it. The longest come first."""
    undisturbed = Run(scratch / "undisturbed")
    program = undisturbed.complete()
    if program.finish() != 0:
        sys.exit(f"The undisturbed run failed: {program.end()}")
    wanted = comparison.result(undisturbed.workdir)
    log(f"the undisturbed run: {program.end()}")

    def folder(name: str) -> Path:
        (scratch / name).mkdir()
        return scratch / name

    def run(name: str) -> Run:
        return Run(scratch / name)

    def rng(name: str) -> random.Random:
        return random.Random(f"{arguments.seed} {name}")

    def stopped(number: signal.Signals, times: int) -> Tally:
        return stops.stop_again_and_again(
            run(number.name), number, wanted, times, arguments.seed, log
        )

    def damaged(name: str) -> damage.Damaged:
        return damage.Damaged(undisturbed.workdir, folder(name))

    def read_back(kind: str) -> Tally:
        copies = damaged(kind)
        return damage.read_back(copies, kind, copies.files, log)

    whole = pods.pod(run("pod"))
    making = threading.Lock()

    def of_two(fault: Callable[..., Tally]) -> Tally:
        name = fault.__name__
        with making:  # once for both
            trouble = "" if whole.workdir.exists() else pods.complete(whole)
        if trouble:
            tally = Tally(f"of two processes: {name}")
            tally.lose(f"two processes, undisturbed: {trouble}")
            return tally
        return fault(pods.pod(run(name)), comparison.result(whole.workdir), rng(name), log)

    return {
        "kill": lambda: kills.kill_again_and_again(
            run("kill"), wanted, arguments.kills, arguments.seed, log
        ),
        "train on": lambda: damage.train_on(damaged("train on"), 8, rng("train on"), log),
        "SIGTERM": lambda: stopped(signal.SIGTERM, 5),
        "SIGINT": lambda: stopped(signal.SIGINT, 5),
        **{kind: lambda kind=kind: read_back(kind) for kind in damage.HARMS},
        "config": lambda: leftovers.cut_config(damaged("config"), log),
        "readings": lambda: leftovers.cut_readings(damaged("readings"), log),
        "garbled": lambda: leftovers.garble_readings(damaged("garbled"), log),
        "half": lambda: leftovers.half_a_checkpoint(damaged("half"), log),
        "delete": lambda: leftovers.delete_while_running(run("delete"), wanted, rng("delete"), log),
        "full": lambda: disk.full_disk(folder("full"), wanted, log),
        "read-only": lambda: disk.read_only(folder("read-only"), wanted, log),
        "permission": lambda: disk.without_permission(run("permission"), wanted, log),
        "pod kill": lambda: of_two(pods.kill_one),
        "pod stop": lambda: of_two(pods.stop_one),
        "image": lambda: images.break_and_mend(folder("image"), rng("image"), log),
        "skip": lambda: images.skip_and_kill(folder("skip"), rng("skip"), log),
    }


def guarded(name: str, attempt: Callable[[], Tally]) -> Tally:
    """What an attempt counts; one that breaks off is lost."""
    try:
        return attempt()
    except Exception as error:
        tally = Tally(name)
        tally.lose(f"{name}: {error!r}")
        return tally


def main() -> None:
    """As the module's docstring says."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how often the long run is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of the choices")
    parser.add_argument("--only", action="append", help="faults whose name has this in it")
    parser.add_argument("--output", type=Path, help="the page that gets the table")
    arguments = parser.parse_args()
    started = time.monotonic()
    speaking = threading.Lock()

    def log(text: str) -> None:
        with speaking:
            print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)

    with tempfile.TemporaryDirectory(prefix="byol_jax_faults_") as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/compiled"
        attempts = faults(arguments, Path(folder), log)
        if arguments.only:
            attempts = {k: v for k, v in attempts.items() if any(o in k for o in arguments.only)}
        with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
            tallies = list(pool.map(guarded, attempts, attempts.values()))

    for tally in tallies:
        # Also where the folder is seen from another mount namespace.
        tally.said = re.sub(rf"(/proc/\d+/root)?{re.escape(folder)}", "DIR", tally.said)
    losses = [loss for tally in tallies for loss in tally.losses]
    table = page.table(tallies)
    facts = page.facts(time.monotonic() - started, arguments.seed)
    print("", table, "", facts, "", *losses, sep="\n")
    if arguments.output:
        page.write(arguments.output, table, facts)
    tried, lost = sum(t.tried for t in tallies), sum(t.lost for t in tallies)
    print(f"{tried} faults tried, {lost} lost.")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
