"""Two processes save together, and restore the same step if only one of them finds damage."""

import shutil
from pathlib import Path

import pytest
from subprocesses import finish, start
from test_checkpoint import ABSTRACT, STEPS, assert_is, state_of

from byol_jax.runs.checkpoint import Checkpoints, RetentionPolicy


def test_two_processes_save_and_restore_the_same_step(tmp_path):
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
        # Only process 1 finds damage in step 6. A single process saved step 3.
        assert "restored 3 {'skipped': 0.75} True True" in output
        assert output.count("The checkpoint of step 6") == 1
        assert "Going back to that of step 3." in output
        # Saved and restored by both.
        assert "restored 6 {'skipped': 1.5} True True" in output
    assert (tmp_path / "0" / "damaged_mine" / "6").is_dir()
    with Checkpoints(shared) as checkpoints:
        assert checkpoints.steps() == list(STEPS)
        assert_is(checkpoints.restore_newest(ABSTRACT, pytest.fail), 6)
