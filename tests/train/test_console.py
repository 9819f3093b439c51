"""What a run prints before its first step."""

from pathlib import Path

import pytest
from tiny import tiny_config

from byol_jax.runs import config as config_lib
from byol_jax.runs import run as run_lib
from byol_jax.train import console


def summary(is_resumed=False, **target):
    config = tiny_config()
    config.steps, config.data.placement = 400, "device"
    config.target.update(target)
    config, _ = config_lib.resolve(config)
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
    ("target", "warns"),
    [
        ({"tau_base": 0.95}, True),
        ({"tau_base": 0.5}, False),
        ({"tau_base": 0.9, "tau_schedule": "constant"}, False),
        ({"tau_base": 0.996, "tau_schedule": "constant"}, True),
        ({"tau_base": 0.95, "is_resumed": True}, False),
        ({"rule": "frozen"}, False),
    ],
)
def test_a_target_that_ends_far_behind_is_reported(target, warns):
    found = [line for line in summary(**target) if line.startswith("warning: the target")]
    assert len(found) == warns
    if target == {"tau_base": 0.95}:
        assert "36% of the run" in found[0] and "tau_schedule=constant" in found[0]
