"""Checkpoints are restored bit for bit, or an error names the damage; which of them are kept."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from byol_jax import byol, parallel
from byol_jax.errors import CheckpointError
from byol_jax.runs import manifest
from byol_jax.runs.checkpoint import Checkpoints, RetentionPolicy


def state_of(step, size=8192):
    """A state of every kind of leaf: scalars, bfloat16, and large enough for a file of its own."""
    generator = np.random.default_rng(step)

    def params():
        return {
            "kernel": jnp.asarray(generator.standard_normal(size), jnp.float32),
            "conv": {
                "kernel": jnp.asarray(generator.standard_normal((3, 3, 4, 5)), jnp.float32),
                "half": jnp.asarray(generator.standard_normal(7), jnp.bfloat16),
            },
        }

    online = params()
    return byol.State(
        jnp.int32(step), jnp.uint32(7), online, params(), {}, {}, optax.adam(1e-3).init(online)
    )


ABSTRACT = jax.eval_shape(lambda: state_of(0))
STEPS = (3, 6)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A folder with checkpoints of steps 3 and 6; tests change copies only."""
    directory = tmp_path_factory.mktemp("two_steps") / "checkpoints"
    with Checkpoints(directory, RetentionPolicy(newest=5)) as checkpoints:
        for step in STEPS:
            checkpoints.save(step, state_of(step), {"skipped": step / 4}, score=1 / step)
    return directory


@pytest.fixture
def directory(two_steps, tmp_path):
    return shutil.copytree(two_steps, tmp_path / "checkpoints")


def files_of(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def contents(directory):
    return {path: path.read_bytes() for path in files_of(directory)}


def assert_is(saved, step):
    """Every leaf is exactly what was saved at that step, and so are the loop's numbers."""
    assert saved.step == step
    assert saved.loop_state == {"skipped": step / 4}
    assert_equal(saved.state, state_of(step))


def assert_equal(state, expected):
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    assert manifest.describe(state) == manifest.describe(expected)


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES = {
    "flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}


def test_a_donated_state_is_restored_bit_for_bit(tmp_path):
    state = parallel.replicate(state_of(6))
    overwrite = jax.jit(lambda x: jax.tree.map(jnp.zeros_like, x), donate_argnums=0)
    with Checkpoints(tmp_path, RetentionPolicy(1)) as checkpoints:
        checkpoints.save(6, state, {"skipped": 1.5}, score=0.5)
        jax.block_until_ready(overwrite(state))
        checkpoints.wait()
        saved = checkpoints.restore_newest(ABSTRACT, pytest.fail)
    assert_is(saved, 6)
    assert {leaf.device for leaf in jax.tree.leaves(saved.state)} == {jax.local_devices()[0]}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_to_any_file_is_harmless_or_reported(two_steps, damage, capfd):
    reports = 0
    with Checkpoints(two_steps) as checkpoints:
        for path in files_of(two_steps / "6"):
            data, log = path.read_bytes(), []
            try:
                damage(path)
                saved = checkpoints.restore_newest(ABSTRACT, log.append)
            finally:
                path.write_bytes(data)
            assert_is(saved, 3 if log else 6)
            reports += len(log)
        assert_is(checkpoints.restore_newest(ABSTRACT, pytest.fail), 6)  # undamaged again
    assert reports >= 5  # two files of weights, the list of them and of their names, our manifest
    assert capfd.readouterr() == ("", "")


def test_the_report_names_the_damaged_leaf_and_step(two_steps):
    """One flipped byte in every data file."""
    named, log = [], []
    with Checkpoints(two_steps) as checkpoints:
        for path in files_of(two_steps / "6" / "state" / "ocdbt.process_0" / "d"):
            data = path.read_bytes()
            path.write_bytes(flipped(data))
            checkpoints.restore_newest(ABSTRACT, log.append)
            path.write_bytes(data)
    for line in log:
        before, name = line.split(" has another sha256")[0].split(" is damaged: ")
        assert before == f"The checkpoint of step 6 in {two_steps}"
        named.append(name)
    assert set(named) <= set(manifest.leaves(ABSTRACT))
    assert any(name.endswith("_params/kernel") for name in named)


def test_a_deletion_interrupted_at_any_file_is_detected(directory):
    with Checkpoints(directory) as checkpoints:
        for path in files_of(directory / "6"):
            path.unlink()
            log = []
            assert_is(checkpoints.restore_newest(ABSTRACT, log.append), 3 if log else 6)
        assert len(log) == 1
        shutil.rmtree(directory / "6")
        assert_is(checkpoints.restore_newest(ABSTRACT, pytest.fail), 3)


def test_damaged_checkpoints_are_moved_aside_and_saved_again(directory):
    aside = directory.parent / "damaged_checkpoints"
    for name in ("6", "6-2"):
        (directory / "6" / "state" / "manifest.ocdbt").write_bytes(b"")
        before = sorted(os.listdir(directory / "6"))
        log = []
        with Checkpoints(directory, RetentionPolicy(5)) as checkpoints:
            assert_is(checkpoints.restore_newest(ABSTRACT, log.append), 3)
            assert checkpoints.steps() == [3]
            assert sorted(os.listdir(aside / name)) == before
            checkpoints.save(6, state_of(6), {"skipped": 1.5})
        assert "Going back to that of step 3." in log[0]
        assert str(aside) in log[1]
        with Checkpoints(directory) as checkpoints:
            assert_is(checkpoints.restore_newest(ABSTRACT, pytest.fail), 6)


def test_if_all_are_damaged_they_stay_in_place(directory):
    for step in STEPS:
        (directory / str(step) / "manifest" / "manifest.json").unlink()
    before = contents(directory)
    with Checkpoints(directory, RetentionPolicy(5)) as checkpoints:
        with pytest.raises(CheckpointError, match=r"step 6 .* step 3 .*put back a copy"):
            checkpoints.restore_newest(ABSTRACT, pytest.fail)
        with pytest.raises(CheckpointError, match=r"step 6 .*manifest.json cannot be read.*\[3\]"):
            checkpoints.restore(6, ABSTRACT)
    assert contents(directory) == before
    assert os.listdir(directory.parent) == ["checkpoints"]


def test_other_files_and_folders_are_ignored(directory):
    """Leftovers of a killed process, an empty folder, and files of other programs."""
    half = shutil.copytree(directory / "6", directory / "7.orbax-checkpoint-tmp")
    (half / "state" / "manifest.ocdbt").unlink()
    (directory / "12").mkdir()
    (directory / "15").write_text("")
    (directory / "notes").write_text("")
    with Checkpoints(directory) as checkpoints:
        assert_is(checkpoints.restore_newest(ABSTRACT, lambda _: None), 6)
    assert half.exists()
    with Checkpoints(directory, RetentionPolicy(5)) as checkpoints:
        assert_is(checkpoints.restore_newest(ABSTRACT, lambda _: None), 6)
        assert checkpoints.latest_step() == 6
        checkpoints.save(9, state_of(9), {"skipped": 9 / 4})
    assert not half.exists()
    assert sorted(os.listdir(directory)) == ["15", "3", "6", "9", "notes"]
    with Checkpoints(directory) as checkpoints:
        assert_is(checkpoints.restore_newest(ABSTRACT, pytest.fail), 9)


def test_a_checkpoint_renamed_to_another_step_is_rejected(directory):
    (directory / "6").rename(directory / "9")
    log = []
    with Checkpoints(directory) as checkpoints:
        assert_is(checkpoints.restore_newest(ABSTRACT, log.append), 3)
    assert len(log) == 1


def test_read_only_access_writes_nothing(directory, tmp_path):
    (directory / "6" / "state" / "_METADATA").unlink()
    before = contents(tmp_path)
    with Checkpoints(directory) as checkpoints:
        assert_is(checkpoints.restore_newest(ABSTRACT, lambda _: None), 3)
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.restore_newest(ABSTRACT, pytest.fail) is None
        assert checkpoints.latest_step() is None
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == ["checkpoints"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s._replace(seed=s.seed.astype(jnp.int32)), "seed is uint32"),
        (lambda s: s._replace(online_stats={"mean": s.step}), "online_stats/mean is absent"),
        (lambda s: s._replace(target_params={}), "should be absent"),
    ],
)
def test_a_state_of_another_network_is_rejected_and_not_moved(directory, change, named):
    """Orbax would cast the dtype silently."""
    other = jax.eval_shape(lambda: change(state_of(0)))
    with Checkpoints(directory, RetentionPolicy(5)) as checkpoints:
        with pytest.raises(CheckpointError, match=f"step 6 .* of another network: .*{named}"):
            checkpoints.restore_newest(other, pytest.fail)
        assert checkpoints.steps() == list(STEPS)


@pytest.mark.parametrize(
    "forge",
    [
        lambda leaves: leaves.update({"../../../../etc/passwd": leaves["step"]}),
        lambda leaves: leaves.pop("step"),
        lambda leaves: leaves["step"].update(shape=[2**60]),
        lambda leaves: leaves["step"].update(shape="abc"),
        lambda leaves: leaves["step"].update(dtype="os.system"),
        lambda leaves: leaves["step"].pop("sha256"),
        lambda leaves: leaves.update(step=1),
    ],
)
def test_a_forged_manifest_is_rejected(directory, forge):
    path = directory / "6" / "manifest" / "manifest.json"
    record = json.loads(path.read_text())
    del record["sha256"]
    forge(record["leaves"])
    text = json.dumps(record, sort_keys=True)
    record["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(record))
    with Checkpoints(directory) as checkpoints, pytest.raises(CheckpointError, match="step 6"):
        checkpoints.restore(6, ABSTRACT)


def test_the_loop_state_is_verified(directory):
    path = directory / "6" / "manifest" / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"skipped": 1.5', '"skipped": 2.5'))
    assert path.read_text() != text
    with (
        Checkpoints(directory) as checkpoints,
        pytest.raises(CheckpointError, match="not as it was"),
    ):
        checkpoints.restore(6, ABSTRACT)


KEPT = [
    (RetentionPolicy(2), {5, 6}),
    (RetentionPolicy(1, every_steps=2), {2, 4, 6}),
    (RetentionPolicy(1, best="knn"), {2, 6}),
    (RetentionPolicy(1, step=3), {3, 6}),
    (RetentionPolicy(2, every_steps=3, best="knn"), {2, 3, 5, 6}),
]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(("keep", "steps"), KEPT)
def test_the_retention_policy_decides_which_are_kept(tmp_path, keep, steps, restart):
    """The score is measured at some steps only; the best is at 1, then as good at 2."""
    scores = {1: 0.7, 2: 0.7, 4: 0.6}
    small = state_of(0, size=1)
    checkpoints = Checkpoints(tmp_path, keep)
    for step in range(1, 7):
        checkpoints.save(step, small, score=scores.get(step))
        if restart:
            checkpoints.close()
            checkpoints = Checkpoints(tmp_path, keep)
    checkpoints.close()
    with Checkpoints(tmp_path) as checkpoints:
        assert set(checkpoints.steps()) == steps


def test_best_score_is_the_highest_of_the_saved_checkpoints(tmp_path):
    small = state_of(0, size=1)
    with Checkpoints(tmp_path, RetentionPolicy(1)) as checkpoints:
        assert checkpoints.best_score() is None
        checkpoints.save(1, small, score=0.7)
        assert checkpoints.best_score() == 0.7  # while it is being saved
        checkpoints.save(2, small)
        checkpoints.wait()
        assert checkpoints.best_score() is None  # deleted by the policy
    with Checkpoints(tmp_path, RetentionPolicy(1, best="knn")) as checkpoints:
        checkpoints.save(3, small, score=0.3)
        checkpoints.save(4, small, score=0.2)
        assert checkpoints.best_score() == 0.3


def test_scores_of_other_names_do_not_count(tmp_path):
    """A run without labels has the score rankme, and may get labels later."""
    small = state_of(0, size=1)
    with Checkpoints(tmp_path, RetentionPolicy(1, best="rankme")) as checkpoints:
        checkpoints.save(1, small, score=35.2)
    with Checkpoints(tmp_path, RetentionPolicy(1, best="knn")) as checkpoints:
        assert checkpoints.best_score() is None
        checkpoints.save(2, small, score=0.4)
        assert checkpoints.best_score() == 0.4
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [2]


def test_a_step_is_saved_once(directory):
    before = contents(directory)
    with Checkpoints(directory, RetentionPolicy(5)) as checkpoints:
        checkpoints.save(6, state_of(7))
        checkpoints.save(9, state_of(9), {"skipped": 9 / 4})
        checkpoints.save(9, state_of(10))
        checkpoints.wait()
        assert_is(checkpoints.restore(9, ABSTRACT), 9)
    shutil.rmtree(directory / "9")
    assert contents(directory) == before


def test_loggers_and_hooks_are_left_as_they_were(directory):
    def installed():
        loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
        return [sys.unraisablehook, *(list(logger.filters) for logger in loggers)]

    before = installed()
    (directory / "6" / "state" / "manifest.ocdbt").write_bytes(b"")
    with Checkpoints(directory, RetentionPolicy(5)) as checkpoints:
        assert_is(checkpoints.restore_newest(ABSTRACT, lambda _: None), 3)
        checkpoints.save(9, state_of(9))
    assert installed() == before


@pytest.fixture
def disk(tmp_path):
    """A file system of 2 MB that can be filled, and made read-only."""
    path = tmp_path / "disk"
    path.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        return subprocess.run(command, capture_output=True).returncode == 0

    if os.geteuid() != 0 or not mount("size=2m"):
        pytest.skip("needs the right to mount a file system")
    yield path, mount
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("new_start", [False, True])
def test_a_full_disk_raises_one_error_and_keeps_the_previous_checkpoint(disk, new_start, capfd):
    path, _ = disk
    directory = path / "checkpoints"
    checkpoints = Checkpoints(directory, RetentionPolicy(1))
    checkpoints.save(3, state_of(3), {"skipped": 3 / 4})
    checkpoints.wait()
    (path / "ballast").write_bytes(b"x" * (shutil.disk_usage(path).free - 2**16))
    used = shutil.disk_usage(path).used

    for step in (6, 9):
        checkpoints.save(step, state_of(step))
        with pytest.raises(
            CheckpointError,
            match=rf"step {step} could not be written .*\(No space left on device\)",
        ):
            checkpoints.wait()
        checkpoints.wait()  # raised only once
        assert checkpoints.steps() == [3]
        assert shutil.disk_usage(path).used == used  # no incomplete files stay
    checkpoints.save(12, state_of(12))
    with pytest.raises(CheckpointError, match="step 12 could not be written"):
        checkpoints.save(15, state_of(15))
    assert_is(checkpoints.restore_newest(ABSTRACT, pytest.fail), 3)

    (path / "ballast").unlink()
    if new_start:
        checkpoints.close()
        checkpoints = Checkpoints(directory, RetentionPolicy(1))
    checkpoints.save(6, state_of(6), {"skipped": 6 / 4})
    checkpoints.close()
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.steps() == [6]
        assert_is(checkpoints.restore_newest(ABSTRACT, pytest.fail), 6)
    assert capfd.readouterr() == ("", "")


FULL_DISK = """
import logging, pathlib, sys
from test_checkpoint import *

assert sys.unraisablehook is sys.__unraisablehook__  # importing changes nothing
assert not logging.getLogger("absl").filters
many = {str(i): np.random.default_rng(i).random(2**10) for i in range(100)}
with Checkpoints(pathlib.Path(sys.argv[1]), RetentionPolicy(1)) as checkpoints:
    checkpoints.save(6, state_of(6)._replace(online_stats=many))
    try:
        checkpoints.wait()
    except CheckpointError as error:
        print(error)
"""


def run_program(program, *arguments):
    """Returns the stdout and stderr of a program of its own, where pytest captures nothing."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"PYTHONPATH": f"{root}:{root / 'tests' / 'runs'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, done.stderr


def test_a_full_disk_prints_nothing_but_our_error(disk):
    """100 arrays, so that many writes are unfinished when the first one fails."""
    path, _ = disk
    (path / "ballast").write_bytes(b"x" * (shutil.disk_usage(path).free - 2**16))
    output, errors = run_program(FULL_DISK, path / "checkpoints")
    assert output.startswith("The checkpoint of step 6 could not be written")
    assert (output.count("\n"), errors) == (1, "")


def test_an_unwritable_folder_raises_one_error(disk, capfd):
    path, mount = disk
    directory = path / "checkpoints"
    with Checkpoints(directory, RetentionPolicy(1)) as checkpoints:
        checkpoints.save(3, state_of(3), {"skipped": 3 / 4})
        checkpoints.wait()
        assert mount("remount,ro")
        with pytest.raises(
            CheckpointError, match=r"step 6 could not be written .*\(Read-only file system\)"
        ):
            checkpoints.save(6, state_of(6))
            checkpoints.wait()
        assert_is(checkpoints.restore_newest(ABSTRACT, pytest.fail), 3)
    with pytest.raises(CheckpointError, match="cannot be created"):
        Checkpoints(path / "other", RetentionPolicy(1))
    assert mount("remount,rw")
    (directory / "6").mkdir()
    assert mount("remount,ro")
    with (
        Checkpoints(directory, RetentionPolicy(1)) as checkpoints,
        pytest.raises(CheckpointError, match=r"steps \[6\] cannot be moved"),
    ):
        checkpoints.restore_newest(ABSTRACT, lambda _: None)
    assert capfd.readouterr() == ("", "")
