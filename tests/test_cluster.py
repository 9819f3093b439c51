"""The job files: that they parse, pass flags that exist, and end with the right exit code."""

import ast
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from byol_jax import config as config_lib

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "experiments" / "cluster"
SLURM, TPU = CLUSTER / "slurm.sbatch", CLUSTER / "tpu_queued_resources.sh"
KUBERNETES = CLUSTER / "kubernetes_jobset.yaml"

# In place of srun or python: says what it was started with, then ends as CODE says, by itself or
# when told to.
TRAINING = """#!/bin/bash
trap 'exit "$CODE"' TERM
echo "$@" >started
if [[ -n $WAITS ]]; then
    for _ in {1..500}; do sleep 0.02; done
fi
exit "$CODE"
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
    source = ast.parse((ROOT / "experiments" / "pretrain.py").read_text())
    known = {
        node.args[0].value
        for node in ast.walk(source)
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", "").startswith("DEFINE_")
        and isinstance(node.args[0], ast.Constant)
    }
    command = re.search(r"-m experiments\.pretrain((?:.*\\\n)+.*)", scripts()[name])[1]
    flags = re.findall(r"--([\w.]+)=(\S+)", command)
    assert {"config", "workdir"} <= {flag for flag, _ in flags}
    for flag, value in flags:
        if flag.startswith("config."):
            config_lib.get(config_lib.default(), flag.removeprefix("config."))
        else:
            assert flag in known
        if flag == "config":
            assert (ROOT / value.partition(":")[0]).is_file()


def test_the_jobset_agrees_with_itself():
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


def end(tmp_path, script, program, *, code, told):
    """Runs a script with a stand-in for the program; returns its exit code and what it requeued."""
    for name, text in {program: TRAINING, "scontrol": '#!/bin/sh\necho "$@" >requeued\n'}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = dict(
        os.environ,
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        CODE=str(code),
        WAITS="1" if told else "",
        SLURM_JOB_ID="7",
        JOB_COMPLETION_INDEX="2",
    )
    running = subprocess.Popen(["bash", "-c", script], cwd=tmp_path, env=environment)
    try:
        if told:
            for _ in range(500):
                if (tmp_path / "started").exists():
                    break
                time.sleep(0.01)
            running.send_signal(signal.SIGTERM)  # to the script alone, as the scheduler does
        code = running.wait(timeout=20)
    finally:
        running.kill()
        running.wait()
    requeued = tmp_path / "requeued"
    return code, requeued.read_text().split() if requeued.exists() else None


@pytest.mark.parametrize(
    ("code", "told", "want"),
    [
        (0, False, (0, None)),
        (75, True, (75, ["requeue", "7"])),  # stopped and saved: the rest is to come
        (0, True, (0, None)),  # its last step was done when the signal came
        (1, True, (1, None)),
    ],
)
def test_slurm_queues_what_was_stopped(tmp_path, code, told, want):
    assert end(tmp_path, SLURM.read_text(), "srun", code=code, told=told) == want


@pytest.mark.parametrize(("code", "told"), [(0, False), (75, True), (1, False)])
def test_a_pod_is_told_and_ends_as_the_training_does(tmp_path, code, told):
    assert end(tmp_path, pod_script(), "python", code=code, told=told) == (code, None)
    assert "--process_id=2" in (tmp_path / "started").read_text()
