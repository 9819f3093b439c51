"""Two processes save together, and come back to the same step where one alone finds damage."""

import shutil
from pathlib import Path

import pytest
from subprocesses import finish, start
from test_checkpoint import ABSTRACT, STEPS, assert_is, state_of

from byol_jax.runs.checkpoint import Checkpoints, RetentionPolicy


def test_two_processes(tmp_path):
    mine, other, shared = tmp_path / "0" / "mine", tmp_path / "1" / "other", tmp_path / "shared"
    with Checkpoints(mine, RetentionPolicy(5)) as checkpoints:
        for step in STEPS:
            checkpoints.save(step, state_of(step), {"skipped": step / 4})
    shutil.copytree(mine, other)
    (other / "6" / "state" / "manifest.ocdbt").write_bytes(b"")

    program = Path(__file__).with_name("checkpoint_process.py")
    ends = finish(start([program, mine, other, shared]))
    for code, output in ends:
        assert code == 0, output
        # Process 0 found nothing wrong with step 6; step 3 was saved by one process.
        assert "restored 3 {'skipped': 0.75} True True" in output
        assert output.count("The checkpoint of step 6") == 1
        assert "Going back to that of step 3." in output
        # Restored by both.
        assert "restored 6 {'skipped': 1.5} True True" in output
    assert (tmp_path / "0" / "damaged_mine" / "6").is_dir()
    with Checkpoints(shared) as checkpoints:
        assert checkpoints.steps() == list(STEPS)
        assert_is(checkpoints.restore_newest(ABSTRACT, pytest.fail), 6)
