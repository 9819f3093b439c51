"""Batches of a tf.data service on loopback: the same as without it, and words where it is lost."""

import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

from byol_jax.data import ShardOptions, from_arrays, open_source, service, train_batches
from byol_jax.data._tensorflow import tf
from byol_jax.data.tfds import open_records
from byol_jax.data.training import TrainPipeline
from byol_jax.errors import UserError

SERVERS = []  # until the end of the process: one that goes before its clients waits for them


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty images of noise, as files."""
    path = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8)).save(path / f"{i}.png")
    return open_source(f"folder:{path}", "train")


@pytest.fixture(scope="module")
def address():
    """Of a service with two workers."""
    dispatcher = service.start_dispatcher(0)
    host = f"127.0.0.1:{dispatcher.target.rpartition(':')[2]}"
    SERVERS.extend([dispatcher, *(service.start_worker(host, 0, "127.0.0.1") for _ in range(2))])
    return f"grpc://{host}"


def batches(source, num_steps=12, batch_size=8, **kwargs):
    return train_batches(
        source, batch_size=batch_size, image_size=6, seed=1, num_steps=num_steps, **kwargs
    )


def check_same(got, want):
    for left, right in zip(got, want, strict=True):
        for x, y in zip(left, right, strict=True):
            np.testing.assert_array_equal(x, y)


def test_batches_are_the_same_with_two_workers_and_after_a_resume(folder, address):
    share = ShardOptions(np.array([1, 2, 6, 7]), 1, 2)
    whole = list(batches(folder, share=share))
    assert whole[0].examples.shape == (4, 2, 6, 6, 3)
    check_same(batches(folder, share=share, service=address), whole)
    check_same(batches(folder, share=share, service=address, start_step=5), whole[5:])


def test_small_images_in_memory_are_the_same(address):
    images = np.random.default_rng(0).integers(0, 256, (20, 9, 9, 3), np.uint8)
    source = from_arrays(images, np.arange(20))
    whole = list(batches(source))
    check_same(batches(source, service=address, start_step=5), whole[5:])


def test_streamed_records_are_the_same(shared, address):
    source = open_records("cifar10", "test[:100]", str(shared("tfds")), 3, memory_limit=0)
    whole = list(batches(source, batch_size=40, num_steps=4))
    check_same(batches(source, batch_size=40, num_steps=4, service=address), whole)


def test_a_bad_image_is_replaced_and_told_by_the_service_too(address, tmp_path):
    for i in range(10):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i}.png")
    (tmp_path / "4.png").write_bytes(b"")
    source = open_source(f"folder:{tmp_path}", "train")
    told = [[], []]
    want = list(batches(source, 3, bad=lambda *words: told[0].append(words)))
    sent = batches(source, 3, bad=lambda *words: told[1].append(words), service=address)
    check_same(sent, want)
    assert told[0] == told[1] and told[0]


def test_a_bad_image_is_named_by_the_service_too(address, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(b"")
    source = open_source(f"folder:{tmp_path}", "train")
    with pytest.raises(UserError, match=r"2\.png cannot be decoded: it is empty"):
        next(batches(source, batch_size=2, service=address))


def test_an_error_that_overtakes_its_step_waits_for_its_turn(address, tmp_path):
    for i in range(12):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i}.png")
    source = open_source(f"folder:{tmp_path}", "train")
    whole = list(batches(source, 6, batch_size=2))
    bad = f"{whole[4].examples[0, 0, 0, 0, 0]}.png"  # its colour is its number
    (tmp_path / bad).write_bytes(b"")

    class Arrivals:
        close = __init__ = lambda *_: None

        def __call__(self):
            raise tf.errors.InvalidArgumentError(None, None, "Input is empty.")

    got = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "_Arrivals", Arrivals)
        # It would look for the dispatcher.
        patch.setattr(tf.data.experimental.service, "distribute", lambda **_: lambda data: data)
        sent = batches(source, 6, batch_size=2, service=address)
        with pytest.raises(UserError, match=rf"/{bad} cannot be decoded: it is empty"):
            for batch in sent:
                got.append(batch)
    check_same(got, whole[:4])


@pytest.mark.parametrize(
    ("order", "lost"),
    [([3, 0, 1, 2, 4, 5], []), ([5, 5, 0, 3, 1], [2, 4]), ([], [0, 1, 2, 3, 4, 5])],
    ids=["late", "twice and never", "nothing"],
)
def test_steps_are_put_in_order_and_lost_ones_are_made_here(folder, monkeypatch, order, lost):
    want = list(batches(folder, num_steps=6))
    plan, made = made_by(folder), []
    make = TrainPipeline.batches
    monkeypatch.setattr(TrainPipeline, "batches", lambda *args: made.append(args[1]) or make(*args))
    arrivals = iter([(step, as_sent(want[step])) for step in order] + [None])
    got = service._in_order(lambda: next(arrivals), plan, 0, 6, "grpc://x:1")
    check_same((views[:3] for views in got), (as_sent(batch)[:3] for batch in want))
    assert made == lost


def test_what_waits_its_turn_is_bounded(folder, monkeypatch):
    monkeypatch.setattr(service, "AHEAD", 3)
    want = list(batches(folder))
    taken = []

    def arrival():
        taken.append(len(taken) + 1)
        return taken[-1], as_sent(want[taken[-1]])

    got = service._in_order(arrival, made_by(folder), 0, 12, "grpc://x:1")
    check_same([next(got)[:3]], [as_sent(want[0])[:3]])  # never sent
    assert taken == [1, 2, 3]


def test_a_lost_batch_of_a_stream_ends_in_a_sentence(shared):
    source = open_records("cifar10", "test[:100]", str(shared("tfds")), 3, memory_limit=0)
    got = service._in_order(lambda: None, made_by(source), 0, 12, "grpc://x:1")
    with pytest.raises(UserError, match=r"grpc://x:1 lost the images of step 1; start again"):
        next(got)


def as_sent(batch):
    labels = np.full(8, -1, np.int32) if batch.labels is None else batch.labels
    return batch.examples, labels, batch.positions, np.full(8, -1)


def made_by(source):
    """The plan of `batches(source)`."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "batches", lambda plan, *_: seen.append(plan))
        batches(source, service="grpc://x:1")
    return seen[0]


def test_a_service_that_is_not_there_is_said_at_once(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(
        UserError, match=rf"no tf\.data service answers at grpc://127\.0\.0\.1:{port}"
    ):
        batches(folder, service=f"grpc://127.0.0.1:{port}")
    with pytest.raises(UserError, match=r"no tf\.data service answers"):
        service.start_worker(f"127.0.0.1:{port}", 0, "127.0.0.1")
    assert time.monotonic() - start < 5


def test_a_service_without_workers_is_said(folder, monkeypatch):
    dispatcher = service.start_dispatcher(0)
    monkeypatch.setattr(service, "PATIENCE_SECONDS", 0.5)
    with pytest.raises(UserError, match=r"has sent nothing for 0\.5 s; see whether"):
        next(batches(folder, service=dispatcher.target))
    # The thread that still waits gets what it waits for, and ends.
    worker = service.start_worker(dispatcher.target.removeprefix("grpc://"), 0, "localhost")
    for thread in threading.enumerate():
        if thread.name == service.THREAD_NAME:
            thread.join(30)
            assert not thread.is_alive()
    SERVERS.extend([dispatcher, worker])


@pytest.mark.parametrize(
    "text", ["localhost:5050", "grpc://host", "grpc://host:0", "grpc://host:99999", "grpc://a b:1"]
)
def test_a_malformed_address_is_said(folder, text):
    with pytest.raises(UserError, match=r"is not an address; write grpc://HOST:PORT"):
        batches(folder, service=text)


def test_a_port_that_was_used_a_moment_ago_is_free():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()  # the side that closes first keeps the port for a minute
            client.recv(1)
    assert service._free(port) == port


def test_a_port_that_is_taken_is_said(address):
    port = int(address.rpartition(":")[2])
    with pytest.raises(UserError, match=rf"port {port} cannot be listened on"):
        service.start_dispatcher(port)
