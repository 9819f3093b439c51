"""Throughput in fake time, of an interval and of a run, and the text about it."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from byol_jax import data
from byol_jax.runs import config as config_lib
from byol_jax.runs import kinds
from byol_jax.train import console, timer


class Device:
    """A device that computes one update after the other in the background, in fake seconds."""

    def __init__(self):
        self.now = self.free_at = 0.0
        self.running, self.threads = [], set()

    def start(self, seconds):
        """Starts an update, which takes some seconds once the one before it is done."""
        self.free_at = max(self.now, self.free_at) + seconds
        self.running.append(Update(self.free_at))
        return self.running[-1]

    def advance(self, until):
        """Lets time pass; the timer's thread notes each update at the time of its end."""
        while self.running and self.running[0].end <= until:
            update = self.running.pop(0)
            self.now = max(self.now, update.end)
            update.done.set()
            if update.is_counted:
                assert update.noted.wait(10)
        self.now = until

    def block_until_ready(self, update):
        if threading.current_thread() is not threading.main_thread():
            update.done.wait()
            self.noting = update
        elif not update.done.is_set():
            self.advance(update.end)

    def perf_counter(self):
        now = self.now
        if threading.current_thread() is not threading.main_thread():
            self.threads.add(threading.current_thread())
            self.noting.noted.set()
        return now


class Update:
    def __init__(self, end):
        self.end, self.is_counted = end, False
        self.done, self.noted = threading.Event(), threading.Event()


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.setattr(timer, "time", SimpleNamespace(perf_counter=device.perf_counter))
    monkeypatch.setattr(timer, "jax", SimpleNamespace(block_until_ready=device.block_until_ready))
    with timer.Timer() as device.clock:
        yield device
    assert len(device.threads) <= 1  # for all updates of a run


def steps(device, count, reading, computing):
    """Steps as the loop makes them; returns what start_update() did."""
    firsts = []
    for _ in range(count):
        with device.clock.waiting():
            device.advance(device.now + reading)
        update = device.start(computing)
        firsts.append(device.clock.start_update(update))
        update.is_counted = True
        if firsts[-1]:
            assert update.noted.wait(10)
    return firsts


def read(device, batch_size):
    device.advance(max(device.now, device.free_at))
    return device.clock.rates(batch_size)


def test_the_first_step_counts_for_nothing(device):
    device.advance(5.0)
    assert read(device, 8) == {} and device.clock.run_rates(8) == {}
    assert steps(device, 3, 1.0, 1.0) == [True, False, False]
    assert device.clock.since_start() == device.now


@pytest.mark.parametrize(("reading", "share"), [(0.5, 0.0), (2.0, 0.0), (2.5, 0.2), (8.0, 0.75)])
def test_input_that_overlaps_with_an_update_is_free(device, reading, share):
    """Updates take 2 seconds: input costs only what it takes beyond that."""
    steps(device, 1, reading, 2.0)
    steps(device, 200, reading, 2.0)
    got = read(device, batch_size=16)
    np.testing.assert_allclose(got["input_wait_share"], share, atol=0.01)
    np.testing.assert_allclose(got["images_per_second"], 16 / max(reading, 2.0), rtol=0.02)


def test_intervals_and_the_complete_run(device):
    steps(device, 1, 0.0, 1.0)
    steps(device, 4, 0.0, computing=2.0)
    assert read(device, batch_size=16) == {"images_per_second": 8.0, "input_wait_share": 0.0}
    assert device.clock.seconds_left(3) == 6.0
    device.advance(device.now + 100.0)  # an evaluation
    device.clock.restart()
    steps(device, 1, reading=1.0, computing=1.0)  # no update runs meanwhile
    assert read(device, 16) == {"images_per_second": 8.0, "input_wait_share": 0.5}
    assert device.clock.run_rates(16) == {"images_per_second": 8.0, "input_wait_share": 0.1}


@pytest.mark.parametrize(
    ("placement", "source", "advice"),
    [
        ("device", "arrays", "the time left is the host's own"),
        ("host", "arrays", "In a new run, config.data.placement=device"),
        ("host", "files", "more processor cores"),
    ],
)
def test_summary_of_an_input_bound_run(device, placement, source, advice):
    config = config_lib.default()
    config.data.placement = placement
    if source == "arrays":
        source = data.from_arrays(np.zeros((4, 2, 2, 3), np.uint8))
    steps(device, 1, 1.0, 1.0)
    steps(device, 100, reading=1.25, computing=1.0)
    read(device, config.batch_size)
    summary = console.throughput_summary(device.clock, config, source)
    assert "21% of the time waiting for input: the run was input-bound." in summary
    assert kinds.of(config).input_bound_hint(config, source) in summary and advice in summary


def test_summary_of_a_run_that_is_not_input_bound(device):
    config = config_lib.default()
    assert (
        console.throughput_summary(device.clock, config, None)
        == "Too few steps to measure the throughput."
    )
    steps(device, 1, 1.0, 1.0)
    steps(device, 4, reading=0.0, computing=1.0)
    read(device, config.batch_size)
    assert (
        console.throughput_summary(device.clock, config, None)
        == "4096 images/s, 0% of the time waiting for input."
    )


def test_saves_are_due_by_minutes(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: clock.now))
    by_time, never = timer.SaveTimer(2.0), timer.SaveTimer(0.0)
    clock.now += 119
    assert not by_time.is_due()
    clock.now += 1
    assert by_time.is_due() and not never.is_due()
    by_time.restart()
    assert not by_time.is_due()
