"""Contenders measured in turn, in one process: A B A B.

What slows the machine for a while then slows all of them, and a ratio, taken turn by turn, keeps
what the single numbers lose.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Turn = Callable[[], float]  # does a fixed piece of work; returns the seconds of what counts


class Spread(NamedTuple):
    """The median of some turns, the lowest and the highest."""

    median: float
    low: float
    high: float


def in_turn(
    contenders: Mapping[str, Turn],
    *,
    seconds: float,
    fewest: int = 3,
    most: int = 20,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Lets each contender have its turn, round after round, in the same order.

    One turn of each comes first and is not counted: it compiles, fills caches and starts workers,
    and says on standard error how long that took.

    Args:
      contenders: by name.
      seconds: no round begins after so many, but for the fewest.
      fewest: rounds, at least 1.
      most: rounds.
      clock: seconds from any origin.

    Returns:
      For each name what its turns returned, a round at each place.
    """
    for name, turn in contenders.items():
        began = clock()
        turn()
        print(f"{name}: under way after {clock() - began:.1f} s", file=sys.stderr, flush=True)
    took = {name: [] for name in contenders}
    start = clock()
    for done in range(most):
        if done >= fewest and clock() - start > seconds:
            break
        for name, turn in contenders.items():
            took[name].append(turn())
    return took


def repeated(
    work: Callable[[], Any],
    wait: Callable[[Any], object],
    *,
    seconds: float = 0.2,
    clock: Callable[[], float] = time.perf_counter,
) -> Turn:
    """A turn of so many calls of `work` that they fill some time; it counts the seconds of one.

    On an accelerator calls return before their work is done, so the last result is waited for, once
    in a turn: after each call that would measure the way there and back. The first turn, which does
    not count, is two calls: one compiles, and the other tells how long a call takes.

    Args:
      work: what to do.
      wait: is given what the last call returned.
      seconds: of a turn, about.
      clock: seconds from any origin.
    """
    times = 0

    def calls(count: int) -> float:
        start = clock()
        for _ in range(count):
            result = work()
        wait(result)
        return (clock() - start) / count

    def turn() -> float:
        nonlocal times
        if times:
            return calls(times)
        calls(1)
        of_one = calls(1)
        times = times_for(seconds, of_one)
        return of_one

    return turn


def spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def rates(seconds: Sequence[float], units: float) -> Spread:
    """Units a second, where a turn of `units` took so many seconds."""
    return spread([units / each for each in seconds])


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """One contender's values over another's, round by round.

    Raises:
      ValueError: they were not measured in the same rounds.
    """
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def times_for(seconds: float, of_one: float) -> int:
    """How often to do what takes `of_one` seconds, to fill so many; at least once."""
    return max(1, math.ceil(seconds / max(of_one, 1e-9)))
