"""A run that is resumed equals one that was never stopped."""

import shutil

import jax
import numpy as np

import byol_jax
from byol_jax.train import loop


def check(run, tmp_path, capsys, last_step):
    """Removes the last checkpoint of a copy of a run, resumes it, and compares to the bit.

    `run` is a config, the folder of its complete run with checkpoints at step 2 and `last_step`,
    and that run as `byol_jax.load` opens it.
    """
    config, workdir, model = run
    copy = shutil.copytree(workdir, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / str(last_step))
    loop.train(config, copy)
    assert "Resuming from the checkpoint of step 2" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, byol_jax.load(copy).state, model.state)
