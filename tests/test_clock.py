"""The pace of a run by a fake time: of an interval, of the whole, and what is said of it."""

import jax.numpy as jnp
import pytest

from byol_jax import clock as clock_lib
from byol_jax import config as config_lib
from byol_jax import data, input, train


@pytest.fixture
def clock(monkeypatch):
    """A clock whose time only moves by `clock.tick(seconds)`."""
    now = [0.0]
    monkeypatch.setattr(clock_lib.time, "perf_counter", lambda: now[0])
    made = clock_lib.Clock()
    made.tick = lambda seconds: now.__setitem__(0, now[0] + seconds)
    return made


def steps(clock, count, waiting, computing):
    for _ in range(count):
        with clock.waiting():
            clock.tick(waiting)
        clock.tick(computing)
        clock.count({"loss": jnp.zeros(())})


def test_the_first_step_counts_for_nothing(clock):
    clock.tick(5.0)
    assert clock.read(8) == {} and clock.of_the_run(8) == {}
    assert clock.count({"loss": jnp.zeros(())})
    assert not clock.count({"loss": jnp.zeros(())})
    assert clock.since_start() == 5.0


def test_intervals_and_the_whole(clock):
    steps(clock, 1, 1.0, 1.0)
    steps(clock, 4, waiting=0.5, computing=1.5)
    assert clock.read(batch_size=16) == {"images_per_second": 8.0, "input_wait_share": 0.25}
    assert clock.seconds_left(3) == 6.0
    clock.tick(100.0)  # an evaluation
    clock.restart()
    steps(clock, 2, waiting=0.0, computing=1.0)
    assert clock.read(16) == {"images_per_second": 16.0, "input_wait_share": 0.0}
    whole = clock.of_the_run(16)
    assert whole == {"images_per_second": 6 * 16 / 10, "input_wait_share": 2 / 10}


@pytest.mark.parametrize(
    ("placement", "source", "advice"),
    [
        ("device", "arrays", "larger batches"),
        ("host", "arrays", "config.data.placement=device"),
        ("host", "files", "more processor cores"),
    ],
)
def test_what_is_said_of_an_input_bound_run(clock, placement, source, advice):
    config = config_lib.default()
    config.data.placement = placement
    if source == "arrays":
        source = input.from_arrays(jnp.zeros((4, 2, 2, 3), jnp.uint8))
    steps(clock, 1, 1, 1)
    steps(clock, 10, waiting=0.11, computing=0.89)
    clock.read(config.batch_size)
    said = train.pace(clock, config, source)
    assert "11% of the time waiting for input: the run was input-bound." in said
    assert data.faster_input(config, source) in said and advice in said


def test_what_is_said_of_a_run_that_was_not(clock):
    config = config_lib.default()
    assert train.pace(clock, config, None) == "Too few steps to tell a pace."
    steps(clock, 1, 1, 1)
    steps(clock, 4, waiting=0.0, computing=1.0)
    clock.read(config.batch_size)
    assert train.pace(clock, config, None) == "4096 images/s, 0% of the time waiting for input."
