"""kill -9 at random moments, again and again in one run, in every phase of it."""

import signal
import time
from collections.abc import Callable

from . import comparison
from .moments import Moments, plan
from .processes import Run
from .tally import Tally

SPARE = 2


def kill_again_and_again(
    run: Run, undisturbed: comparison.Result, kills: int, seed: int, log: Callable[[str], None]
) -> Tally:
    """Kills a run so many times or a few more, then lets it end, and compares."""
    # Some more than are wanted: a run may end before its moment has come.
    moments = Moments(plan(kills + SPARE, seed), undisturbed.readings[-1]["step"], seed)
    tally = Tally("`kill -9` in one run")
    met: list[str] = []
    killed = 0
    for phase in moments.phases:
        with run.start() as program:
            if moments.wait(phase, program, run):
                program.send(signal.SIGKILL)
                killed += 1
                met.append(phase)
                seconds = time.monotonic() - program.started
                log(f"kill {killed}, {phase}: {seconds:.2f} s after the start, {program.where()}")
            elif program.finish() != 0:
                tally.lose(f"no way on after kill {killed}: {program.end()}")
                return tally
        tally.said = program.said("Resuming from") or tally.said
    phases = ", ".join(f"{met.count(phase)} {phase}" for phase in dict.fromkeys(met))
    tally.fault = f"`kill -9`, {killed} times in one run ({phases})"
    last = run.complete()
    if killed < kills:
        tally.lose(f"killed only {killed} times, not {kills}: the run is too short")
    elif last.finish() == 0:
        tally.count(
            comparison.difference(undisturbed, comparison.result(run.workdir)), times=killed
        )
    else:
        tally.lose(f"no way on after kill {killed}: {last.end()}")
    return tally
