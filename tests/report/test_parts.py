"""The parts of a page, compared with plain NumPy."""

import numpy as np
import pytest
from tiny import tiny_config

from byol_jax import data
from byol_jax.evaluate import knn
from byol_jax.evaluate.duplicates import whitening
from byol_jax.evaluate.neighbours import nearest
from byol_jax.report import (
    dense,
    evaluations,
    findings,
    groups,
    layout,
    suspects,
    thumbnails,
    training,
    votes,
)
from byol_jax.report.features import PIXELS, TRAINED, UNTRAINED, Images
from byol_jax.runs.resolve import resolve


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_the_vote_is_that_of_knn(rng):
    train, test = rng.normal(size=(80, 5)), rng.normal(size=(30, 5))
    labels, test_labels = rng.integers(4, size=80), rng.integers(4, size=30)
    predicted = votes.predict(*nearest(test, train, 20), labels, 4)
    found = votes.accuracy(predicted, test_labels)
    wanted = knn(train, labels, test, test_labels, num_classes=4, ks=(20,))
    assert found == {key: wanted[key] for key in ("top1", "interval")}


def test_confused_classes_are_counted():
    labels, predicted = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 1, 1, 0, 2])
    table = votes.confusion_matrix(predicted, labels, 3)
    assert table.tolist() == [[1, 2, 0], [0, 1, 0], [1, 0, 1]]
    assert votes.most_confused(table) == [(0, 1, 2, 2 / 3), (2, 0, 1, 1 / 2)]
    assert votes.most_confused(table, most=1) == [(0, 1, 2, 2 / 3)]


def test_clusters_are_described(rng):
    centres = np.eye(3)[[0] * 30 + [1] * 20 + [2] * 10] * 5
    features = centres + rng.normal(size=(60, 3)) * 0.3
    labels = np.array([0] * 15 + [1] * 35 + [2] * 10)
    clusters, distances = groups.assign(features, 3)
    assert np.array_equal(clusters, [0] * 30 + [1] * 20 + [2] * 10)  # the largest first
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = groups.describe(clusters, distances, labels)
    assert [(g.size, g.label, g.purity) for g in found] == [(30, 0, 0.5), (20, 1, 1), (10, 2, 1)]
    to_centre = np.linalg.norm(units[30:50] - units[30:50].mean(axis=0), axis=1)
    assert found[1].typical == (30 + np.argsort(to_centre)[:16]).tolist()
    assert groups.describe(clusters, distances, None)[0].purity is None


def test_equal_features_are_one_cluster_and_one_point():
    clusters, distances = groups.assign(np.ones((12, 3)), 4)
    assert len(groups.describe(clusters, distances, None)) == 1
    assert not layout.plane(np.ones((12, 3))).any()


def test_the_map_keeps_groups_apart(rng):
    labels = np.arange(60) % 3
    points = layout.plane(np.eye(3)[labels] * 9 + rng.normal(size=(60, 3)))
    assert points.shape == (60, 2) and points.dtype == np.float32
    assert np.abs(points).max() == pytest.approx(1)
    np.fill_diagonal(apart := np.linalg.norm(points[:, None] - points, axis=-1), np.inf)
    assert (labels[apart.argmin(axis=1)] == labels).mean() > 0.95
    assert np.array_equal(
        points, layout.plane(np.eye(3)[labels] * 9 + np.random.default_rng(0).normal(size=(60, 3)))
    )
    assert layout.plane(rng.normal(size=(2, 1))).shape == (2, 2)


def test_duplicates_are_pairs_of_equal_features(rng):
    features = rng.normal(size=(90, 20)).astype(np.float32)
    features[4], features[8], features[70] = features[1], features[2], features[2]
    features[60] = features[50] + 0.1 * rng.normal(size=20)
    rows = whitening(features)(features)
    found = suspects.near_duplicates(rows)
    assert [pair[:2] for pair in found] == [(1, 4), (2, 8), (2, 70), (8, 70), (50, 60)]
    wanted = [rows[first] @ rows[second] for first, second, _ in found]
    np.testing.assert_allclose([pair.similarity for pair in found], wanted, atol=1e-6)


def test_a_leak_is_the_nearest_of_the_other_set(rng):
    features, test = (rng.normal(size=(n, 20)).astype(np.float32) for n in (60, 9))
    features[30] = features[20] + 0.1 * rng.normal(size=20)
    test[1], test[5] = features[30], features[3]
    whiten = whitening(features)
    found = suspects.leaks(whiten(test), whiten(features))
    assert sorted(pair[:2] for pair in found) == [(1, 30), (5, 3)]
    assert [pair.similarity for pair in found] == pytest.approx([1, 1], abs=1e-6)


def test_outliers_are_far_from_their_nearest_ten(rng):
    similarities = np.sort(rng.uniform(size=(40, 15)), axis=1)[:, ::-1]
    means = similarities[:, :10].mean(axis=1)
    found = suspects.outliers(similarities)
    assert [index for index, _ in found] == np.argsort(means)[:4].tolist()
    assert [value for _, value in found] == np.sort(means)[:4].tolist()


def test_sheets_hold_the_pictures_row_by_row(rng, monkeypatch):
    from io import BytesIO

    from PIL import Image

    pictures = np.repeat(rng.integers(0, 256, 1100), 64).reshape(-1, 8, 8, 1).astype(np.uint8)
    first, second = (
        np.asarray(Image.open(BytesIO(x)).convert("L")) for x in thumbnails.sheets(pictures)
    )
    assert first.shape == (256, 256) and second.shape == (24, 256)
    for index, sheet in ((33, first), (1024 + 40, second)):
        row, column = divmod(index % 1024, 32)
        part = sheet[8 * row + 2 : 8 * row + 6, 8 * column + 2 : 8 * column + 6]
        assert abs(part.mean() - pictures[index].mean()) < 12
    large = sum(map(len, thumbnails.sheets(pictures)))
    monkeypatch.setattr(thumbnails, "MOST", large - 1)
    assert sum(map(len, thumbnails.sheets(pictures))) < large


def test_colours_are_the_first_components(rng):
    maps = rng.normal(size=(2, 4, 4, 6)) * [9, 5, 3, 0.1, 0.1, 0.1]
    found = dense.components(maps)
    assert found.shape == (2, 4, 4, 3) and found.dtype == np.uint8
    for channel in range(3):
        along = np.corrcoef(found[..., channel].ravel(), maps[..., channel].ravel())[0, 1]
        assert abs(along) > 0.95
    assert not dense.components(maps[..., :1])[..., 1:].any()


def checks(*values):
    return [
        {"step": 10 * (i + 1), "projection_std": std, "projection_rank": rank}
        for i, (std, rank) in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("values", "state", "text"),
    [
        ([], "unknown", "no spread"),
        ([(0.8, 12)] * 6, "good", "spread of 0.80"),
        ([(0.01, 12)] * 6, "bad", "collapsed, however low the loss is"),
        ([(None, None)] * 6, "bad", "NaN or infinity"),
        ([(0.8, 12)] * 6 + [(0.01, 12)], "warning", "too few checks"),
        ([(0.01, 12)] * 6 + [(0.8, 12)], "warning", "spread of 0.80"),
    ],
)
def test_the_verdict_is_that_of_the_monitor(values, state, text):
    config = tiny_config()
    config.heads.output_size = 128
    config.health.patience = 5
    config, _ = resolve(config)
    verdict = training.health_of(config, checks(*values))
    assert verdict.state == state and text in verdict.text


@pytest.mark.parametrize(
    ("values", "title"),
    [
        ([0.1, 0.2, 0.3], "Too few evaluations"),
        (np.linspace(0.1, 0.5, 12), "Still improving"),
        ([*np.linspace(0.1, 0.5, 8), *[0.5, 0.502, 0.499, 0.501] * 2], "Levelled off"),
        ([*np.linspace(0.1, 0.5, 8), *np.linspace(0.5, 0.4, 8)], "Getting worse"),
    ],
)
@pytest.mark.parametrize(("name", "scale"), [("knn_test_top1", 1), ("rankme", 60)])
def test_the_trend_is_that_of_the_later_half(values, title, name, scale):
    rows = [{"step": 10 * i, name: float(v * scale)} for i, v in enumerate(values, 1)]
    assert training.trend_of(rows, 1000).title == title


def test_long_curves_keep_their_last_point():
    rows = [{"step": i, "byol_loss": 1 / i} for i in range(1, 5002)]
    ((steps, values),) = training.curves(rows)[0].lines.values()
    assert len(steps) <= training.DRAWN + 1 and steps[0] == 1 and steps[-1] == 5001
    assert values[-1] == 1 / 5001


def test_time_is_read_from_the_rate():
    rows = [{"step": 10, "images_per_second": 5.0}, {"step": 20, "images_per_second": 10.0}]
    assert training.seconds(rows, 2, [5, 10, 20, 40]) == [2, 4, 4 + 2, 2 * (4 + 2)]
    assert training.seconds([], 2, [10, 20]) == [None, None]


def test_results_of_transfer_are_tables(tmp_path):
    (tmp_path / "transfer.json").write_text(
        '{"step": 1000, "data_sets": {"pets": {"details": {"byol": {"mean_per_class": 0.5}}}}}'
    )
    (tmp_path / "broken.json").write_text("{")
    (table,), notes = evaluations.tables(tmp_path)
    assert table.caption == "transfer: pets, step 1,000" and table.file == "transfer"
    assert (table.titles, table.rows) == (["mean per class"], {"byol": ["50.0%"]})
    assert len(notes) == 1 and notes[0].startswith("broken.json holds no result")
    assert evaluations.tables(tmp_path / "nowhere") == ([], [])


def test_numbers_of_clusters():
    assert [groups.number(1000, n) for n in (None, 10, 1000)] == [12, 10, 30]
    assert groups.number(3, None) == 1


def test_a_collapsed_encoder_has_no_near_duplicates():
    rows = np.ones((12, 4), np.float32)
    pictures = np.zeros((12, 6, 6, 3), np.uint8)
    source = data.from_arrays(pictures)
    features = dict.fromkeys((TRAINED, UNTRAINED, PIXELS), rows)
    names = [*map(str, range(12))]
    shown = Images(source, 12, np.arange(12), names, features, pictures, None, [])
    found = findings.compute(shown, shown, lambda line: None)
    assert found.duplicates is None and found.leaks is None
