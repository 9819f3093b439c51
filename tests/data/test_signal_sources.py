"""Archives of signals, and batches of sources that NumPy loads by index."""

import threading
import time

import numpy as np
import pytest

from byol_jax.backend import cpu_devices
from byol_jax.data import indexed
from byol_jax.data.signals import SignalSource, open_signals
from byol_jax.errors import ConfigError, DataError

A = np.arange(10 * 4 * 2, dtype=np.float64).reshape(10, 4, 2)
B = np.arange(10 * 3, dtype=np.int16).reshape(10, 3)
LABELS = np.arange(10) % 3


def archive(folder, **arrays):
    np.savez(folder / "train.npz", **arrays)
    return str(folder)


def batches(source, **kwargs):
    settings = {"batch_size": 4, "seed": 1, "num_steps": 5, "rows": np.arange(4)} | kwargs
    return list(indexed.train_batches(source, **settings))


def test_arrays_are_chosen_by_name(tmp_path):
    path = archive(tmp_path, a=A, b=B, labels=LABELS, class_names=np.array(["x", "y", "z"]))
    source = open_signals(path, "train", ("b", "a"))
    assert [*source.arrays] == ["b", "a"] and source.num_examples == 10
    assert source.class_names == ("x", "y", "z")
    np.testing.assert_array_equal(source.labels, LABELS)
    loaded = source.load(np.array([3, 1]))
    np.testing.assert_array_equal(loaded["a"], A[[3, 1]])
    assert loaded["b"].dtype == np.float32 and source.fingerprint()
    assert source.describe(3) == f"example 3 of npz:{path}/train"


@pytest.mark.parametrize(
    ("arrays", "names", "message"),
    [
        ({"a": A, "b": B}, (), "holds the arrays a, b: choose one, or two"),
        ({"labels": LABELS}, (), r"holds the arrays \(none\)"),
        ({"a": A}, ("c",), "holds no array 'c'; it has a"),
        ({"a": A, "b": B[:9]}, ("a", "b"), "different numbers of examples"),
        ({"a": A[:, 0, 0]}, ("a",), "needs examples first, then at least one axis"),
        ({"a": np.zeros((10, 0))}, ("a",), "axis that is not empty"),
        ({"a": A > 3, "b": A.astype("U3")}, ("b",), "must hold real numbers"),
        ({"a": np.where(A == 50, np.nan, A)}, ("a",), "in 1 examples, the first of index 6"),
        ({"a": A, "labels": LABELS[:9]}, ("a",), "one for each example"),
        ({"a": A[:0], "labels": LABELS[:0]}, ("a",), "holds no examples"),
        ({"a,b": A}, (), "rename the array 'a,b', without comma and slash"),
    ],
)
def test_unusable_content_is_one_line(tmp_path, arrays, names, message):
    with pytest.raises(DataError, match=message) as raised:
        open_signals(archive(tmp_path, **arrays), "train", names)
    assert "\n" not in str(raised.value)


def test_a_missing_split_is_named(tmp_path):
    with pytest.raises(DataError, match=r"has no split 'test' \(it has train\)"):
        open_signals(archive(tmp_path, a=A), "test", ())


def test_every_example_is_seen_once_in_an_epoch():
    source = SignalSource("mine", {"a": A}, LABELS)
    first, second = (batches(source)[i : i + 2] for i in (0, 2))
    orders = []
    for epoch in (first, second):
        seen = np.concatenate([batch.examples["a"] for batch in epoch])[:, 0, 0] // 8
        assert len(set(seen)) == 8  # of 10: the incomplete last batch is left out
        np.testing.assert_array_equal(
            np.concatenate([batch.labels for batch in epoch]), LABELS[seen.astype(int)]
        )
        orders.append(list(seen))
    assert orders[0] != orders[1]


def test_batches_are_a_function_of_seed_and_step():
    source = SignalSource("mine", {"a": A})
    complete = batches(source)
    assert len(complete) == 5 and complete[0].labels is None
    late = batches(source, start_step=3)
    for got, want in zip(late, complete[3:], strict=True):
        np.testing.assert_array_equal(got.examples["a"], want.examples["a"])
    other = batches(source, seed=2)
    assert any(
        (got.examples["a"] != want.examples["a"]).any()
        for got, want in zip(other, complete, strict=True)
    )


def test_processes_have_their_rows_of_the_same_batch():
    source = SignalSource("mine", {"a": A})
    rows = np.array([1, 3])
    for part, whole in zip(batches(source, rows=rows), batches(source), strict=True):
        np.testing.assert_array_equal(part.examples["a"], whole.examples["a"][rows])
        np.testing.assert_array_equal(part.positions, rows)


def test_an_error_while_loading_reaches_the_loop():
    class Broken(SignalSource):
        def load(self, indices):
            raise DataError("example 7 is broken")

    with pytest.raises(DataError, match="example 7 is broken"):
        batches(Broken("mine", {"a": A}))


def test_evaluation_sees_every_example_in_order():
    source = SignalSource("mine", {"a": A}, LABELS)
    found = list(indexed.eval_batches(source, batch_size=4))
    np.testing.assert_array_equal(np.concatenate([batch["a"] for batch, _ in found]), A)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in found]), LABELS)
    some = [batch["a"] for batch, _ in indexed.eval_batches(source, batch_size=4, limit=5)]
    assert len(np.unique(np.concatenate(some)[:, 0, 0])) == 5
    with pytest.raises(ConfigError, match="must be at least 1"):
        indexed.eval_batches(source, batch_size=0)


class Random(SignalSource):
    """Each example is another one with another seed; some cannot be read, or only sometimes."""

    broken = (2, 7)

    def load_random(self, indices, seeds):
        draws = np.array([np.random.default_rng(seed).random() for seed in seeds])
        self.check(indices, draws > 0.9)
        return {"a": self.arrays["a"][indices], "draw": draws}

    def load(self, indices):
        self.check(indices, np.zeros(len(indices), bool))
        return {"a": self.arrays["a"][indices]}

    def check(self, indices, is_bad):
        for index, bad in zip(indices, is_bad, strict=True):
            if bad or index in self.broken:
                raise DataError(f"example {index} is broken")


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_threads_do_not_change_batches(monkeypatch, threads):
    monkeypatch.setattr(cpu_devices, "cores", lambda: threads)
    source = Random("mine", {"a": A}, LABELS)
    source.broken = ()
    (batch,) = batches(source, num_steps=3, start_step=2, seed=3)
    order = np.random.default_rng((3, 1)).permutation(10)[:4]  # the second epoch's first step
    np.testing.assert_array_equal(batch.examples["a"], A[order])
    draws = [np.random.default_rng((3, 1, i)).random() for i in range(4)]
    np.testing.assert_array_equal(batch.examples["draw"], draws)
    np.testing.assert_array_equal(batch.labels, LABELS[order])
    for part, start in zip(indexed.eval_batches(source, batch_size=4), (0, 4, 8), strict=True):
        np.testing.assert_array_equal(part[0]["a"], A[start : start + 4])
        np.testing.assert_array_equal(part[1], LABELS[start : start + 4])


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_errors_are_reported_in_order_whatever_the_threads(monkeypatch, threads):
    monkeypatch.setattr(cpu_devices, "cores", lambda: threads)
    source, errors = Random("mine", {"a": A}, LABELS), []

    def report(number, error):
        errors.append((number, error))

    found = batches(source, num_steps=4, on_decode_error=report)
    monkeypatch.setattr(cpu_devices, "cores", lambda: 2)
    of_two, errors = errors, []
    again = batches(source, num_steps=4, on_decode_error=report)
    assert errors == of_two and {number for number, _ in errors} <= {1, 2, 3, 4}
    assert sum("example 2" in error for _, error in errors) >= 1
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one.examples["draw"], other.examples["draw"])
        np.testing.assert_array_equal(one.labels, other.labels)
        assert not np.isin(one.examples["a"][:, 0, 0], A[[2, 7], 0, 0]).any()
    errors = []
    monkeypatch.setattr(cpu_devices, "cores", lambda: threads)
    source.broken = (0, 1, 2, 3, 5, 8, 9)  # of three batches, the first and the last
    ((part, labels),) = indexed.eval_batches(source, batch_size=4, on_decode_error=report)
    np.testing.assert_array_equal(part["a"], A[[4, 6, 7]])
    np.testing.assert_array_equal(labels, LABELS[[4, 6, 7]])
    assert errors == [(i, f"example {i} is broken") for i in source.broken]
    with pytest.raises(DataError, match="example 0 is broken"):
        next(indexed.eval_batches(source, batch_size=4))


def test_the_parts_of_a_batch_are_loaded_at_once_and_two_batches_ahead(monkeypatch):
    monkeypatch.setattr(cpu_devices, "cores", lambda: 2)
    loaded = []

    class Together(SignalSource):
        barrier = threading.Barrier(2)

        def load(self, indices):
            self.barrier.wait(10)  # breaks unless two threads come
            loaded.extend(indices)
            return super().load(indices)

    source = Together("mine", {"a": np.zeros((40, 1))})
    settings = {"batch_size": 4, "seed": 0, "num_steps": 10, "rows": np.arange(4)}
    for made in (
        indexed.train_batches(source, **settings),
        indexed.eval_batches(source, batch_size=4),
    ):
        loaded.clear()
        for used in range(1, 4):
            next(made)
            end = time.monotonic() + 10
            while len(loaded) < 4 * (used + indexed.AHEAD) and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(0.02)
            assert len(loaded) == 4 * (used + indexed.AHEAD)
        made.close()
