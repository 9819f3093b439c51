"""The page about data of one's own: its program trains, resumes and is evaluated as printed."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from commands import imported

import byol_jax
from byol_jax.errors import UserError
from byol_jax.runs import run as run_lib
from byol_jax.train import loop

PAGE = (Path(__file__).parents[2] / "docs" / "own_data.md").read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The config and the folder of a short run, and the module, in its folder."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "clouds").mkdir()
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (folder / "my_clouds.py").write_text(program)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        runpy.run_path("my_clouds.py", run_name="__main__")
        config = runpy.run_path("my_clouds.py")["get_config"]()
        config.steps, config.checkpoint.every_steps, config.evaluation.every_steps = 4, 2, 0
        assert loop.train(config, folder / "run")
        yield config, folder / "run", sys.modules["my_clouds"]
        del sys.modules["my_clouds"]


def test_it_has_sixty_lines():
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(program.splitlines()) <= 60


def test_it_resumes_to_the_bit(run, tmp_path):
    config, workdir, _ = run
    killed = shutil.copytree(workdir, tmp_path / "killed")
    shutil.rmtree(killed / "checkpoints" / "4")
    assert loop.train(config, killed)
    states = (run_lib.restore(found).state for found in (workdir, killed))
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_commands_evaluate_and_load_it(run, capsys):
    _, workdir, module = run
    points, labels = module.clouds(6, seed=2)
    assert points.dtype == np.float32 and set(labels) <= {0, 1, 2, 3}
    assert byol_jax.load(workdir).embed(points).shape == (6, 128)
    with imported("evaluate") as command:
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["evaluate", f"--checkpoint={workdir}", "--protocol=knn"])
        command.main()
    assert "500 signals" in capsys.readouterr().out
    found = json.loads((workdir / "eval" / "knn.json").read_text())["top1"]
    assert {*found} == {"byol", "random", "raw"}


def test_a_view_is_the_users_own(run):
    """The function changes what the built-in operations leave, for both views."""
    config, workdir, module = run
    learner = run_lib.read(workdir).learner(for_training=True)
    points, _ = module.clouds(1, seed=3)
    key = jax.random.key(0)
    views = learner.augment(key, {"points": points[0]})
    normal = learner.augment.normalize({"points": points[0]})["points"]
    for number, found in enumerate(views):
        of_view = jax.random.fold_in(jax.random.fold_in(key, number), 5)
        np.testing.assert_allclose(found, module.view(of_view, normal), rtol=1e-5, atol=1e-6)
    assert np.abs(views[0] - views[1]).max() > 0.1
    config = config.copy_and_resolve_references()
    config.augment.function = "my_clouds:clouds"
    with pytest.raises(UserError, match=r"^config.augment.function=my_clouds:clouds cannot be "):
        loop.train(config, workdir.parent / "wrong")
