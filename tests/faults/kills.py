"""kill -9 at random moments, again and again in one run, in every phase of it."""

import signal
import time
from collections.abc import Callable

from . import comparison
from .moments import Moments, plan
from .processes import Run
from .tally import Tally


def kill_again_and_again(
    run: Run, undisturbed: comparison.Result, kills: int, seed: int, log: Callable[[str], None]
) -> Tally:
    """Kills a run so many times, then lets it end, and compares."""
    moments = Moments(plan(kills, seed), undisturbed.readings[-1]["step"], seed)
    tally = Tally("`kill -9` in one run")
    killed = 0
    for phase in moments.phases:
        with run.start() as program:
            if moments.wait(phase, program, run):
                program.send(signal.SIGKILL)
                killed += 1
                seconds = time.monotonic() - program.started
                log(f"kill {killed}, {phase}: {seconds:.2f} s after the start, {program.where()}")
            elif program.finish() != 0:
                tally.lose(f"no way on after kill {killed}: {program.end()}")
                return tally
        tally.said = program.said("Going on from") or tally.said
    tally.fault = f"`kill -9`, {killed} times in one run ({moments})"
    last = run.complete()
    if killed < kills:
        tally.lose(f"killed only {killed} times of {kills}: the run is too short")
    elif last.finish() == 0:
        tally.count(
            comparison.difference(undisturbed, comparison.result(run.workdir)), times=killed
        )
    else:
        tally.lose(f"no way on after kill {killed}: {last.end()}")
    return tally
