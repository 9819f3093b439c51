"""Tries every fault and prints the table; exit code 1 if anything was lost.

    python -m tests.faults [--kills=20] [--seed=0] [--only=WORD ...] [--output=docs/faults.md]

Two programs run at a time, each in its own folder.
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

# Before anything imports jax, here and in the programs, which share their compiled code.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from . import comparison, damage, disk, images, kills, leftovers, page, pods, stops
from .processes import Run
from .tally import Tally

AT_A_TIME = 2


def faults(arguments: argparse.Namespace, scratch: Path, log: Callable[[str], None]) -> dict:
    """Every fault: its name, and a function that tries it; the longest first."""
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
        return stops.stop_repeatedly(run(number.name), number, wanted, times, arguments.seed, log)

    def damaged(name: str) -> damage.Damaged:
        return damage.Damaged(undisturbed.workdir, folder(name))

    def read_back(kind: str) -> Tally:
        copies = damaged(kind)
        return damage.read_back(copies, kind, copies.files, log)

    pod = pods.pod(run("pod"))  # undisturbed
    training = threading.Lock()

    def with_two(fault: Callable[..., Tally]) -> Tally:
        name = fault.__name__
        with training:  # once for both faults
            failure = "" if pod.workdir.exists() else pods.complete(pod)
        if failure:
            tally = Tally(f"of two processes: {name}")
            tally.lose(f"two processes, undisturbed: {failure}")
            return tally
        return fault(pods.pod(run(name)), comparison.result(pod.workdir), rng(name), log)

    return {
        "kill": lambda: kills.kill_repeatedly(
            run("kill"), wanted, arguments.kills, arguments.seed, log
        ),
        "train on": lambda: damage.train_on(damaged("train on"), 8, rng("train on"), log),
        "SIGTERM": lambda: stopped(signal.SIGTERM, 5),
        "SIGINT": lambda: stopped(signal.SIGINT, 5),
        **{kind: lambda kind=kind: read_back(kind) for kind in damage.DAMAGES},
        "config": lambda: leftovers.cut_config(damaged("config"), log),
        "metrics": lambda: leftovers.cut_metrics(damaged("metrics"), log),
        "garbled": lambda: leftovers.garble_metrics(damaged("garbled"), log),
        "incomplete": lambda: leftovers.incomplete_checkpoint(damaged("incomplete"), log),
        "delete": lambda: leftovers.delete_while_running(run("delete"), wanted, rng("delete"), log),
        "full": lambda: disk.full_disk(folder("full"), wanted, log),
        "read-only": lambda: disk.read_only(folder("read-only"), wanted, log),
        "permission": lambda: disk.without_permission(run("permission"), wanted, log),
        "pod kill": lambda: with_two(pods.kill_one),
        "pod stop": lambda: with_two(pods.stop_one),
        "image": lambda: images.break_and_restore(folder("image"), rng("image"), log),
        "skip": lambda: images.skip_and_kill(folder("skip"), rng("skip"), log),
    }


def guarded(name: str, attempt: Callable[[], Tally]) -> Tally:
    """The result of an attempt; one that raises an error is lost."""
    try:
        return attempt()
    except Exception as error:
        tally = Tally(name)
        tally.lose(f"{name}: {error!r}")
        return tally


def main() -> None:
    """Runs the command line of the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="times that the long run is killed")
    parser.add_argument("--seed", type=int, default=0, help="for the moments and the choices")
    parser.add_argument("--only", action="append", help="faults whose name contains this")
    parser.add_argument("--output", type=Path, help="the page to write the table into")
    arguments = parser.parse_args()
    started = time.monotonic()
    printing = threading.Lock()

    def log(text: str) -> None:
        with printing:
            print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)

    with tempfile.TemporaryDirectory(prefix="byol_jax_faults_") as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/compiled"
        attempts = faults(arguments, Path(folder), log)
        if arguments.only:
            attempts = {k: v for k, v in attempts.items() if any(o in k for o in arguments.only)}
        with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
            tallies = list(pool.map(guarded, attempts, attempts.values()))

    for tally in tallies:
        # Also if the folder is seen from another mount namespace.
        tally.message = re.sub(rf"(/proc/\d+/root)?{re.escape(folder)}", "DIR", tally.message)
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
