"""SIGTERM and SIGINT at random moments: the program saves and exits; the same command resumes."""

import signal
import time
from collections.abc import Callable

from . import comparison
from .moments import Moments, plan
from .processes import Run
from .tally import Tally

MAX_SECONDS = 30.0  # from the signal to the exit; schedulers give no more


def stop_repeatedly(
    run: Run,
    number: signal.Signals,
    undisturbed: comparison.Result,
    stops: int,
    seed: int,
    log: Callable[[str], None],
) -> Tally:
    """Stops a run `stops` times by a signal, then lets it end, and compares."""
    moments = Moments(plan(stops, seed), undisturbed.metrics[-1]["step"], seed)
    tally = Tally(f"{number.name}, {stops} times in one run ({moments})")
    stopped, longest, lost = 0, 0.0, ""
    for phase in moments.phases:
        with run.start() as program:
            signalled = moments.wait(phase, program, run)
            sent = time.monotonic()
            program.send(number)
            code = program.finish()
        if not signalled and code == 0:
            continue
        stopped += 1
        seconds = time.monotonic() - sent
        log(
            f"{number.name} {stopped}, {phase}: exit code {code} after {seconds:.2f} s, "
            f"step {program.step()} printed last"
        )
        saved = program.line_with(r"saved at step \d+")
        if saved:
            tally.message = saved
            longest = max(longest, seconds)
        # Without an update since the last checkpoint, it ends as any program does.
        if code not in ((0,) if saved else (0, 130, 143, -number)):
            lost = f"{number.name} while {phase}: {program.end()}"
        if program.line_with("Traceback"):
            lost = f"{number.name} while {phase}: a traceback: {program.end()}"
        if seconds > MAX_SECONDS:
            lost = f"{number.name} while {phase}: took {seconds:.0f} s to exit"
    tally.message += f" At most {longest:.1f} s from the signal to the exit."
    comparison.complete_and_compare(tally, run, undisturbed, times=stopped, must_resume=False)
    if lost:
        tally.equal = 0
        tally.losses.append(lost)
    return tally
