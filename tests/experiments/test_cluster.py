"""The job files: they parse, their flags exist, and they end with the right exit code."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from absl import flags
from commands import imported

from byol_jax.cli import config_flag
from byol_jax.runs import config as config_lib
from byol_jax.runs import tree

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "experiments" / "cluster"
SLURM, TPU = CLUSTER / "slurm.sbatch", CLUSTER / "tpu_queued_resources.sh"
KUBERNETES = CLUSTER / "kubernetes_jobset.yaml"

# Replaces python: records its arguments, then exits with CODE, by itself or on SIGTERM.
TRAINING = """#!/bin/bash
trap 'exit "$CODE"' TERM
echo "$$" >pid
echo "$@" >started
if [[ -n $WAITS ]]; then
    for _ in {1..500}; do sleep 0.02; done
fi
exit "$CODE"
"""
# Replaces srun: on SIGTERM it does not pass it on, but kills the tasks.
SRUN = """#!/bin/bash
python "$@" &
trap 'kill -KILL "$!"; exit 137' TERM
wait "$!"
"""
REQUEUE = """#!/bin/bash
echo "$@" >requeued
"""

# Replaces gcloud: a queued resource whose states come from a file, one per query (the last one
# stays), and a slice of one host, which is the folder "host".
GCLOUD = """#!/bin/bash
echo "$3 $4" >>calls
case "$3 $4" in
    *describe)
        head -n 1 states
        if (($(wc -l <states) > 1)); then sed -i 1d states; fi
        ;;
    *ssh)
        cd host
        for argument; do
            if [[ $argument == --command=* ]]; then exec bash -c "${argument#--command=}"; fi
        done
        ;;
esac
"""
# Like the real pgrep: complete command lines, one per line, its caller's among them.
PGREP = """#!/bin/bash
{ cat processes; tr '\\0\\n' '  ' </proc/$PPID/cmdline; echo; } | grep -E -e "$2"
"""
GIT = """#!/bin/bash
echo "$@" >>git_calls
"""
NOTHING = """#!/bin/bash
"""


def jobset():
    (found,) = yaml.safe_load_all(KUBERNETES.read_text())
    (job,) = found["spec"]["replicatedJobs"]
    return found, job["template"]["spec"]


def pod_script():
    _, job = jobset()
    (container,) = job["template"]["spec"]["containers"]
    shell, flag, script = container["command"]
    assert (shell, flag) == ("bash", "-c")
    return script


def scripts():
    return {"slurm": SLURM.read_text(), "tpu": TPU.read_text(), "kubernetes": pod_script()}


@pytest.mark.parametrize("name", ["slurm", "tpu", "kubernetes"])
def test_the_shell_is_sound(name):
    done = subprocess.run(["bash", "-n"], input=scripts()[name], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("name", ["slurm", "tpu", "kubernetes"])
def test_each_flag_of_the_training_exists(name):
    with imported("pretrain"):
        known = set(flags.FLAGS)
    command = re.search(r"-m byol_jax\.cli pretrain((?:.*\\\n)+.*)", scripts()[name])[1]
    given = re.findall(r"--([\w.]+)=(\S+)", command)
    assert {"config", "workdir"} <= {flag for flag, _ in given}
    for flag, value in given:
        if flag.startswith("config."):
            tree.get(config_lib.default(), flag.removeprefix("config."))
        else:
            assert flag in known
        if flag == "config":
            assert value.partition(":")[0] in config_flag.names()


def test_the_jobset_is_consistent():
    found, job = jobset()
    (replicated,) = found["spec"]["replicatedJobs"]
    script = pod_script()
    name, port = found["metadata"]["name"], re.search(r"address=\S+:(\d+)", script)[1]
    assert f"--coordinator_address={name}-{replicated['name']}-0-0.{name}:{port}" in script
    assert f"--num_processes={job['parallelism']} " in script
    assert job["completions"] == job["parallelism"] and job["completionMode"] == "Indexed"
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["ports"] == [{"containerPort": int(port)}]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def programs(tmp_path, **texts):
    """An environment whose PATH begins with these programs."""
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return dict(os.environ, PATH=f"{tmp_path}:{os.environ['PATH']}")


def run_script(tmp_path, script, *, code, signalled):
    """Runs a script whose training exits with `code`, by itself or when one of them gets SIGTERM.

    Returns the exit code of the script and what it requeued.
    """
    environment = programs(tmp_path, python=TRAINING, srun=SRUN, scontrol=REQUEUE) | {
        "CODE": str(code),
        "WAITS": "1" if signalled else "",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "12",
        "JOB_COMPLETION_INDEX": "2",
    }
    running = subprocess.Popen(["bash", "-c", script], cwd=tmp_path, env=environment)
    try:
        if signalled:
            for _ in range(500):
                if (tmp_path / "started").exists():
                    break
                time.sleep(0.01)
            pid = running.pid if signalled == "script" else int((tmp_path / "pid").read_text())
            os.kill(pid, signal.SIGTERM)
        code = running.wait(timeout=20)
    finally:
        running.kill()
        running.wait()
    requeued = tmp_path / "requeued"
    return code, requeued.read_text().split() if requeued.exists() else None


@pytest.mark.parametrize(
    ("code", "has_signal", "want"),
    [
        (0, False, (0, None)),
        (1, False, (1, None)),
        (75, True, (75, ["requeue", "7"])),  # stopped and saved: not finished
        (0, True, (0, None)),  # the signal came after the last step
        (1, True, (1, None)),
    ],
)
def test_slurm_requeues_a_stopped_job(tmp_path, code, has_signal, want):
    script = SLURM.read_text()
    # Slurm signals the tasks, or with B: the script alone.
    alone = re.search(r"^#SBATCH --signal=(B:)?TERM@\d+$", script, re.MULTILINE)[1]
    signalled = has_signal and ("script" if alone else "task")
    assert run_script(tmp_path, script, code=code, signalled=signalled) == want
    # srun does not inherit it from the job.
    assert "--cpus-per-task=12 " in (tmp_path / "started").read_text()


@pytest.mark.parametrize(("code", "has_signal"), [(0, False), (75, True), (1, False)])
def test_a_pod_exits_with_the_code_of_the_training(tmp_path, code, has_signal):
    signalled = has_signal and "script"
    assert run_script(tmp_path, pod_script(), code=code, signalled=signalled) == (code, None)
    assert "--process_id=2" in (tmp_path / "started").read_text()


@pytest.fixture
def queue(tmp_path):
    """A function that runs the TPU script, given the slice's states and the host's processes."""

    def run(*states, processes="/sbin/init"):
        environment = programs(
            tmp_path, gcloud=GCLOUD, pgrep=PGREP, git=GIT, sudo=NOTHING, sleep=NOTHING
        ) | {"ZONE": "z", "BUCKET": "gs://b", "REPOSITORY": "r", "CODE": "0"}
        venv = tmp_path / "host" / "byol_jax" / ".venv" / "bin"
        venv.mkdir(parents=True, exist_ok=True)
        programs(venv.parents[1], **{"run.sh": NOTHING})
        programs(venv, python=TRAINING, pip=NOTHING)
        (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
        (tmp_path / "host" / "processes").write_text(f"{processes}\n")
        return subprocess.run(
            ["bash", TPU], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=20
        )

    return run


def test_the_script_waits_for_a_slice_and_updates_its_code(queue, tmp_path):
    # The first two queries are made before the slice is requested.
    done = queue("", "", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    assert done.returncode == 0, done.stderr
    assert "byol is PROVISIONING" in done.stdout
    assert "queued-resources create" in (tmp_path / "calls").read_text()
    pulled = tmp_path / "host" / "git_calls"
    assert pulled.read_text() == "-C byol_jax pull --ff-only\n"
    started = tmp_path / "host" / "byol_jax" / "started"
    for _ in range(500):
        if started.exists() and "pretrain" in started.read_text():
            break
        time.sleep(0.01)
    assert "--workdir=gs://b/imagenet300" in started.read_text()


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_a_failed_request_ends_the_wait(queue, state):
    done = queue("", "", "PROVISIONING", state)
    assert done.returncode == 1
    assert done.stderr.startswith(f"byol is {state}; ") and done.stderr.count("\n") == 1


def test_a_slice_that_is_training_is_not_touched(queue, tmp_path):
    done = queue("ACTIVE", processes=".venv/bin/python -m byol_jax.cli pretrain --config=c.py")
    assert done.returncode == 1
    assert "is training already" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "host" / "git_calls").exists()
