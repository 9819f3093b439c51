"""Batches of a tf.data service on loopback: equal to those without it; errors when it is lost."""

import socket
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

from byol_jax.augment.crops import Crop, LocalViews
from byol_jax.data import ShardOptions, from_arrays, open_source, service, train_batches
from byol_jax.data._tensorflow import tf
from byol_jax.data.tfds import open_records
from byol_jax.errors import ConfigError, DataError

SERVERS = []  # until the end of the process: one that stops before its clients waits for them


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


def assert_same(got, want):
    jax.tree.map(np.testing.assert_array_equal, list(got), list(want))


def test_batches_are_the_same_with_two_workers_and_after_a_resume(folder, address):
    shard = ShardOptions(np.array([1, 2, 6, 7]), 1, 2)
    complete = list(batches(folder, shard=shard))
    assert complete[0].examples.shape == (4, 2, 6, 6, 3)
    assert_same(batches(folder, shard=shard, service=address), complete)
    assert_same(batches(folder, shard=shard, service=address, start_step=5), complete[5:])


def test_batches_of_arrays_are_the_same(address):
    images = np.random.default_rng(0).integers(0, 256, (20, 9, 9, 3), np.uint8)
    source = from_arrays(images, np.arange(20))
    complete = list(batches(source))
    assert_same(batches(source, service=address, start_step=5), complete[5:])


def test_streamed_records_are_the_same(shared, address):
    source = open_records("cifar10", "test[:100]", str(shared("tfds")), 3, memory_limit=0)
    complete = list(batches(source, batch_size=40, num_steps=4))
    assert_same(batches(source, batch_size=40, num_steps=4, service=address), complete)


def test_the_service_replaces_and_reports_undecodable_images(address, tmp_path):
    """With local views, which are replaced as well."""
    for i in range(10):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i}.png")
    (tmp_path / "4.png").write_bytes(b"")
    source = open_source(f"folder:{tmp_path}", "train")
    errors = [[], []]
    here, there = (
        {"local": LocalViews(2, 4, Crop()), "on_decode_error": lambda *e, to=to: to.append(e)}
        for to in errors
    )
    want = list(batches(source, 3, **here))
    sent = batches(source, 3, **there, service=address)
    assert_same(sent, want)
    assert errors[0] == errors[1] and errors[0]


def test_the_service_names_undecodable_images(address, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(b"")
    source = open_source(f"folder:{tmp_path}", "train")
    with pytest.raises(DataError, match=r"2\.png cannot be decoded: it is empty"):
        next(batches(source, batch_size=2, service=address))


def test_an_error_that_arrives_early_is_raised_at_its_step(address, tmp_path):
    for i in range(12):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i}.png")
    source = open_source(f"folder:{tmp_path}", "train")
    complete = list(batches(source, 6, batch_size=2))
    empty = f"{complete[4].examples[0, 0, 0, 0, 0]}.png"  # its colour is its number
    (tmp_path / empty).write_bytes(b"")

    def arrivals(*_):
        raise tf.errors.InvalidArgumentError(None, None, "Input is empty.")
        yield

    got = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "_arrivals", arrivals)
        # Which would connect to the dispatcher.
        patch.setattr(tf.data.experimental.service, "distribute", lambda **_: lambda data: data)
        sent = batches(source, 6, batch_size=2, service=address)
        with pytest.raises(DataError, match=rf"/{empty} cannot be decoded: it is empty"):
            for batch in sent:
                got.append(batch)
    assert_same(got, complete[:4])


@pytest.mark.parametrize(
    ("order", "lost"),
    [([3, 0, 1, 2, 4, 5], []), ([5, 5, 0, 3, 1], [2, 4]), ([], [0, 1, 2, 3, 4, 5])],
    ids=["late", "twice and never", "nothing"],
)
def test_steps_are_sorted_and_lost_ones_are_made_here(folder, order, lost):
    want = list(batches(folder, num_steps=6))
    make, made = maker(folder), []

    def counting_make(first, last):
        made.append(first)
        return make(first, last)

    arrivals = iter([(step, as_sent(want[step])) for step in order])
    got = service._in_order(arrivals, counting_make, 0, 6, "grpc://x:1", False)
    assert_same((views[:3] for views in got), (as_sent(batch)[:3] for batch in want))
    assert made == lost


def test_early_batches_are_limited(folder, monkeypatch):
    monkeypatch.setattr(service, "AHEAD", 3)
    want = list(batches(folder))
    taken = []

    def arrivals():
        for step in range(1, 12):
            taken.append(step)
            yield step, as_sent(want[step])

    got = service._in_order(arrivals(), maker(folder), 0, 12, "grpc://x:1", False)
    assert_same([next(got)[:3]], [as_sent(want[0])[:3]])  # never sent
    assert taken == [1, 2, 3]


def test_a_lost_batch_of_a_stream_is_an_error(shared):
    source = open_records("cifar10", "test[:100]", str(shared("tfds")), 3, memory_limit=0)
    got = service._in_order(iter([]), maker(source), 0, 12, "grpc://x:1", True)
    with pytest.raises(DataError, match=r"grpc://x:1 lost the images of step 1; start"):
        next(got)


def as_sent(batch):
    labels = np.full(8, -1, np.int32) if batch.labels is None else batch.labels
    return batch.examples, labels, batch.positions, np.full(8, -1)


def maker(source):
    """The function that makes the batches of `batches(source)`."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "batches", lambda make, *_: seen.append(make))
        batches(source, service="grpc://x:1")
    return seen[0]


def test_a_missing_service_is_reported_at_once(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(
        DataError, match=rf"no tf\.data service answers at grpc://127\.0\.0\.1:{port}"
    ):
        batches(folder, service=f"grpc://127.0.0.1:{port}")
    with pytest.raises(DataError, match=r"no tf\.data service answers"):
        service.start_worker(f"127.0.0.1:{port}", 0, "127.0.0.1")
    assert time.monotonic() - start < 5


def test_a_service_without_workers(folder, monkeypatch):
    dispatcher = service.start_dispatcher(0)
    monkeypatch.setattr(service, "PATIENCE_SECONDS", 0.5)
    with pytest.raises(DataError, match=r"has sent nothing for 0\.5 s; check that"):
        next(batches(folder, service=dispatcher.target))
    # The waiting thread receives a batch, and ends.
    worker = service.start_worker(dispatcher.target.removeprefix("grpc://"), 0, "localhost")
    for thread in threading.enumerate():
        if thread.name == service.THREAD_NAME:
            thread.join(30)
            assert not thread.is_alive()
    SERVERS.extend([dispatcher, worker])


@pytest.mark.parametrize(
    "text", ["localhost:5050", "grpc://host", "grpc://host:0", "grpc://host:99999", "grpc://a b:1"]
)
def test_a_malformed_address(folder, text):
    with pytest.raises(ConfigError, match=r"is not an address; write grpc://HOST:PORT"):
        batches(folder, service=text)


def test_a_port_that_was_just_closed_is_free():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()  # the side that closes first keeps the port for a minute
            client.recv(1)
    assert service._free_port(port) == port


def test_a_port_that_is_taken(address):
    port = int(address.rpartition(":")[2])
    with pytest.raises(ConfigError, match=rf"port {port} cannot be listened on"):
        service.start_dispatcher(port)
