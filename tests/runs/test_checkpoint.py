"""Checkpoints come back bit for bit, or a sentence says what is wrong; which of them stay."""

import hashlib
import json
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
from byol_jax.errors import UserError
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
            checkpoints.save(step, state_of(step), {"skipped": step / 4}, knn=1 / step)
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
    assert saved.loop == {"skipped": step / 4}
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


def test_comes_back_bit_for_bit_though_donated(tmp_path):
    state = parallel.replicate(state_of(6))
    overwrite = jax.jit(lambda x: jax.tree.map(jnp.zeros_like, x), donate_argnums=0)
    with Checkpoints(tmp_path, RetentionPolicy(1)) as checkpoints:
        checkpoints.save(6, state, {"skipped": 1.5}, knn=0.5)
        jax.block_until_ready(overwrite(state))
        checkpoints.wait()
        saved = checkpoints.restore_newest(ABSTRACT, pytest.fail)
    assert_is(saved, 6)
    assert {leaf.device for leaf in jax.tree.leaves(saved.state)} == {jax.local_devices()[0]}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_of_any_file_is_harmless_or_told(two_steps, damage, capfd):
    told = 0
    with Checkpoints(two_steps) as checkpoints:
        for path in files_of(two_steps / "6"):
            data, said = path.read_bytes(), []
            try:
                damage(path)
                saved = checkpoints.restore_newest(ABSTRACT, said.append)
            finally:
                path.write_bytes(data)
            assert_is(saved, 3 if said else 6)
            told += len(said)
        assert_is(checkpoints.restore_newest(ABSTRACT, pytest.fail), 6)  # all is mended
    assert told >= 5  # two files of weights, the list of them and of their names, our manifest
    assert capfd.readouterr() == ("", "")


def test_says_which_leaf_of_which_step_is_damaged(two_steps):
    """One byte of each leaf that has its place in a file, wherever Orbax has put it."""
    named, said = [], []
    with Checkpoints(two_steps) as checkpoints:
        for path in files_of(two_steps / "6" / "state" / "ocdbt.process_0" / "d"):
            data = path.read_bytes()
            path.write_bytes(flipped(data))
            checkpoints.restore_newest(ABSTRACT, said.append)
            path.write_bytes(data)
    for sentence in said:
        before, name = sentence.split(" has another sha256")[0].split(" is damaged: ")
        assert before == f"The checkpoint of step 6 in {two_steps}"
        named.append(name)
    assert set(named) <= set(manifest.leaves(ABSTRACT))
    assert any(name.endswith("_params/kernel") for name in named)


def test_a_deletion_cut_short_at_any_file_is_noticed(directory):
    with Checkpoints(directory) as checkpoints:
        for path in files_of(directory / "6"):
            path.unlink()
            said = []
            assert_is(checkpoints.restore_newest(ABSTRACT, said.append), 3 if said else 6)
        assert len(said) == 1
        shutil.rmtree(directory / "6")
        assert_is(checkpoints.restore_newest(ABSTRACT, pytest.fail), 3)


def test_damaged_ones_are_moved_aside_and_can_be_saved_again(directory):
    aside = directory.parent / "damaged_checkpoints"
    for name in ("6", "6-2"):
        (directory / "6" / "state" / "manifest.ocdbt").write_bytes(b"")
        before = sorted(os.listdir(directory / "6"))
        said = []
        with Checkpoints(directory, RetentionPolicy(5)) as checkpoints:
            assert_is(checkpoints.restore_newest(ABSTRACT, said.append), 3)
            assert checkpoints.steps() == [3]
            assert sorted(os.listdir(aside / name)) == before
            checkpoints.save(6, state_of(6), {"skipped": 1.5})
        assert "Going back to that of step 3." in said[0]
        assert str(aside) in said[1]
        with Checkpoints(directory) as checkpoints:
            assert_is(checkpoints.restore_newest(ABSTRACT, pytest.fail), 6)


def test_when_all_are_damaged_they_stay(directory):
    for step in STEPS:
        (directory / str(step) / "manifest" / "manifest.json").unlink()
    before = contents(directory)
    with Checkpoints(directory, RetentionPolicy(5)) as checkpoints:
        with pytest.raises(UserError, match=r"step 6 .* step 3 .*put back a copy"):
            checkpoints.restore_newest(ABSTRACT, pytest.fail)
        with pytest.raises(UserError, match=r"step 6 .*manifest.json cannot be read.*\[3\]"):
            checkpoints.restore(6, ABSTRACT)
    assert contents(directory) == before
    assert os.listdir(directory.parent) == ["checkpoints"]


def test_what_is_no_checkpoint_is_passed_over(directory):
    """What a killed process leaves, an empty folder, and files that are not ours."""
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


def test_a_folder_under_another_step_is_not_that_step(directory):
    (directory / "6").rename(directory / "9")
    said = []
    with Checkpoints(directory) as checkpoints:
        assert_is(checkpoints.restore_newest(ABSTRACT, said.append), 3)
    assert len(said) == 1


def test_opened_to_read_it_writes_nothing(directory, tmp_path):
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
def test_another_network_is_refused_and_nothing_is_moved(directory, change, named):
    """Orbax would cast the dtype without a word."""
    other = jax.eval_shape(lambda: change(state_of(0)))
    with Checkpoints(directory, RetentionPolicy(5)) as checkpoints:
        with pytest.raises(UserError, match=f"step 6 .* of another network: .*{named}"):
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
def test_a_forged_manifest_is_refused_in_a_sentence(directory, forge):
    path = directory / "6" / "manifest" / "manifest.json"
    record = json.loads(path.read_text())
    del record["sha256"]
    forge(record["leaves"])
    text = json.dumps(record, sort_keys=True)
    record["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(record))
    with Checkpoints(directory) as checkpoints, pytest.raises(UserError, match="step 6"):
        checkpoints.restore(6, ABSTRACT)


def test_numbers_of_the_loop_are_verified_too(directory):
    path = directory / "6" / "manifest" / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"skipped": 1.5', '"skipped": 2.5'))
    assert path.read_text() != text
    with Checkpoints(directory) as checkpoints, pytest.raises(UserError, match="not as it was"):
        checkpoints.restore(6, ABSTRACT)


KEPT = [
    (RetentionPolicy(2), {5, 6}),
    (RetentionPolicy(1, every_steps=2), {2, 4, 6}),
    (RetentionPolicy(1, best=True), {2, 6}),
    (RetentionPolicy(2, every_steps=3, best=True), {2, 3, 5, 6}),
]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(("keep", "steps"), KEPT)
def test_which_stay(tmp_path, keep, steps, restart):
    """kNN is measured at some steps only; the best is at 1, then as good at 2."""
    knn = {1: 0.7, 2: 0.7, 4: 0.6}
    small = state_of(0, size=1)
    checkpoints = Checkpoints(tmp_path, keep)
    for step in range(1, 7):
        checkpoints.save(step, small, knn=knn.get(step))
        if restart:
            checkpoints.close()
            checkpoints = Checkpoints(tmp_path, keep)
    checkpoints.close()
    with Checkpoints(tmp_path) as checkpoints:
        assert set(checkpoints.steps()) == steps


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
def test_a_full_disk_is_one_sentence_and_leaves_the_checkpoint_before(disk, new_start, capfd):
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
            UserError, match=rf"step {step} could not be written .*\(No space left on device\)"
        ):
            checkpoints.wait()
        checkpoints.wait()  # told once
        assert checkpoints.steps() == [3]
        assert shutil.disk_usage(path).used == used  # nothing half-written stays
    checkpoints.save(12, state_of(12))
    with pytest.raises(UserError, match="step 12 could not be written"):
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


def test_a_full_disk_is_that_one_sentence_outside_of_tests_too(disk):
    """Where no pytest takes what Orbax and TensorStore print."""
    path, _ = disk
    (path / "ballast").write_bytes(b"x" * (shutil.disk_usage(path).free - 2**16))
    program = (
        "import pathlib, sys; from test_checkpoint import *\n"
        "with Checkpoints(pathlib.Path(sys.argv[1]), RetentionPolicy(1)) as checkpoints:\n"
        "    checkpoints.save(6, state_of(6))\n"
        "    try: checkpoints.wait()\n"
        "    except UserError as error: print(error)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, path / "checkpoints"],
        env=os.environ | {"PYTHONPATH": f"{root}:{root / 'tests' / 'runs'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("The checkpoint of step 6 could not be written")
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_a_folder_that_cannot_be_written_is_one_sentence(disk, capfd):
    path, mount = disk
    directory = path / "checkpoints"
    with Checkpoints(directory, RetentionPolicy(1)) as checkpoints:
        checkpoints.save(3, state_of(3), {"skipped": 3 / 4})
        checkpoints.wait()
        assert mount("remount,ro")
        with pytest.raises(
            UserError, match=r"step 6 could not be written .*\(Read-only file system\)"
        ):
            checkpoints.save(6, state_of(6))
            checkpoints.wait()
        assert_is(checkpoints.restore_newest(ABSTRACT, pytest.fail), 3)
    with pytest.raises(UserError, match="cannot be made"):
        Checkpoints(path / "other", RetentionPolicy(1))
    assert mount("remount,rw")
    (directory / "6").mkdir()
    assert mount("remount,ro")
    with (
        Checkpoints(directory, RetentionPolicy(1)) as checkpoints,
        pytest.raises(UserError, match=r"steps \[6\] cannot be moved"),
    ):
        checkpoints.restore_newest(ABSTRACT, lambda _: None)
    assert capfd.readouterr() == ("", "")
