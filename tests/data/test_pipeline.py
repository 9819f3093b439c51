"""Training and evaluation batches on the host: which examples, in which order."""

import subprocess
import sys

import numpy as np
import pytest
from batches import joined, numbered, photos, same, shards, train

from byol_jax.data import Crop, ShardOptions, eval_batches, from_arrays, steps_per_epoch
from byol_jax.errors import ConfigError


def test_importing_data_imports_no_tensorflow():
    code = (
        "import sys, byol_jax.data as data, byol_jax.data.on_device\n"
        "assert data.open_source('embedded', 'test', channels=1).num_examples == 2000\n"
        "assert 'tensorflow' not in sys.modules\n"
        "data.train_batches\n"
        "assert 'tensorflow' in sys.modules\n"
        "try: data.no_such_name\n"
        "except AttributeError as error: assert 'no_such_name' in str(error)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Training.


def test_batch_is_as_documented():
    (batch,) = train(photos(10), 1)
    assert batch.examples.shape == (8, 2, 6, 6, 3) and batch.examples.dtype == np.uint8
    assert batch.labels.shape == (8,) and batch.labels.dtype == np.int32
    assert batch.positions.dtype == np.int32
    np.testing.assert_array_equal(batch.positions, np.arange(8))


def test_an_epoch_has_no_example_twice_and_the_next_has_another_order():
    batches = train(numbered(30), 6)
    assert steps_per_epoch(numbered(30), 8) == 3
    first, second = (np.concatenate([b.labels for b in batches[i : i + 3]]) for i in (0, 3))
    for epoch in first, second:
        assert len(set(epoch)) == 24 and set(epoch) <= set(range(30))
    assert not np.array_equal(first, second)
    assert set(first) != set(second)  # other examples are left out


def test_labels_and_views_belong_together():
    for batch in train(numbered(30), 3):
        for view in range(2):
            np.testing.assert_array_equal(batch.examples[:, view, 0, 0, 0], batch.labels)


def test_runs_are_equal_and_can_be_resumed_at_any_step():
    source = photos(20)
    complete = train(source, 7)
    assert same(complete, train(source, 7))
    for start in 1, 2, 3, 6, 7:
        assert same(complete[start:], train(source, 7, start_step=start))


def test_seeds_epochs_and_views_differ():
    source = photos(8)
    first, second = train(source, 2)
    (other,) = train(source, 1, seed=2)

    def sorted_views(batch):
        return batch.examples[np.argsort(batch.labels)]

    assert not np.array_equal(sorted_views(first), sorted_views(second))
    assert not np.array_equal(sorted_views(first), sorted_views(other))
    assert not np.array_equal(first.labels, other.labels)
    assert not np.array_equal(first.examples[:, 0], first.examples[:, 1])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_divide_the_batch_of_one_process(count):
    source = photos(20)
    complete = train(source, 5)
    parts = [train(source, 5, shard=shard) for shard in shards(8, count)]
    for batch, *of_step in zip(complete, *parts, strict=True):
        assert {len(part.examples) for part in of_step} == {8 // count}
        assert same([batch], [joined(of_step)])
    assert same(parts[1][3:], train(source, 5, start_step=3, shard=shards(8, count)[1]))


def test_without_labels():
    source = from_arrays(np.zeros((9, 4, 4, 1), np.uint8))
    assert source.num_classes is None and source.class_names is None
    (batch,) = train(source, 1)
    assert batch.labels is None and batch.examples.shape == (8, 2, 6, 6, 1)
    assert [labels for _, labels in eval_batches(source, batch_size=5, image_size=4)] == [None] * 2


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 11}, "has 10 examples, fewer than a batch of 11"),
        ({"batch_size": 0}, "batch size must be at least 1"),
        (
            {"shard": ShardOptions(np.arange(2), 0, 3)},
            "a batch of 8 cannot be divided equally among 3 processes",
        ),
        ({"shard": ShardOptions(np.arange(4)[::-1], 0, 2)}, "divided equally among 2 processes"),
        ({"image_size": 0}, "image size must be at least 1"),
        ({"crop": Crop(area=(0.5, 1.5))}, "area of a crop must lie within"),
        ({"crop": Crop(ratio=(2.0, 1.0))}, "ratio of a crop must be above 0"),
        ({"crop": Crop(flip=1.5)}, "probability of a flip"),
        ({"crop": Crop(fit="stretch")}, "fit of a crop must be clip or retry, not 'stretch'"),
    ],
)
def test_invalid_training_arguments(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        train(numbered(10), 1, **kwargs)


# Evaluation.


def test_evaluation_has_every_example_once_in_order():
    batches = list(eval_batches(numbered(30), batch_size=8, image_size=8))
    assert [len(images) for images, _ in batches] == [8, 8, 8, 6]
    labels = np.concatenate([labels for _, labels in batches])
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, np.arange(30))


def test_evaluation_limit_always_takes_the_same_examples():
    def labels(limit):
        batches = eval_batches(numbered(30), batch_size=8, image_size=8, limit=limit)
        return np.concatenate([labels for _, labels in batches])

    assert len(np.unique(labels(10))) == 10
    np.testing.assert_array_equal(labels(10), labels(10))
    np.testing.assert_array_equal(labels(99), np.arange(30))


def test_evaluation_limit_takes_all_classes():
    """With periodic labels, as in the embedded data set, even spacing would miss classes."""
    images = np.zeros((100, 8, 8, 1), np.uint8)
    source = from_arrays(images, np.arange(100) % 5)
    batches = eval_batches(source, batch_size=50, image_size=8, limit=50)
    assert set(np.concatenate([labels for _, labels in batches])) == set(range(5))


def test_evaluation_of_the_complete_image_does_not_change_it():
    source = photos(5)
    ((images, _),) = eval_batches(source, batch_size=5, image_size=12, crop_fraction=1.0)
    np.testing.assert_array_equal(images, source.images)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "batch size must be at least 1"),
        ({"image_size": 0}, "image size must be at least 1"),
        ({"crop_fraction": 0.0}, "crop fraction must lie within"),
        ({"limit": 0}, "limit of examples must be at least 1"),
    ],
)
def test_invalid_evaluation_arguments(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        eval_batches(numbered(10), **{"batch_size": 2, "image_size": 4, **kwargs})
