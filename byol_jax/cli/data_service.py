"""Starts a part of a tf.data service, which decodes images for training (config.data.service).

python -m byol_jax.cli.data_service --port=5050                                  # the dispatcher
python -m byol_jax.cli.data_service --dispatcher=HOST:5050 [--host=NAME] [--port=N]    # a worker

One dispatcher hands out the work; any number of workers, on other machines, does it. Each must see
the images under the paths that the training hosts see. Trains with
--config.data.service=grpc://HOST:5050. Stops at Ctrl-C; what a worker had begun is made elsewhere.
"""

import socket
import threading

from absl import flags

from byol_jax.cli import app
from byol_jax.errors import UserError

PORT = flags.DEFINE_integer(
    "port", 0, "Where to listen; a worker takes a free one by default.", 0, 2**16 - 1
)
DISPATCHER = flags.DEFINE_string("dispatcher", None, "Of a worker: HOST:PORT of its dispatcher.")
HOST = flags.DEFINE_string("host", None, "Of a worker: where others find it; this machine's name.")


def main() -> None:
    """Serves as the flags say, until a signal."""
    if DISPATCHER.value is None and not PORT.value:
        raise UserError("say --port=N for a dispatcher, --dispatcher=HOST:PORT for a worker of it.")
    # Here, so that a wrong flag is answered at once.
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
