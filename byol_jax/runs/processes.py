"""Several processes of one run: how they join, agree on what happens, and exit together.

All processes make the same calls in the same order, because whatever they decide by is the same in
all of them: replicated over devices, or agreed on here. A process that fails on its own cannot
notify the others, who may be waiting for it within an update; they notice that it is gone.
"""

import contextlib
import faulthandler
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from byol_jax.errors import ConfigError, ProcessLostError, UserError
from byol_jax.runs import paths

T = TypeVar("T")
HEARTBEAT_SECONDS = 30  # after which a process that hangs, or whose machine is gone, counts as lost
SHARED_SECONDS = 20  # until all processes must see a new file; network file systems are slow
CONNECT_SECONDS = 180  # until process 0 must listen
TEXT_BYTES = 2048  # of a text that is sent to other processes

LOST = (
    "another process of this run was lost; its own output has the reason. Saved checkpoints are "
    "not affected: start all processes again, and the run resumes from the last one"
)
SINGLE = "(To train alone: --coordinator_address=localhost:8476 --num_processes=1 --process_id=0.)"
# If a process is lost, JAX ends the others by an abort in C++, in which no Python code can run.
# This small program survives it: it reads a pipe from its process until that is closed, and prints
# the reason unless the process has written a clean-exit marker.
_EXIT_REPORTER = f"""
import sys
if not sys.stdin.buffer.read():
    print("error: this process was ended from outside or by JAX. If nobody killed it, "
          "some processes never joined, or " + {LOST!r} + ".", file=sys.stderr)
"""
_exit_reporter: subprocess.Popen | None = None


def join(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the other processes of this run, if there are any; call it before anything uses JAX.

    TPU pods, Slurm and Kubernetes are detected by `jax.distributed.initialize`.

    Args:
      coordinator_address: HOST:PORT at which all can reach process 0.
      num_processes: number of processes.
      process_id: index of this process, from 0.

    Raises:
      ConfigError: only some of the three are given, or their values are invalid.
      ProcessLostError: the other processes cannot be reached.
    """
    given = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ConfigError(
            f"{' and '.join(missing)} missing: give all of --coordinator_address, --num_processes "
            "and --process_id, or none of them if the cluster is detected."
        )
    # Its handler would replace ours for SIGTERM, and swallow the signal until ours is installed.
    jax.config.update("jax_enable_preemption_service", False)
    if not missing:
        host, _, port = coordinator_address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise ConfigError(
                f"--coordinator_address={coordinator_address} must be HOST:PORT, the same on all "
                "processes."
            )
        if not 0 <= process_id < num_processes:
            raise ConfigError(
                f"--process_id={process_id} must be at least 0 and below "
                f"--num_processes={num_processes}."
            )
        count, name = num_processes, f"Process {process_id}"
        options = given | {"cluster_detection_method": "deactivate"}
    else:
        count, name = _launched_tasks(), "One"
        options = {}
        if "SLURM_JOB_ID" in os.environ and "OMPI_COMM_WORLD_SIZE" not in os.environ:
            if count == 1:
                return
            options["num_processes"] = count  # JAX would take SLURM_NTASKS
        if _is_only_task_on_node() and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
            # JAX gives each Slurm or MPI task one device; an empty list leaves it all that it sees.
            options["local_device_ids"] = []
    if count > 1:
        _start_exit_reporter()
        print(f"{name} of {count} processes; waiting for the others. {SINGLE}", flush=True)
    if process_id:
        _wait_for_coordinator(coordinator_address)
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **options)
    except Exception as error:  # detecting a cluster can raise anything
        if missing and "coordinator_address" in str(error):
            return  # no cluster: one process
        if "must be called before any JAX calls" in str(error):
            raise ConfigError(
                "JAX has computed something before this run could start, such as an array at the "
                "top of your encoder's module: make it a NumPy array there."
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ProcessLostError(
            f"the processes of this run cannot be joined ({reason}). {SINGLE}"
        ) from error
    if jax.process_count() > 1:
        _start_exit_reporter()


def _launched_tasks() -> int:
    """The number of processes that mpirun or srun started for this job step; 1 without them."""
    # Not SLURM_NTASKS, which sbatch and salloc set too, for a script that runs once.
    for name in ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1


def _is_only_task_on_node() -> bool:
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0]  # such as 1(x4)
    return (tasks or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE")) == "1"


def _wait_for_coordinator(address: str) -> None:
    """Returns when process 0 listens; JAX itself would wait longer, and then abort."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ProcessLostError(
                    f"no answer at --coordinator_address={address} ({error.strerror or error}): is "
                    "process 0 running, is this its machine, and is the port open?"
                ) from error
            time.sleep(1)


def _start_exit_reporter() -> None:
    global _exit_reporter
    if _exit_reporter is None:
        faulthandler.disable()  # an abort would print the stack and 150 module names
        _exit_reporter = subprocess.Popen(
            [sys.executable, "-S", "-c", _EXIT_REPORTER],
            stdin=subprocess.PIPE,
            start_new_session=True,  # signals are meant for the run only
        )


def joined() -> bool:
    """Whether this is one of several processes."""
    return _exit_reporter is not None


def shutdown(failed: bool) -> None:
    """Marks the exit of this process, one of several, as clean: it is done or printed its error."""
    with contextlib.suppress(OSError):  # the reporter may have been killed
        _exit_reporter.stdin.write(b"clean exit")
        _exit_reporter.stdin.close()
    if not jax.distributed.is_initialized():
        return
    if not failed:
        jax.distributed.shutdown()  # waits for the others
    elif is_first():
        # The others depend on its coordinator: give them time to print their errors.
        time.sleep(2)


def is_first() -> bool:
    """Whether this is the process that writes logs and plots."""
    return jax.process_index() == 0


def run_on_all_processes(action: Callable[[], T]) -> T:
    """Returns the result of `action`; if it fails in one process, all raise an error of that type.

    All processes must call it.

    Raises:
      UserError, or a direct subclass: `action` raised it, here or in another process.
    """
    if jax.process_count() == 1:
        return action()
    result, failure = None, None
    try:
        result = action()
    except UserError as error:
        failure = error
    texts = _gather_texts(f"{type(failure).__name__}\n{failure}" if failure else "")
    if failure:
        raise failure
    kinds = {kind.__name__: kind for kind in UserError.__subclasses__()}
    for process, text in enumerate(texts):
        if text:
            name, _, message = text.partition("\n")
            raise kinds.get(name, UserError)(f"process {process}: {message}")
    return result


def from_first(value: T) -> T:
    """The value of process 0, of a type that JSON has, in all processes; all must call it."""
    return value if jax.process_count() == 1 else json.loads(_gather_texts(json.dumps(value))[0])


def check_same(what: str, text: str) -> None:
    """Raises ConfigError unless all processes pass the same text."""
    if jax.process_count() > 1:
        texts = _gather_texts(text)
        others = [process for process, other in enumerate(texts) if other != texts[0]]
        if others:
            raise ConfigError(
                f"process {others[0]} was started with other {what} than process 0: give all "
                "processes the same flags and the same data."
            )


def _gather_texts(text: str) -> list[str]:
    """The text of each process, cut to TEXT_BYTES."""
    encoded = np.frombuffer(text.encode()[:TEXT_BYTES], np.uint8)
    padded = np.pad(encoded, (0, TEXT_BYTES - len(encoded)))
    gathered = np.asarray(multihost_utils.process_allgather(padded))
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in gathered]


@contextlib.contextmanager
def translate_errors(
    advice: str = "make config.batch_size smaller, or config.accum_steps larger for the same batch "
    "in smaller parts",
) -> Iterator[None]:
    """Turns an error of JAX for lack of memory or of another process into a UserError.

    Args:
      advice: what to do for lack of memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = (str(error).splitlines() or [""])[0][:200]
        if "RESOURCE_EXHAUSTED" in text:
            raise ConfigError(f"the device has too little memory ({text}): {advice}.") from error
        if jax.process_count() == 1:
            raise
        raise ProcessLostError(f"{LOST} ({text}).") from error


def check_shared(folder: paths.AnyPath) -> None:
    """Raises ConfigError unless all processes see the same folder; process 0 can write there."""
    if jax.process_count() == 1 or not paths.is_local(folder):
        return
    file = folder / "lock"  # process 0 holds it
    if is_first():
        with paths.translate_write_errors(file):
            file.write_text(secrets.token_hex(8))
    token = from_first(file.read_text() if is_first() else "")

    def look() -> None:
        deadline = time.monotonic() + SHARED_SECONDS
        while not (file.exists() and file.read_text() == token):
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"--workdir={folder} is not the same folder here as for process 0: name one "
                    "that all processes share."
                )
            time.sleep(0.2)

    run_on_all_processes(look)
