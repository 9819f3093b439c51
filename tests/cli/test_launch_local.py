"""Several processes on one machine: their flags and GPUs, signals, and failures."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from byol_jax import backend
from byol_jax.cli import launch_local
from byol_jax.errors import ConfigError

ROOT = Path(__file__).parents[2]

# Replaces pretrain: records what it received in its own files, then does what the flags ask for.
PROGRAM = """
import os, pathlib, signal, sys, time

flags = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
number, folder = flags["process_id"], pathlib.Path(flags["folder"])

def record(name, text):
    with (folder / f"{name}{number}").open("a") as file:
        file.write(text)

def on_signal(signal_number, frame):
    record("signals", f"{signal_number} ")
    deadline[0] = time.monotonic() + 0.3  # long enough to record a second one

deadline = [float("inf")]
for caught in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(caught) != signal.SIG_IGN:
        signal.signal(caught, on_signal)
if "stubborn" in flags:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
record("flags", " ".join(sys.argv[1:]))
record("gpus", os.environ.get("CUDA_VISIBLE_DEVICES", "unset"))
record("threads", os.environ.get("OMP_NUM_THREADS", "unset"))
print("out of", number, flush=True)
print("error of", number, file=sys.stderr, flush=True)
record("ready", "")
if number == flags.get("fails"):
    sys.exit(int(flags["code"]))
if number == flags.get("killed"):
    os.kill(os.getpid(), signal.SIGKILL)
while "waits" in flags and time.monotonic() < deadline[0]:
    time.sleep(0.01)
if deadline[0] < float("inf"):
    sys.exit(int(flags.get("stopped_exit_code", 0)))
"""


@pytest.fixture
def start(tmp_path):
    """A function that launches the program in its own session, with short grace periods."""
    (tmp_path / "program.py").write_text(PROGRAM)
    launchers = []

    def call(count, *flags, grace=60, gpus=None, hangup="SIG_DFL"):
        main = (
            # The tests may run under nohup.
            "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL);"
            f"signal.signal(signal.SIGHUP, signal.{hangup});"
            "import sys; from byol_jax.cli import launch_local as l; l.KILL_GRACE = 0.3;"
            f"sys.exit(l.launch({count}, {[f'--folder={tmp_path}', *flags]!r}, ['-m', 'program'], "
            f"{grace}))"
        )
        environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        environment |= {"PYTHONPATH": f"{tmp_path}:{ROOT}", "JAX_PLATFORMS": ""}
        environment |= {} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus}
        launcher = subprocess.Popen(
            [sys.executable, "-c", main],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        launchers.append(launcher)
        return launcher

    yield call
    for launcher in launchers:
        with launcher:  # closes its pipes
            if launcher.poll() is None:  # a test has failed
                launcher.kill()


def finish(running, within=20):
    out, err = running.communicate(timeout=within)
    return running.returncode, out, err


def wait_for(*paths):
    for _ in range(1000):
        if all(path.exists() for path in paths):
            return
        time.sleep(0.01)
    raise TimeoutError(paths)


def test_each_process_gets_its_flags_and_its_output_a_prefix(start, tmp_path):
    code, out, err = finish(start(3, "--config=c.py", "--config.steps=3", gpus="-1"))
    assert code == 0 and out == "out of 0\n"
    assert sorted(err.splitlines()) == sorted(
        ["error of 0"] + [f"[{i}] {word} of {i}" for i in (1, 2) for word in ("out", "error")]
    )
    addresses = set()
    for i in range(3):
        given = (tmp_path / f"flags{i}").read_text().split()
        assert given[1:3] == ["--config=c.py", "--config.steps=3"]
        assert given[4:] == ["--num_processes=3", f"--process_id={i}"]
        addresses.add(given[3])
    (address,) = addresses
    assert address.startswith("--coordinator_address=localhost:")


def test_gpus_are_divided(start, tmp_path):
    assert finish(start(2, gpus="4,5,6,7"))[0] == 0
    assert [(tmp_path / f"gpus{i}").read_text() for i in (0, 1)] == ["4,5", "6,7"]


@pytest.mark.parametrize("own", ["", "5"])
def test_the_processes_share_the_cores(start, tmp_path, monkeypatch, own):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if own:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    assert finish(start(2, gpus="-1"))[0] == 0
    share = own or str(max(1, backend.cores() // 2))
    assert [(tmp_path / f"threads{i}").read_text() for i in (0, 1)] == [share, share]


def test_gpus_that_do_not_divide_are_refused():
    assert launch_local.shares(["0", "1"], 2) == [["0"], ["1"]]
    assert launch_local.shares([], 2) == [[], []]
    for names, count in ((["0", "1", "2"], 2), (["0"], 2)):
        with pytest.raises(ConfigError, match=f"{len(names)} GPUs do not divide among {count}"):
            launch_local.shares(names, count)


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2, 3"}, ["2", "3"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a,MIG-b"}, ["GPU-a", "MIG-b"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0", "JAX_PLATFORMS": "cpu"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0", "JAX_PLATFORMS": "cuda,cpu"}, ["0"]),
    ],
)
def test_gpus_of_an_environment(environment, names):
    assert launch_local.gpus(environment) == names


def test_gpus_are_counted_if_none_is_chosen(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100'\necho 'GPU 1: NVIDIA H100'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert launch_local.gpus({}) == ["0", "1"]
    program.write_text("#!/bin/sh\nexit 9\n")  # a driver that is not running
    assert launch_local.gpus({}) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_each_process_once(start, tmp_path, number):
    running = start(2, "--waits=1", gpus="-1")
    wait_for(tmp_path / "ready0", tmp_path / "ready1")
    # Like Ctrl-C in a terminal: to the launcher's process group.
    os.killpg(running.pid, number)
    code, _, err = finish(running)
    assert code == 0 and "error:" not in err
    for i in (0, 1):
        assert (tmp_path / f"signals{i}").read_text().split() == [str(int(number))]


def test_an_ignored_hangup_stays_ignored(start, tmp_path):
    running = start(2, "--waits=1", gpus="-1", hangup="SIG_IGN")
    wait_for(tmp_path / "ready0", tmp_path / "ready1")
    running.send_signal(signal.SIGHUP)
    running.send_signal(signal.SIGTERM)
    assert finish(running)[0] == 0
    for i in (0, 1):
        assert (tmp_path / f"signals{i}").read_text().split() == [str(int(signal.SIGTERM))]


def test_the_exit_code_of_a_stop_is_not_a_failure(start, tmp_path):
    running = start(2, "--waits=1", "--stopped_exit_code=75", gpus="-1")
    wait_for(tmp_path / "ready0", tmp_path / "ready1")
    running.send_signal(signal.SIGTERM)
    code, _, err = finish(running)
    assert code == 75 and "error:" not in err
    # Done without a stop: 0. Failures are reported as usual.
    assert finish(start(2, "--stopped_exit_code=75", gpus="-1"))[0] == 0
    code, _, err = finish(
        start(2, "--stopped_exit_code=75", "--fails=1", "--code=76", grace=0.1, gpus="-1")
    )
    assert code == 76 and "process 1 of 2 ended with exit code 76" in err


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--config=c.py"], 0),
        (["--stopped_exit_code=75", "--config=c.py"], 75),
        (["-stopped_exit_code", "75"], 75),
        (["--stopped_exit_code=75", "--stopped_exit_code=3"], 3),
        (["--stopped_exit_code"], 0),
    ],
)
def test_the_exit_code_of_a_stop_is_read_from_the_flags(flags, code):
    assert launch_local._stopped_exit_code(flags) == code


def test_after_a_failure_the_others_may_exit(start, tmp_path):
    running = start(2, "--waits=1", "--fails=1", "--code=3", gpus="-1")
    wait_for(tmp_path / "ready0", tmp_path / "ready1")
    lines = [running.stderr.readline() for _ in range(5)]
    failure = "process 1 of 2 ended with exit code 3; its output is above, prefixed with [1]."
    assert f"error: {failure}\n" in lines
    assert "The other processes have 60 s to exit.\n" in lines
    assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    assert finish(running)[0] == 3


def test_processes_that_do_not_exit_get_sigterm(start, tmp_path):
    code, _, err = finish(start(2, "--waits=1", "--fails=0", "--code=2", grace=0.3, gpus="-1"))
    assert code == 2 and "process 0 of 2 ended with exit code 2; its output is above, wi" in err
    assert (tmp_path / "signals1").read_text().split() == [str(int(signal.SIGTERM))]


def test_processes_that_ignore_sigterm_are_killed(start):
    running = start(2, "--waits=1", "--stubborn=1", "--killed=1", grace=0.1, gpus="-1")
    code, _, err = finish(running)
    assert code == 128 + signal.SIGKILL
    assert "process 1 of 2 ended with SIGKILL" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "The first argument is the number of processes, and is missing: byol-jax launch-local",
        ),
        (["--config=c.py"], "number of processes, not '--config=c.py'"),
        (["0", "--config=c.py"], "number of processes, not '0'"),
        (["-2", "--config=c.py"], "number of processes, not '-2'"),
        (["2.5"], "number of processes, not '2.5'"),
        (["2"], "The flags of pretrain are missing: byol-jax launch-local 2 --config=NAME"),
        (["2", "--process_id=1"], "--process_id=1 is set for each process here: leave it out"),
        (["2", "-num_processes", "1"], "-num_processes is set for each process here"),
    ],
)
def test_wrong_arguments_are_one_line(capsys, arguments, message):
    assert launch_local.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and message in err and err.count("\n") == 1
