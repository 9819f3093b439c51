"""The pace of a run by a fake time: of an interval, of the whole, and what is said of it."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from byol_jax import data
from byol_jax.runs import config as config_lib
from byol_jax.runs import inputs
from byol_jax.train import loop, timer


class Device:
    """A device that computes one update after the other behind the loop's back, in fake seconds."""

    def __init__(self):
        self.now = self.free_at = 0.0
        self.running = []

    def start(self, seconds):
        """Starts an update, which takes so long once the one before it is done."""
        self.free_at = max(self.now, self.free_at) + seconds
        self.running.append(Update(self.free_at))
        return self.running[-1]

    def advance(self, until):
        """Lets time pass; what ends on the way is noted at its own time."""
        while self.running and self.running[0].end <= until:
            update = self.running.pop(0)
            self.now = max(self.now, update.end)
            update.done.set()
            while threading.active_count() > self.threads:  # until its watcher has seen the time
                time.sleep(0)
        self.now = until

    def block_until_ready(self, update):
        if threading.current_thread() is not threading.main_thread():
            update.done.wait()
        elif not update.done.is_set():
            self.advance(update.end)


class Update:
    def __init__(self, end):
        self.end, self.done = end, threading.Event()


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.setattr(timer, "time", SimpleNamespace(perf_counter=lambda: device.now))
    monkeypatch.setattr(timer, "jax", SimpleNamespace(block_until_ready=device.block_until_ready))
    device.clock = timer.Timer()
    device.threads = threading.active_count()
    return device


def steps(device, count, reading, computing):
    """Steps as the loop makes them; returns what count() did."""
    firsts = []
    for _ in range(count):
        with device.clock.waiting():
            device.advance(device.now + reading)
        firsts.append(device.clock.count(device.start(computing)))
    return firsts


def read(device, batch_size):
    device.advance(max(device.now, device.free_at))
    return device.clock.read(batch_size)


def test_the_first_step_counts_for_nothing(device):
    device.advance(5.0)
    assert read(device, 8) == {} and device.clock.of_the_run(8) == {}
    assert steps(device, 3, 1.0, 1.0) == [True, False, False]
    assert device.clock.since_start() == device.now


@pytest.mark.parametrize(("reading", "share"), [(0.5, 0.0), (2.0, 0.0), (2.5, 0.2), (8.0, 0.75)])
def test_what_is_read_while_an_update_runs_holds_nothing_up(device, reading, share):
    """Updates take 2 seconds: input that takes no longer is free, any other by the difference."""
    steps(device, 1, reading, 2.0)
    steps(device, 200, reading, 2.0)
    got = read(device, batch_size=16)
    np.testing.assert_allclose(got["input_wait_share"], share, atol=0.01)
    np.testing.assert_allclose(got["images_per_second"], 16 / max(reading, 2.0), rtol=0.02)


def test_intervals_and_the_whole(device):
    steps(device, 1, 0.0, 1.0)
    steps(device, 4, 0.0, computing=2.0)
    assert read(device, batch_size=16) == {"images_per_second": 8.0, "input_wait_share": 0.0}
    assert device.clock.seconds_left(3) == 6.0
    device.advance(device.now + 100.0)  # an evaluation
    device.clock.restart()
    steps(device, 1, reading=1.0, computing=1.0)  # nothing runs meanwhile
    assert read(device, 16) == {"images_per_second": 8.0, "input_wait_share": 0.5}
    assert device.clock.of_the_run(16) == {"images_per_second": 8.0, "input_wait_share": 0.1}


@pytest.mark.parametrize(
    ("placement", "source", "advice"),
    [
        ("device", "arrays", "host's own time"),
        ("host", "arrays", "In a new run, config.data.placement=device"),
        ("host", "files", "more processor cores"),
    ],
)
def test_what_is_said_of_an_input_bound_run(device, placement, source, advice):
    config = config_lib.default()
    config.data.placement = placement
    if source == "arrays":
        source = data.from_arrays(np.zeros((4, 2, 2, 3), np.uint8))
    steps(device, 1, 1.0, 1.0)
    steps(device, 100, reading=1.25, computing=1.0)
    read(device, config.batch_size)
    said = loop.pace(device.clock, config, source)
    assert "21% of the time waiting for input: the run was input-bound." in said
    assert inputs.input_bound_hint(config, source) in said and advice in said


def test_what_is_said_of_a_run_that_was_not(device):
    config = config_lib.default()
    assert loop.pace(device.clock, config, None) == "Too few steps to tell a pace."
    steps(device, 1, 1.0, 1.0)
    steps(device, 4, reading=0.0, computing=1.0)
    read(device, config.batch_size)
    assert (
        loop.pace(device.clock, config, None) == "4096 images/s, 0% of the time waiting for input."
    )
