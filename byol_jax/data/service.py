"""Training batches from a tf.data service: other machines decode and crop, the order stays ours.

Every element that the service sends is a complete batch with its step. Of a random-access source,
each step is made by whichever worker is free; steps arrive in any order and are sorted here, and
what is lost with a worker is made here. A streamed source is read by one worker from beginning to
end (another one could only start by reading everything before), so each training process occupies
one worker, and the loss of a worker ends the run with an error.

Workers read the files themselves, under the same paths, and need the same version of TensorFlow.
"""

import queue
import re
import socket
import threading
from collections.abc import Callable, Iterator

import numpy as np

from byol_jax.data._tensorflow import tf
from byol_jax.errors import ConfigError, DataError

ADDRESS = re.compile(r"grpc://([^:/\s]+|\[[0-9a-fA-F:]+\]):(\d{1,5})")
CONNECT_SECONDS = 5.0
# Until the first batch, and between two.
PATIENCE_SECONDS = 120.0
# How many later batches may arrive before the next one counts as lost.
AHEAD = 16
STEPS_AT_A_TIME = 2  # of one worker
THREAD_NAME = "tf.data service"

Arrays = tuple[np.ndarray, ...]
MakeBatches = Callable[[tf.Tensor, tf.Tensor], tf.data.Dataset]


def batches(
    make: MakeBatches, first: int, last: int, service: str, streamed: bool
) -> Iterator[Arrays]:
    """What `make(first, last)` holds, made by a service.

    Args:
      make: makes a data set of the batches of steps first to last - 1.
      first: the first step.
      last: one more than the last step.
      service: "grpc://HOST:PORT", its dispatcher.
      streamed: whether a step costs reading all steps before, so that one worker makes them all.

    Raises:
      ConfigError: at the call, if the address is malformed.
      DataError: at the call, if nothing listens there; while iterating, if batches stop arriving.
    """
    _check_reachable(service)
    made = _numbered(make, first, last, streamed).apply(
        tf.data.experimental.service.distribute(
            processing_mode=tf.data.experimental.service.ShardingPolicy.DYNAMIC, service=service
        )
    )
    return _in_order(_arrivals(made, service), make, first, last, service, streamed)


def _numbered(make: MakeBatches, first: int, last: int, streamed: bool) -> tf.data.Dataset:
    """(step, batch), in pieces that workers can divide: the elements of the range."""
    if streamed:
        everything = tf.data.Dataset.range(1).flat_map(lambda _: make(first, last))
        return everything.enumerate(first)
    return tf.data.Dataset.range(first, last).interleave(
        lambda step: make(step, step + 1).map(lambda *batch: (step, batch)),
        cycle_length=STEPS_AT_A_TIME,
        num_parallel_calls=STEPS_AT_A_TIME,
        deterministic=True,
    )


def _arrivals(made: tf.data.Dataset, service: str) -> Iterator[tuple]:
    """Yields (step, batch) as they arrive."""
    elements = made.as_numpy_iterator()
    arrived: queue.SimpleQueue = queue.SimpleQueue()

    def fetch() -> None:
        try:
            arrived.put(next(elements, None))
        except Exception as error:
            arrived.put(error)

    try:
        while True:
            # TensorFlow waits for a lost service without limit, so a thread waits instead.
            threading.Thread(target=fetch, daemon=True, name=THREAD_NAME).start()
            element = arrived.get(timeout=PATIENCE_SECONDS)
            if element is None:
                return
            if isinstance(element, Exception):
                raise element
            yield element
    except queue.Empty:
        raise DataError(
            f"the tf.data service {service} has sent nothing for {PATIENCE_SECONDS:g} s; check "
            "that its dispatcher and its workers still run, or leave out --config.data.service."
        ) from None
    except tf.errors.UnavailableError as error:
        raise DataError(
            f"the tf.data service {service} is lost: start it again, or leave out "
            "--config.data.service."
        ) from error


def _in_order(
    arrivals: Iterator[tuple],
    make: MakeBatches,
    first: int,
    last: int,
    service: str,
    streamed: bool,
) -> Iterator[Arrays]:
    """Yields the batches in the order of their steps."""
    early: dict[int, Arrays] = {}
    for step in range(first, last):
        while step not in early and len(early) < AHEAD:
            try:
                number, batch = next(arrivals)
            except StopIteration:
                break
            except tf.errors.OpError:
                if streamed:
                    raise
                # It belongs to an unknown step. Steps made here raise their own errors in order.
                break
            if number >= step:  # not one that has been made here
                early[int(number)] = batch
        if step in early:
            yield early.pop(step)
        elif streamed:
            raise DataError(
                f"the tf.data service {service} lost the images of step {step + 1}; start the run "
                "again to resume from its last checkpoint."
            )
        else:
            yield from make(step, step + 1).as_numpy_iterator()


def _check_reachable(service: str) -> None:
    """Raises ConfigError or DataError unless something listens at the address."""
    match = ADDRESS.fullmatch(service)
    if match is None or not 0 < int(match[2]) < 2**16:
        raise ConfigError(
            f"config.data.service={service!r} is not an address; write grpc://HOST:PORT, that of "
            "the dispatcher, or leave it empty."
        )
    try:
        socket.create_connection((match[1].strip("[]"), int(match[2])), CONNECT_SECONDS).close()
    except OSError as error:
        raise DataError(
            f"no tf.data service answers at {service} ({error.strerror or error}); start it with "
            "`byol-jax data-service --port=N`, or leave out --config.data.service."
        ) from error


def start_dispatcher(port: int) -> tf.data.experimental.service.DispatchServer:
    """Starts the server that distributes the work; it runs until it is garbage-collected.

    Raises:
      ConfigError: the port is taken.
    """
    config = tf.data.experimental.service.DispatcherConfig(port=_free_port(port))
    return tf.data.experimental.service.DispatchServer(config)


def start_worker(
    dispatcher: str, port: int, host: str
) -> tf.data.experimental.service.WorkerServer:
    """Starts a server that makes batches; it runs until it is garbage-collected.

    `dispatcher` is its HOST:PORT. Training processes reach the worker as `host`, at `port`, or at
    any free one for 0.

    Raises:
      ConfigError: the port is taken.
      DataError: there is no such dispatcher.
    """
    _check_reachable(f"grpc://{dispatcher}")
    port = _free_port(port)
    config = tf.data.experimental.service.WorkerConfig(
        dispatcher_address=dispatcher, worker_address=f"{host}:{port}", port=port
    )
    return tf.data.experimental.service.WorkerServer(config)


def _free_port(port: int) -> int:
    """The port, or any free one for 0; TensorFlow would silently share one that is taken."""
    try:
        with socket.socket() as probe:
            # Otherwise a port would count as taken for a minute after a server closed it.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            return probe.getsockname()[1]
    except OSError as error:
        raise ConfigError(
            f"port {port} cannot be listened on ({error.strerror}); choose another --port."
        ) from error
