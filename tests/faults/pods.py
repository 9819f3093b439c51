"""Two processes train one run; one of them is killed, or receives SIGTERM."""

import contextlib
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator

from . import comparison
from .processes import Program, Run
from .tally import Tally

PROCESSES = 2
DEVICES = 2  # of each process
MAX_SECONDS = 60.0  # from the loss of a process to the exit of the other
# Fewer steps, because two processes communicate more than they compute.
FLAGS = ("--config.steps=60",)


def pod(run: Run) -> Run:
    """The run with flags and environment for two processes with two devices each."""
    devices = f"--xla_force_host_platform_device_count={DEVICES}"
    return Run(run.workdir, (*run.flags, *FLAGS), {"XLA_FLAGS": devices})


@contextlib.contextmanager
def started(run: Run) -> Iterator[list[Program]]:
    """Both processes of the run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                run.start(
                    f"--coordinator_address=localhost:{port}",
                    f"--num_processes={PROCESSES}",
                    f"--process_id={i}",
                )
            )
            for i in range(PROCESSES)
        ]


def complete(run: Run) -> str:
    """Trains it to the end; returns '', or how the processes ended otherwise."""
    with started(run) as programs:
        codes = [program.finish() for program in programs]
    return "" if codes == [0] * PROCESSES else " and ".join(p.end() for p in programs)


def kill_one(
    run: Run, undisturbed: comparison.Result, rng: random.Random, log: Callable[[str], None]
) -> Tally:
    """Kills each process with -9: the other must exit by itself, and the run resumes with both."""
    tally = Tally("`kill -9` of one process of two")
    longest = 0.0
    for victim in range(PROCESSES):
        with started(run) as programs:
            _wait_for_steps(programs, rng.randint(1, 20))
            time.sleep(rng.uniform(0, 0.2))
            programs[victim].send(signal.SIGKILL)
            other = programs[1 - victim]
            sent = time.monotonic()
            code = other.finish()
            seconds = time.monotonic() - sent
        longest = max(longest, seconds)
        log(f"process {victim} killed: the other exited after {seconds:.1f} s, {other.end()}")
        tally.message = other.error() or tally.message
        if seconds > MAX_SECONDS or code == 0 or not other.error():
            tally.lose(f"process {1 - victim} after {seconds:.0f} s: {other.end()}")
        else:
            tally.count("")
    tally.message += f" The other exited within {longest:.0f} s."
    return _finish(tally, run, undisturbed)


def stop_one(
    run: Run, undisturbed: comparison.Result, rng: random.Random, log: Callable[[str], None]
) -> Tally:
    """Sends SIGTERM to each process: both stop at the same step."""
    tally = Tally("SIGTERM to one process of two")
    for victim in reversed(range(PROCESSES)):
        with started(run) as programs:
            _wait_for_steps(programs, rng.randint(1, 20))
            programs[victim].send(signal.SIGTERM)
            codes = [program.finish() for program in programs]
        saved = programs[0].line_with(r"saved at step \d+")
        ends = " and ".join(program.end() for program in programs)
        log(f"SIGTERM to process {victim}: {ends}")
        tally.message = saved
        if codes != [0] * PROCESSES or not saved:
            tally.lose(ends)
        else:
            tally.count("")
    return _finish(tally, run, undisturbed)


def _wait_for_steps(programs: list[Program], steps: int) -> None:
    """Waits until process 0 has printed this many more steps."""
    first = programs[0]
    first.wait_until(lambda: first.step() > 0)
    start = first.step()
    first.wait_until(lambda: first.step() >= start + steps)


def _finish(tally: Tally, run: Run, undisturbed: comparison.Result) -> Tally:
    failure = complete(run)
    if failure:
        tally.lose(f"not resumed: {failure}")
        return tally
    lost = comparison.difference(undisturbed, comparison.result(run.workdir))
    if lost:
        tally.equal = 0
        tally.losses.append(lost)
    return tally
