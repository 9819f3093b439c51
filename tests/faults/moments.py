"""Random moments in the phases of a run, the same for the same seed as far as a machine allows."""

import random
import re
import time
from collections.abc import Sequence

from .processes import Program, Run

# In turns; "ending" is added for the end of a run.
PHASES = ("training", "starting", "saving", "training", "compiling")
# A moment is at most this many seconds after its phase has begun.
STARTING_SECONDS = 5.0  # imports and opening the data take longer
COMPILING_SECONDS = 3.0
STEP_SECONDS = 0.2
SAVING_SECONDS = 0.1
ENDING_SECONDS = 1.5


def plan(number: int, seed: int) -> list[str]:
    """`number` phases in random order; the last tenth of them at the end of the run."""
    endings = max(1, number // 10)
    phases = [PHASES[i % len(PHASES)] for i in range(number - endings)]
    random.Random(seed).shuffle(phases)
    return phases + ["ending"] * endings


class Moments:
    """The moments at which one run is disturbed, one for each start of it."""

    def __init__(self, phases: Sequence[str], total_steps: int, seed: int):
        """One moment in each of these phases, in this order."""
        self.phases = phases
        self._rng = random.Random(seed)
        self._total = total_steps
        # A little less than twice the mean advance, so that the last ones are not all at the end.
        advancing = sum(phase in ("training", "saving") for phase in phases)
        self._stride = max(2, int(1.6 * total_steps / max(1, advancing)))

    def __str__(self) -> str:
        """The number of moments in each phase."""
        counts = (f"{self.phases.count(phase)} {phase}" for phase in dict.fromkeys(self.phases))
        return ", ".join(counts)

    def wait(self, phase: str, program: Program, run: Run) -> bool:
        """Returns at a moment in this phase of a program that has just been started.

        False if the program ended before.
        """
        if phase == "starting":
            longest = STARTING_SECONDS
        elif phase == "compiling":
            program.wait_until(lambda: bool(program.line_with("Compiling")))
            longest = COMPILING_SECONDS
        elif phase == "ending":
            program.wait_until(lambda: program.step() == self._total)
            longest = ENDING_SECONDS
        else:
            program.wait_until(lambda: bool(program.line_with("Compiling")))
            resumed = re.search(r"step (\d+)", program.resumed_line())
            start = int(resumed[1]) if resumed else 0
            target = min(start + self._rng.randint(1, self._stride), self._total - 10)
            program.wait_until(lambda: program.step() >= target)
            longest = STEP_SECONDS
            if phase == "saving":
                _wait_for_incomplete_checkpoint(program, run)
                longest = SAVING_SECONDS
        time.sleep(self._rng.uniform(0, longest))
        return program.running


def _wait_for_incomplete_checkpoint(program: Program, run: Run) -> None:
    """Returns while a checkpoint is being written, under its temporary name."""
    while program.running and not any(run.workdir.glob("checkpoints/*tmp*")):
        time.sleep(0.001)
