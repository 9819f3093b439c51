"""SIGTERM and SIGINT at random moments: the program saves and leaves, and goes on when told to."""

import re
import signal
import time
from collections.abc import Callable

from . import comparison
from .moments import Moments, plan
from .processes import Run
from .tally import Tally

SECONDS_TO_LEAVE = 30.0  # what schedulers give


def stop_again_and_again(
    run: Run,
    number: signal.Signals,
    undisturbed: comparison.Result,
    stops: int,
    seed: int,
    log: Callable[[str], None],
) -> Tally:
    """Stops a run so many times by a signal, then lets it end, and compares."""
    moments = Moments(plan(stops, seed), undisturbed.readings[-1]["step"], seed)
    tally = Tally(f"{number.name}, {stops} times in one run ({moments})")
    stopped, longest, lost = 0, 0.0, ""
    for phase in moments.phases:
        with run.start() as program:
            signalled = moments.wait(phase, program, run)
            asked = time.monotonic()
            program.send(number)
            code = program.finish()
        if not signalled and code == 0:
            continue
        stopped += 1
        seconds = time.monotonic() - asked
        log(
            f"{number.name} {stopped}, {phase}: left with {code} after {seconds:.2f} s, "
            f"{program.where()}"
        )
        saved = re.search(r"saved at step (\d+)", program.said("Stopped and saved"))
        if saved:
            tally.said = saved.string
            longest = max(longest, seconds)
        # Where nothing has been done since the last checkpoint, it ends as any program does.
        if code not in ((0,) if saved else (0, 130, 143, -number)):
            lost = f"{number.name} while {phase}: left with {code}: {program.end()}"
        if program.said("Traceback"):
            lost = f"{number.name} while {phase}: a traceback: {program.end()}"
        if seconds > SECONDS_TO_LEAVE:
            lost = f"{number.name} while {phase}: took {seconds:.0f} s to leave"
    tally.said += f" At most {longest:.1f} s from the signal to the exit."
    last = run.complete()
    if last.finish() == 0:
        lost = lost or comparison.difference(undisturbed, comparison.result(run.workdir))
        tally.count(lost, times=stopped)
    else:
        tally.lose(f"no way on after {number.name} {stopped}: {last.end()}")
    return tally
