"""Batches made by a tf.data service: other machines decode and crop, the order stays ours.

Every element that the service sends is a whole batch with its step. Of a random-access source each
step is made by whichever worker is free; steps arrive in any order and are put back into theirs.
What is lost with a worker is made here. A streamed source is read by one worker from beginning to
end (a second one could only start by reading all that comes before), so each training host keeps
one worker busy, and a lost worker ends the run with a sentence.

Workers read the files themselves, under the same paths, and need this version of TensorFlow.
"""

import contextlib
import queue
import re
import socket
import threading
from collections.abc import Callable, Iterator

import numpy as np

from byol_jax.data._tensorflow import tf
from byol_jax.data.training import TrainPipeline
from byol_jax.errors import UserError

ADDRESS = re.compile(r"grpc://([^:/\s]+|\[[0-9a-fA-F:]+\]):(\d{1,5})")
CONNECT_SECONDS = 5.0
# Until the first batch, and between two.
PATIENCE_SECONDS = 120.0
# Batches that may arrive ahead of their turn before the one that is due counts as lost.
AHEAD = 16
STEPS_AT_A_TIME = 2  # of one worker
THREAD_NAME = "tf.data service"


def batches(
    plan: TrainPipeline, first: int, last: int, service: str
) -> Iterator[tuple[np.ndarray, ...]]:
    """What `plan.batches(first, last)` holds, made by a service.

    Args:
      plan: what the batches are.
      first: the first step.
      last: one more than the last step.
      service: "grpc://HOST:PORT", its dispatcher.

    Raises:
      UserError: at the call, the address is malformed or nobody answers there; while iterating,
        nothing arrives any more.
    """
    _check_answers(service)
    made = _tagged(plan, first, last).apply(
        tf.data.experimental.service.distribute(
            processing_mode=tf.data.experimental.service.ShardingPolicy.DYNAMIC, service=service
        )
    )
    return _closing(_Arrivals(made, service), plan, first, last, service)


def _closing(arrivals, *args):
    with contextlib.closing(arrivals):
        yield from _in_order(arrivals, *args)


def _tagged(plan: TrainPipeline, first: int, last: int) -> tf.data.Dataset:
    """(step, batch), in pieces that workers can share: the elements of the range."""
    if plan.source.order_depends_on_hosts:
        whole = tf.data.Dataset.range(1).flat_map(lambda _: plan.batches(first, last))
        return whole.enumerate(first)
    return tf.data.Dataset.range(first, last).interleave(
        lambda step: plan.batches(step, step + 1).map(lambda *batch: (step, batch)),
        cycle_length=STEPS_AT_A_TIME,
        num_parallel_calls=STEPS_AT_A_TIME,
        deterministic=True,
    )


class _Arrivals:
    """Called, returns the next (step, batch) to arrive, and None after the last."""

    def __init__(self, made: tf.data.Dataset, service: str):
        self._service = service
        self._queue: queue.Queue = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        # TensorFlow waits for a lost service without an end, so the waiting is done elsewhere.
        threading.Thread(target=self._fetch, args=(made,), daemon=True, name=THREAD_NAME).start()

    def __call__(self) -> tuple | None:
        try:
            element = self._queue.get(timeout=PATIENCE_SECONDS)
        except queue.Empty:
            raise UserError(
                f"the tf.data service {self._service} has sent nothing for {PATIENCE_SECONDS:g} s; "
                "see whether its dispatcher and its workers still run, or leave out "
                "--config.data.service."
            ) from None
        if isinstance(element, tf.errors.UnavailableError):
            raise UserError(
                f"the tf.data service {self._service} is lost: start it again, or leave out "
                "--config.data.service."
            ) from element
        if isinstance(element, Exception):
            raise element
        return element

    def close(self) -> None:
        """Asks for no more."""
        self._closed.set()

    def _fetch(self, made):
        try:
            for element in made.as_numpy_iterator():
                self._put(element)
                if self._closed.is_set():
                    return
            self._put(None)
        except Exception as error:
            self._put(error)

    def _put(self, element):
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(element, timeout=0.1)
                return


def _in_order(
    arrival: Callable[[], tuple | None], plan: TrainPipeline, first: int, last: int, service: str
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields the batches in the order of their steps."""
    early: dict[int, tuple[np.ndarray, ...]] = {}
    is_over = False
    for step in range(first, last):
        while step not in early and len(early) < AHEAD and not is_over:
            try:
                element = arrival()
            except tf.errors.OpError:
                if plan.source.order_depends_on_hosts:
                    raise
                # Of whichever step met it first: made here, each step tells of its own in its turn.
                element = None
            is_over = element is None
            if not is_over and element[0] >= step:  # not one that was made here meanwhile
                early[int(element[0])] = element[1]
        if step in early:
            yield early.pop(step)
        elif plan.source.order_depends_on_hosts:
            raise UserError(
                f"the tf.data service {service} lost the images of step {step + 1}; start again, "
                "and the run goes on from its last checkpoint."
            )
        else:
            yield from plan.batches(step, step + 1).as_numpy_iterator()


def _check_answers(service: str) -> None:
    """Raises UserError unless something listens at the address."""
    match = ADDRESS.fullmatch(service)
    if match is None or not 0 < int(match[2]) < 2**16:
        raise UserError(
            f"config.data.service={service!r} is not an address; write grpc://HOST:PORT, that of "
            "the dispatcher, or leave it empty."
        )
    try:
        socket.create_connection((match[1].strip("[]"), int(match[2])), CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"no tf.data service answers at {service} ({error.strerror or error}); start it with "
            "`python -m byol_jax.cli.data_service --port=N`, or leave out --config.data.service."
        ) from error


def start_dispatcher(port: int) -> tf.data.experimental.service.DispatchServer:
    """Starts the one that hands out the work; it serves until it is collected.

    Raises:
      UserError: the port is taken.
    """
    config = tf.data.experimental.service.DispatcherConfig(port=_free(port))
    return tf.data.experimental.service.DispatchServer(config)


def start_worker(
    dispatcher: str, port: int, host: str
) -> tf.data.experimental.service.WorkerServer:
    """Starts one that does the work; it serves until it is collected.

    Args:
      dispatcher: HOST:PORT of its dispatcher.
      port: where it listens; 0 for any free port.
      host: where training hosts find it.

    Raises:
      UserError: the port is taken, or there is no such dispatcher.
    """
    _check_answers(f"grpc://{dispatcher}")
    port = _free(port)
    config = tf.data.experimental.service.WorkerConfig(
        dispatcher_address=dispatcher, worker_address=f"{host}:{port}", port=port
    )
    return tf.data.experimental.service.WorkerServer(config)


def _free(port: int) -> int:
    """The port, or any free one for 0; TensorFlow itself would share one that is taken."""
    try:
        with socket.socket() as probe:
            # Or connections that a server left behind would count for a minute.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            return probe.getsockname()[1]
    except OSError as error:
        raise UserError(
            f"port {port} cannot be listened on ({error.strerror}); choose another --port."
        ) from error
