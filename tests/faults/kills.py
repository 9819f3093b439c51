"""kill -9 at random moments, again and again in one run, in every phase of it."""

import signal
import time
from collections.abc import Callable

from . import comparison
from .moments import Moments, plan
from .processes import Run
from .tally import Tally

SPARE = 2  # additional kills, because a run may end before its moment comes


def kill_repeatedly(
    run: Run, undisturbed: comparison.Result, kills: int, seed: int, log: Callable[[str], None]
) -> Tally:
    """Kills a run at least `kills` times, then lets it end, and compares."""
    moments = Moments(plan(kills + SPARE, seed), undisturbed.metrics[-1]["step"], seed)
    tally = Tally("`kill -9` in one run")
    met: list[str] = []
    for phase in moments.phases:
        with run.start() as program:
            if moments.wait(phase, program, run):
                program.send(signal.SIGKILL)
                met.append(phase)
                seconds = time.monotonic() - program.started
                log(
                    f"kill {len(met)}, {phase}: {seconds:.2f} s after the start, "
                    f"step {program.step()} printed last"
                )
            elif program.finish() != 0:
                tally.lose(f"not resumed after kill {len(met)}: {program.end()}")
                return tally
        tally.message = program.resumed_line() or tally.message
    phases = ", ".join(f"{met.count(phase)} {phase}" for phase in dict.fromkeys(met))
    tally.fault = f"`kill -9`, {len(met)} times in one run ({phases})"
    if len(met) < kills:
        tally.lose(f"killed only {len(met)} times, not {kills}: the run is too short")
    else:
        comparison.complete_and_compare(tally, run, undisturbed, times=len(met), must_resume=False)
    return tally
