"""A short version of `./run.sh faults`, and tests that it detects a loss."""

import signal

import numpy as np
import pytest
from faults import comparison, damage, toy
from faults.moments import Moments
from faults.page import table
from faults.processes import Run
from faults.tally import Tally

from byol_jax.train import loop

STEPS = 40
SHORT = {
    "steps": STEPS,
    "log_every_steps": 5,
    "checkpoint.every_steps": 8,
    "evaluation.every_steps": 0,
}


def train(workdir):
    """Trains in this process, without starting a program."""
    config = toy.get_config("convnet")
    config.update_from_flattened_dict(SHORT)
    loop.train(config, workdir)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    train(workdir)
    return workdir


@pytest.fixture(scope="module")
def wanted(undisturbed):
    return comparison.result(undisturbed)


def test_two_kills_and_a_signal_leave_no_trace(wanted, tmp_path):
    flags = tuple(f"--config.{key}={value}" for key, value in SHORT.items())
    run = Run(tmp_path, flags, config="tests/faults/toy.py:convnet")
    moments = Moments(["starting", "saving"], STEPS, seed=0)
    for phase in moments.phases:
        with run.start() as program:
            assert moments.wait(phase, program, run), program.end()
            program.send(signal.SIGKILL)
            assert program.finish() == -signal.SIGKILL
    with run.start() as program:
        assert program.wait_until(lambda: program.step() > 0), program.end()
        program.send(signal.SIGTERM)
        assert program.finish() == 0, program.end()
    assert program.line_with("Stopped and saved")
    train(tmp_path)
    assert comparison.difference(wanted, comparison.result(tmp_path)) == ""


@pytest.mark.parametrize("kind", ["a flipped bit", "deleted"])
def test_a_damaged_checkpoint_is_not_resumed_from(undisturbed, tmp_path, kind):
    damaged = damage.Damaged(undisturbed, tmp_path)
    largest = max(damaged.files, key=damaged.size)
    log = []
    tally = damage.read_back(damaged, kind, [largest], log.append)
    assert (tally.tried, tally.survived, tally.equal) == (1, 1, 1), tally.losses
    assert f"step {damaged.before}, " in log[0] and str(damaged.newest) in tally.message


def test_one_bit_in_the_state_is_detected(wanted):
    for name in wanted.state:
        changed = wanted.state[name].copy()
        changed.reshape(-1).view(np.uint8)[-1] ^= 1
        other = wanted._replace(state=wanted.state | {name: changed})
        assert comparison.difference(wanted, other).startswith(f"{name} differs")
    assert len(wanted.state) > 50 and any("trace" in name for name in wanted.state)
    fewer = wanted._replace(state=dict(list(wanted.state.items())[1:]))
    assert "other leaves" in comparison.difference(wanted, fewer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:3] + rows[4:], "no line of step 15"),
        (lambda rows: rows[:3] + rows[2:], "the steps are"),
        (lambda rows: [*rows, {"step": 50}], "additional lines, of steps [50]"),
        (lambda rows: [rows[0] | {"loss": 0.0}, *rows[1:]], "'loss': 0.0"),
    ],
)
def test_a_line_that_is_missing_double_or_different_is_detected(wanted, change, message):
    other = wanted._replace(metrics=change(wanted.metrics))
    assert message in comparison.difference(wanted, other)


def test_times_may_differ(wanted):
    rows = [row | {"images_per_second": 1.0} for row in wanted.metrics]
    assert comparison.difference(wanted, wanted._replace(metrics=rows)) == ""


def test_the_table_counts_losses():
    tally = Tally("a | b", message="words")
    tally.count("", times=3)
    tally.count("w differs")
    tally.lose("it hung")
    assert (tally.lost, tally.losses) == (2, ["w differs", "it hung"])
    assert "| a \\| b | 5 | 4 | 3 | words |" in table([tally, Tally("c", untried="no disk")])
    assert "| c | 0 | 0 | 0 | not tried: no disk |" in table([tally, Tally("c", untried="no disk")])
