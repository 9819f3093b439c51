"""What a run prints before its first step."""

from pathlib import Path

import pytest
from tiny import tiny_config

from byol_jax.runs import run as run_lib
from byol_jax.runs.resolve import resolve
from byol_jax.train import console


def summary(is_resumed=False, **target):
    config = tiny_config()
    config.steps, config.data.placement = 400, "device"
    config.target.update(target)
    config, _ = resolve(config)
    data = {"name": "images", "num_examples": 10, "num_classes": None}
    run = run_lib.Run(config, data, steps_per_epoch=3)
    lines = []
    console.log_run_summary(lines.append, run, run.learner(), Path("run"), 0, is_resumed)
    return lines


def test_schedules_are_described():
    assert (
        "adamw: learning rate 0.000625 at step 0, 0 at step 400; tau 0.95 at step 0, 1 at step 4"
        in ("\n".join(summary(tau_base=0.95)))
    )


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            {"tau_base": 0.95},
            "1 - tau is 10 (156 to 626 in the paper's runs), and 100 with --config",
        ),
        (
            {"tau_base": 0.996, "tau_schedule": "constant"},
            "and 200 with --config.target.tau_base=0.5",
        ),
        ({"tau_base": 0.5}, None),
        ({"tau_base": 0.7, "tau_schedule": "constant"}, None),
        ({"tau_base": 0.95, "is_resumed": True}, None),
        ({"rule": "frozen"}, None),
    ],
)
def test_a_target_that_follows_too_slowly_is_reported(target, message):
    found = [line for line in summary(**target) if line.startswith("warning: tau")]
    assert len(found) == (message is not None)
    assert message is None or message in found[0]
