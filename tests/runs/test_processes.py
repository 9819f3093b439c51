"""Two processes of two devices over loopback equal one process of four, and exit together."""

import os
import re
import signal
import time

import jax
import numpy as np
import pytest
import subprocesses
from faults import toy

from byol_jax import parallel
from byol_jax.errors import ConfigError, DataError, UserError
from byol_jax.runs import manifest, processes
from byol_jax.runs import run as run_lib
from byol_jax.train import loop

STEPS = 10
# A checkpoint after each step takes long enough for a signal to arrive between two steps.
FLAGS = {
    "steps": STEPS,
    "log_every_steps": 1,
    "checkpoint.every_steps": 1,
    "checkpoint.keep": STEPS,
    "evaluation.every_steps": 0,
    "data.placement": "device",  # tests/faults trains two processes that read data on the host
}


def start(workdir):
    flags = [f"--config.{key}={value}" for key, value in FLAGS.items()]
    return subprocesses.start(
        [
            *("-m", "byol_jax.cli", "pretrain", "--config=tests/faults/toy.py:convnet"),
            *(f"--workdir={workdir}", "--cpu_devices=2", *flags),
        ],
        devices=None,
    )


def train_in_one_process(workdir):
    config = toy.get_config("convnet")
    config.update_from_flattened_dict(FLAGS)
    assert loop.train(config, workdir)


def read_until(process, pattern):
    """The output of a process up to the first line with a pattern."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return "".join(lines)
    raise AssertionError("".join(lines))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of one process with four devices."""
    assert jax.device_count() == 4
    workdir = tmp_path_factory.mktemp("undisturbed")
    train_in_one_process(workdir)
    return workdir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of two processes of which one received SIGTERM, with (exit code, output) of both."""
    workdir = tmp_path_factory.mktemp("two")
    pair = start(workdir)
    before = read_until(pair[0], "^step 1/")
    pair[1].send_signal(signal.SIGTERM)
    (code, output), other = subprocesses.finish(pair)
    return workdir, [(code, before + output), other]


@pytest.fixture(scope="module")
def killed(stopped):
    """The same run, resumed until one of the processes was killed."""
    workdir, _ = stopped
    pair = start(workdir)
    before = read_until(pair[0], "^step ")
    pair[1].kill()
    since = time.monotonic()
    (code, output), _ = subprocesses.finish(pair)
    return workdir, code, before + output, time.monotonic() - since


def difference(one, other, step):
    """The largest difference of two runs at a step, relative to each leaf's largest value.

    Returns it with the leaf's name. Biases before a batch norm are left out: their true gradient
    is zero, so that they move by rounding errors alone.
    """
    leaves = [manifest.leaves(run_lib.restore(workdir, step).state) for workdir in (one, other)]

    def relative(name):
        got, want = (np.asarray(found[name], np.float64) for found in leaves)
        return np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)

    return max((relative(name), name) for name in leaves[1] if not name.endswith("dense1/bias"))


def test_a_signal_to_one_process_stops_both_at_the_same_step(stopped):
    workdir, ends = stopped
    assert [code for code, _ in ends] == [0, 0], ends
    step = int(re.search(r"Stopped and saved at step (\d+)", ends[0][1])[1])
    assert run_lib.checkpoints_of(workdir).latest_step() == step < STEPS
    assert "step 1/" not in ends[1][1]  # only process 0 prints


def test_two_processes_equal_one(stopped, undisturbed):
    worst, name = difference(stopped[0], undisturbed, 2)
    assert worst < 2e-5, name


def test_if_a_process_is_killed_the_other_exits_with_an_error(killed):
    _, code, output, seconds = killed
    assert code not in (0, None) and seconds < 60
    assert re.search(r"from the checkpoint of step \d+", output)
    assert "another process of this run was lost" in output
    assert "start all processes again" in output
    assert "Traceback" not in output and "Fatal Python error" not in output


def test_a_run_resumes_with_another_number_of_processes(killed, undisturbed):
    reached = run_lib.checkpoints_of(killed[0]).latest_step()
    train_in_one_process(killed[0])
    assert run_lib.checkpoints_of(killed[0]).latest_step() == STEPS
    worst, name = difference(killed[0], undisturbed, min(reached + 2, STEPS))
    assert worst < 1e-3, name


def test_a_folder_that_is_not_shared_is_rejected(tmp_path):
    pair = subprocesses.start(["-m", "tests.runs.shared_folder", f"--folder={tmp_path}"])
    ends = subprocesses.finish(pair)
    assert [code for code, _ in ends] == [1, 1], ends
    assert "is not the same folder" in ends[0][1] and "process 1: " in ends[0][1]


def test_the_rows_of_all_processes_form_the_same_micro_batches(monkeypatch):
    want = parallel.rows(24, 3).reshape(3, -1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    parts = []
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        parts.append(parallel.rows(24, 3))
    assert all(np.all(np.diff(rows) > 0) for rows in parts)
    got = np.concatenate([rows.reshape(3, -1) for rows in parts], axis=1)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1234", None, 0), r"--num_processes missing: give all of"),
        ((None, 2, None), r"--coordinator_address and --process_id missing"),
        (("localhost", 2, 0), r"--coordinator_address=localhost must be HOST:PORT"),
        (("localhost:1234", 2, 2), r"--process_id=2 must be at least 0 and below"),
    ],
)
def test_incomplete_or_invalid_flags_are_rejected(arguments, message):
    with pytest.raises(ConfigError, match=message):
        processes.join(*arguments)


def join_in(environment, monkeypatch):
    """Joins in a cluster's environment; returns the arguments for JAX, None if it is not called."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    monkeypatch.setattr(processes, "_start_exit_reporter", lambda: None)
    processes.join()
    return calls[0] if calls else None


SBATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
SHELL = {"SLURM_STEP_NODELIST": "node1", "SLURM_STEP_NUM_TASKS": "1"}


@pytest.mark.parametrize("environment", [SBATCH, SBATCH | SHELL], ids=["sbatch", "interactive"])
def test_a_slurm_script_without_srun_is_one_process(environment, monkeypatch, capsys):
    """SLURM_NTASKS is 4 in both; JAX would wait for the other three in an interactive step."""
    assert join_in(environment, monkeypatch) is None
    assert "waiting" not in capsys.readouterr().out


def test_srun_tells_the_number_of_processes(monkeypatch, capsys):
    environment = SBATCH | SHELL | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    options = join_in(environment, monkeypatch)
    assert options["num_processes"] == 2 and "local_device_ids" not in options
    assert "One of 2 processes; waiting" in capsys.readouterr().out


SRUN = SBATCH | SHELL | {"SLURM_STEP_NUM_TASKS": "4"}


@pytest.mark.parametrize(
    ("environment", "all_devices"),
    [
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, True),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "8(x4)"}, False),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, True),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "JAX_LOCAL_DEVICE_IDS": "0"}, False),
        ({}, False),
    ],
)
def test_the_only_task_on_a_node_has_all_devices(environment, all_devices, monkeypatch):
    options = join_in(environment, monkeypatch)
    assert (options.get("local_device_ids") == []) == all_devices
    assert options["heartbeat_timeout_seconds"] < 60


def test_one_process_agrees_with_itself():
    assert processes.run_on_all_processes(lambda: 3) == 3
    assert processes.from_first("any") == "any"
    processes.check_same("settings", "any")
    assert processes.is_first() and not processes.joined()


@pytest.mark.parametrize("kind", [DataError, UserError])
def test_an_error_has_the_same_type_in_all_processes(kind, monkeypatch):
    def fail():
        raise kind("no images")

    sent = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "_gather_texts", lambda text: sent.append(text) or ["", ""])
    with pytest.raises(kind, match=r"^no images"):
        processes.run_on_all_processes(fail)
    monkeypatch.setattr(processes, "_gather_texts", lambda text: [text, *sent])
    with pytest.raises(kind, match=r"^process 1: no images") as caught:
        processes.run_on_all_processes(lambda: 3)
    assert caught.type is kind
