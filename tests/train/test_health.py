"""Collapse indicators on matrices whose spread and rank are known."""

import numpy as np
import pytest
from tiny import tiny_config

from byol_jax.runs import tree
from byol_jax.runs.resolve import resolve
from byol_jax.train import health


def gaussian(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def orthonormal_columns(rows, columns):
    """(rows, columns) with orthonormal columns that each sum to zero."""
    centred = gaussian(rows, columns).astype(np.float64)
    return np.linalg.qr(centred - centred.mean(axis=0))[0]


def test_feature_std_of_isotropic_gaussians_is_one():
    assert health.feature_std(gaussian(4000, 64)) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.7, 1e-30, 1e30])
def test_constant_features_are_fully_collapsed(value):
    features = np.full((50, 8), value, np.float32)
    assert health.feature_std(features) == pytest.approx(0, abs=1e-7)
    assert health.effective_rank(features) == 1.0


def test_feature_std_equals_its_formula_and_ignores_the_scale_of_rows():
    features = gaussian(30, 5) + 1
    units = features / np.sqrt((features**2).sum(axis=1))[:, None]
    expected = np.mean([np.std(column) for column in units.T]) * 5**0.5
    assert health.feature_std(features) == pytest.approx(expected, rel=1e-5)
    scaled = features * np.linspace(0.1, 9, 30)[:, None]
    assert health.feature_std(scaled) == pytest.approx(expected, rel=1e-5)


def test_feature_std_takes_features_whose_squares_leave_float64():
    features = gaussian(100, 6).astype(np.float64)
    expected = health.feature_std(features)
    for scale in (1e200, 1e-200):
        assert health.feature_std(features * scale) == pytest.approx(expected, rel=1e-12)


def test_feature_std_keeps_rows_of_zeros():
    assert health.feature_std(np.zeros((3, 4))) == 0
    assert np.isfinite(health.feature_std(np.vstack([np.zeros((1, 4)), gaussian(5, 4)])))


@pytest.mark.parametrize("rank", [1, 2, 7, 16])
def test_effective_rank_of_equal_singular_values_is_the_rank(rank):
    features = orthonormal_columns(60, rank) @ orthonormal_columns(40, rank).T
    assert health.effective_rank(features) == pytest.approx(rank, rel=1e-9)


def test_effective_rank_ignores_offset_and_scale():
    features = orthonormal_columns(60, 5) @ orthonormal_columns(12, 5).T
    assert health.effective_rank(3 * features + 2) == pytest.approx(5, rel=1e-9)


def test_effective_rank_of_unequal_singular_values_is_exp_entropy():
    features = orthonormal_columns(50, 2) * np.array([3.0, 1.0])
    expected = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert health.effective_rank(features) == pytest.approx(expected, rel=1e-9)


def test_effective_rank_of_gaussians_is_nearly_full():
    assert 15.9 < health.effective_rank(gaussian(4000, 16)) <= 16


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_give_nan(value):
    features = gaussian(10, 3)
    features[4, 1] = value
    assert np.isnan(health.feature_std(features))
    assert np.isnan(health.effective_rank(features))


def monitor(patience, collapsed_checks=0, **settings):
    config = tiny_config()
    config.health.patience = patience
    for key, value in settings.items():
        tree.put(config, key.replace("__", "."), value)
    return health.CollapseMonitor(resolve(config)[0], collapsed_checks)


def test_monitor_warns_once_after_patience_and_again_after_recovery():
    patient = monitor(patience=3)
    collapsed, healthy = (0.01, 1.2), (0.9, 40.0)
    checks = [collapsed] * 2 + [healthy] + [collapsed] * 5 + [healthy] + [collapsed] * 3
    messages = [patient.check(10 * i, *values) for i, values in enumerate(checks)]
    assert [i for i, message in enumerate(messages) if message] == [5, 11]
    for text in ("step 50", "0.01", "1.2", "collapsed"):
        assert text in messages[5]
    assert patient.has_collapsed and patient.collapsed_checks == 3
    assert not monitor(3, collapsed_checks=2).has_collapsed


@pytest.mark.parametrize(("std", "rank"), [(0.049, 30.0), (0.9, 1.49)])
def test_monitor_checks_both_numbers(std, rank):
    assert "collapsed" in monitor(patience=1).check(7, std, rank)
    assert monitor(patience=1).check(7, 0.051, 1.51) is None


def test_few_directions_of_many_are_a_collapse():
    wide = monitor(patience=1, heads__output_size=256)
    message = wide.check(7, 0.5, 3.9)
    assert "lie along a few directions: the representation has collapsed" in message
    assert "an effective rank of 3.9 (alarming: below 4)" in message
    assert wide.check(8, 0.5, 4.1) is None
    assert monitor(patience=1, heads__output_size=4).check(7, 0.5, 2.6) is None


def test_monitor_calls_nan_divergence():
    message = monitor(patience=1).check(7, float("nan"), float("nan"))
    assert "diverged" in message and "collapsed" not in message


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({}, "another config.target.tau_base (here 0.996; .996 in the paper, and in a run of N"),
        ({"heads__predictor_layers": 0}, "a predictor (config.heads.predictor_layers=2), another "),
        ({"target__rule": "none"}, "a target network (config.target.rule=ema), a lower"),
        ({"target__rule": "redraw"}, "a target that is not drawn anew (config.target.rule=ema), a"),
        *(
            ({"target__rule": rule}, "a lower config.optimizer.base_")
            for rule in ("copy", "frozen")
        ),
        *(({"objective__name": name}, "a lower config.optim") for name in ("simsiam", "vicreg")),
    ],
)
def test_the_advice_fits_objective_and_target(settings, first):
    message = monitor(patience=1, **settings).check(7, 0.01, 1.2)
    assert f"in this order: {first}" in message
    assert message.endswith(
        "a lower config.optimizer.base_learning_rate (here 0.01), a larger config.batch_size "
        "(here 16)."
    )


def test_the_advice_fits_the_optimizer():
    lars = {"optimizer__name": "lars", "optimizer__weight_decay": 0.5}
    message = monitor(patience=1, **lars).check(7, 0.01, 1.2)
    assert "config.optimizer.weight_decay=1.5e-06, as usual (here 0.5)" in message
