"""Several processes of one run: joining them, agreeing on what happens, and leaving together.

All processes do the same in the same order, since whatever they decide by is the same on all of
them (replicated over devices, or agreed on here). A process that fails on its own cannot tell the
others, who may be waiting for it within an update; they notice that it is gone.
"""

import contextlib
import faulthandler
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

from byol_jax.errors import UserError
from byol_jax.runs.paths import AnyPath
from byol_jax.runs.paths import is_local
from byol_jax.runs.paths import writing

T = TypeVar("T")
# Until a process that hangs, or whose machine is gone without a word, counts as lost.
HEARTBEAT_SECONDS = 30
SHARED_SECONDS = 20  # until a file must be seen by all; network file systems take their time
ANSWER_SECONDS = 180  # until process 0 must be there
TEXT_BYTES = 2048  # of a sentence that is passed on to other processes

LOST = (
    "another process of this run was lost; what it printed says why. Nothing that was saved is "
    "lost: start all processes again, and the run goes on from its last checkpoint"
)
# Where a process is lost, JAX ends the others from C++ by an abort, which no Python survives to
# explain. This small program does: it reads the process's pipe until that is closed, and speaks if
# there was no farewell in it.
ALONE = "(To train alone: --coordinator_address=localhost:8476 --num_processes=1 --process_id=0.)"
_WITNESS = f"""
import sys
if not sys.stdin.buffer.read():
    print("error: this process was ended from outside or by JAX. If it was not killed itself, "
          "some of the processes never came, or " + {LOST!r} + ".", file=sys.stderr)
"""
_witness: subprocess.Popen | None = None


def join(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the other processes of this run, if there are any; before anything else uses JAX.

    TPU pods, Slurm and Kubernetes are found by themselves (`jax.distributed.initialize`).

    Args:
      coordinator_address: HOST:PORT at which process 0 can be reached by all.
      num_processes: how many there are.
      process_id: which of them this is, from 0.

    Raises:
      UserError: some of the three are given and others not, or they cannot be.
    """
    given = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise UserError(
            f"{' and '.join(missing)} missing: give all of --coordinator_address, --num_processes "
            "and --process_id, or none where the cluster is found by itself."
        )
    # Its handler would take SIGTERM away from ours, and swallow it before ours is there.
    jax.config.update("jax_enable_preemption_service", False)
    how = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS}
    count = _tasks()
    if not missing:
        _check(coordinator_address, num_processes, process_id)
        how |= given | {"cluster_detection_method": "deactivate"}
        count = num_processes
    elif _is_alone_on_its_machine() and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        # JAX gives a Slurm or MPI task one device; none named, it has all that it sees.
        how["local_device_ids"] = []
    if count > 1:
        _start_witness()
        who = "One" if missing else f"Process {process_id}"
        print(f"{who} of {count} processes; waiting for the others. {ALONE}", flush=True)
    if process_id:
        _wait_for_answer(coordinator_address)
    try:
        jax.distributed.initialize(**how)
    except Exception as error:  # what is looked up in a cluster can fail in any way
        if missing and "coordinator_address" in str(error):
            return  # no cluster: one process
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the processes of this run cannot be joined ({reason}). {ALONE}"
        ) from error
    if jax.process_count() > 1:
        _start_witness()


def _check(address: str, count: int, process: int) -> None:
    """Raises UserError unless this can be one of so many processes at such an address."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(
            f"--coordinator_address={address} must be HOST:PORT, the same on all processes."
        )
    if not 0 <= process < count:
        raise UserError(
            f"--process_id={process} must be at least 0 and below --num_processes={count}."
        )


def _wait_for_answer(address: str) -> None:
    """Returns when process 0 listens; JAX itself would wait longer, and then abort."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"nobody answers at --coordinator_address={address} ({error.strerror or error})"
                    ": is process 0 started, is that its machine, and is the port open?"
                ) from error
            time.sleep(1)


def _start_witness() -> None:
    global _witness
    if _witness is None:
        # An abort would print the stack and 150 modules besides.
        faulthandler.disable()
        # In a session of its own: signals are meant for the run.
        _witness = subprocess.Popen(
            [sys.executable, "-S", "-c", _WITNESS], stdin=subprocess.PIPE, start_new_session=True
        )


def _tasks() -> int:
    """How many processes Slurm or MPI has started for this job step; 1 without them."""
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1


def _is_alone_on_its_machine() -> bool:
    """Whether Slurm or MPI has started no other task of this job step here."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0]  # such as 1(x4)
    return (tasks or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE")) == "1"


def joined() -> bool:
    """Whether this is one of several processes."""
    return _witness is not None


def leave(code: int) -> None:
    """Says that this process, one of several, ends as it should, or has said why not.

    With an exit code other than 0 it ends here: Python's own way out would wait for the others.
    """
    with contextlib.suppress(OSError):  # it may have been killed
        _witness.stdin.write(b"bye")
        _witness.stdin.close()
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        if jax.distributed.is_initialized() and is_first():
            # It is where the others meet: gone at once, it would cut them off in mid-sentence.
            time.sleep(2)
        os._exit(code)


def is_first() -> bool:
    """Whether this is the process that writes logs and pictures."""
    return jax.process_index() == 0


def run_on_all_processes(action: Callable[[], T]) -> T:
    """The result of `action`; where it fails on one process, all raise what that one did.

    To be called by all processes.

    Raises:
      UserError: `action` raised it, here or elsewhere.
    """
    if jax.process_count() == 1:
        return action()
    result, failure = None, ""
    try:
        result = action()
    except UserError as error:
        failure = str(error)
    for process, text in enumerate(_texts(failure)):
        if text:
            raise UserError(failure or f"process {process}: {text}")
    return result


def check_same(what: str, text: str) -> None:
    """Raises UserError unless all processes come with the same text."""
    if jax.process_count() > 1:
        texts = _texts(text)
        others = [process for process, other in enumerate(texts) if other != texts[0]]
        if others:
            raise UserError(
                f"process {others[0]} was started with other {what} than process 0: give all "
                "processes the same flags and the same data."
            )


def _texts(text: str) -> list[str]:
    """The text of each process."""
    mine = np.zeros(TEXT_BYTES, np.uint8)
    encoded = np.frombuffer(text.encode()[:TEXT_BYTES], np.uint8)
    mine[: len(encoded)] = encoded
    everyones = np.asarray(multihost_utils.process_allgather(mine))
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in everyones]


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Turns what JAX raises inside for want of memory or of another process into a UserError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = (str(error).splitlines() or [""])[0][:200]
        if "RESOURCE_EXHAUSTED" in text:
            raise UserError(
                f"the device has too little memory ({text}): make config.batch_size smaller, or "
                "config.accum_steps larger for the same batch in smaller parts."
            ) from error
        if jax.process_count() == 1:
            raise
        raise UserError(f"{LOST} ({text}).") from error


def check_shared(folder: AnyPath) -> None:
    """Raises UserError unless all processes see the same folder; process 0 can write there."""
    if jax.process_count() == 1 or not is_local(folder):
        return
    mark = folder / "lock"  # process 0 holds it
    if is_first():
        with writing(mark):
            mark.write_text(secrets.token_hex(8))
    (token, *_) = _texts(mark.read_text() if is_first() else "")

    def look() -> None:
        deadline = time.monotonic() + SHARED_SECONDS
        while not (mark.exists() and mark.read_text() == token):
            if time.monotonic() > deadline:
                raise UserError(
                    f"--workdir={folder} is not the same folder here as for process 0: name one "
                    "that all processes share."
                )
            time.sleep(0.2)

    run_on_all_processes(look)
