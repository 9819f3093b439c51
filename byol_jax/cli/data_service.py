"""Starts a dispatcher or a worker of a tf.data service, which decodes images for training.

byol-jax data-service --port=5050                                      # the dispatcher
byol-jax data-service --dispatcher=HOST:5050 [--host=NAME] [--port=N]  # a worker
byol-jax pretrain --config.data.service=grpc://HOST:5050 ...           # uses them

One dispatcher distributes the work to any number of workers on other machines. All of them must
find the images under the same paths as the training processes. Ctrl-C stops either; the batches
that a stopped worker had begun are made by another.
"""

import socket
import threading

from absl import flags

from byol_jax.cli import app
from byol_jax.errors import ConfigError

PORT = flags.DEFINE_integer(
    "port", 0, "Port to listen on; a worker takes a free one by default.", 0, 2**16 - 1
)
DISPATCHER = flags.DEFINE_string("dispatcher", None, "For a worker: HOST:PORT of its dispatcher.")
HOST = flags.DEFINE_string(
    "host", None, "For a worker: its address for others; by default this machine's name."
)


def main() -> None:
    """Serves until a signal."""
    if DISPATCHER.value is None and not PORT.value:
        raise ConfigError("--port=N starts a dispatcher, --dispatcher=HOST:PORT a worker of it.")
    # Imported here, so that wrong flags are answered at once.
    from byol_jax.data import service

    if DISPATCHER.value is None:
        server = service.start_dispatcher(PORT.value)
        print(f"Dispatcher: --config.data.service={server.target}", flush=True)
    else:
        host = HOST.value or socket.gethostname()
        server = service.start_worker(DISPATCHER.value, PORT.value, host)
        print(f"Worker of {DISPATCHER.value}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    app.run(main)
