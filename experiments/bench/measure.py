"""Measures alternatives in turns, in one process: A B A B.

A machine that is slow for a while then slows all of them, and ratios, which are taken within a
round, stay the same.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Turn = Callable[[], float]  # does a fixed amount of work; returns its seconds


class Spread(NamedTuple):
    """Median, minimum and maximum of some turns."""

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
    """Runs rounds of one turn for each contender, in the same order.

    A first, uncounted turn of each compiles, fills caches and starts workers; its duration is
    printed on standard error.

    Args:
      contenders: turns by name.
      seconds: no further round starts after this time.
      fewest: minimum number of rounds, at least 1.
      most: maximum number of rounds.
      clock: seconds from any origin.

    Returns:
      For each name the results of its turns, one per round.
    """
    for name, turn in contenders.items():
        began = clock()
        turn()
        print(f"{name}: ready after {clock() - began:.1f} s", file=sys.stderr, flush=True)
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
    """A turn that repeats `work` for some time and returns the seconds per call.

    Accelerators compute asynchronously, so a turn waits for its last result; waiting after each
    call would measure the round trip. The first, uncounted turn makes two calls: one compiles, the
    other measures how long a call takes.

    Args:
      work: the function to time.
      wait: receives the last result, and returns once it is computed.
      seconds: approximate duration of a turn.
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
        once = calls(1)
        times = times_for(seconds, once)
        return once

    return turn


def spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def rates(seconds: Sequence[float], units: float) -> Spread:
    """Units per second, from the seconds that each turn of `units` took."""
    return spread([units / each for each in seconds])


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """One contender's values over another's, round by round.

    Raises:
      ValueError: the numbers of rounds differ.
    """
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def times_for(seconds: float, once: float) -> int:
    """How many repetitions of `once` seconds fill `seconds`; at least 1."""
    return max(1, math.ceil(seconds / max(once, 1e-9)))
