"""Several processes of one run: joining them, agreeing on what happens, and leaving together.

All processes do the same in the same order, since whatever they decide by is the same on all of
them (replicated over devices, or agreed on here). A process that fails on its own cannot tell the
others, who may be waiting for it within an update; they notice that it is gone.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from byol_jax.errors import UserError

T = TypeVar("T")
# Until a process that hangs, or whose machine is gone without a word, counts as lost.
HEARTBEAT_SECONDS = 45
TEXT_BYTES = 2048  # of a sentence that is passed on to other processes

LOST = (
    "another process of this run was lost; what it printed says why. Nothing that was saved is "
    "lost: start all processes again, and the run goes on from its last checkpoint"
)
# Where a process is lost, JAX ends the others from C++ by an abort, which no Python survives to
# explain. This small program does: it reads the process's pipe until that is closed, and speaks if
# there was no farewell in it.
_WITNESS = f"""
import sys
if not sys.stdin.buffer.read():
    print("error: this process was ended from outside or by JAX. If it was not killed itself, "
          {LOST!r} + ".", file=sys.stderr)
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
    if not missing:
        if not coordinator_address.rpartition(":")[2].isdigit() or ":" not in coordinator_address:
            raise UserError(
                f"--coordinator_address={coordinator_address} must be HOST:PORT, the same on all "
                "processes."
            )
        if not 0 <= process_id < num_processes:
            raise UserError(
                f"--process_id={process_id} must be at least 0 and below --num_processes="
                f"{num_processes}."
            )
        print(f"Process {process_id} of {num_processes}, at {coordinator_address}", flush=True)
        how |= given | {"cluster_detection_method": "deactivate"}
    elif _is_alone_on_its_machine() and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        # JAX gives a Slurm or MPI task one device; none named, it has all that it sees.
        how["local_device_ids"] = []
    try:
        jax.distributed.initialize(**how)
    except ValueError as error:
        if missing and "coordinator_address" in str(error):
            return  # no cluster: one process
        raise UserError(f"the processes of this run cannot be joined: {error}") from error
    except RuntimeError as error:
        raise UserError(
            f"the processes of this run cannot be joined: {str(error).splitlines()[0]}"
        ) from error
    if jax.process_count() > 1:
        global _witness
        # In a session of its own: signals are meant for the run.
        _witness = subprocess.Popen(
            [sys.executable, "-S", "-c", _WITNESS], stdin=subprocess.PIPE, start_new_session=True
        )


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
    _witness.stdin.write(b"bye")
    _witness.stdin.close()
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)


def is_first() -> bool:
    """Whether this is the process that writes logs and pictures."""
    return jax.process_index() == 0


def together(action: Callable[[], T]) -> T:
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
def losing_one_is_said() -> Iterator[None]:
    """Turns what JAX raises inside when another process is gone into a UserError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = (str(error).splitlines() or [""])[0]
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in text:
            raise
        raise UserError(f"{LOST} ({text[:200]}).") from error
