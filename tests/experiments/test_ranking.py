"""Rankings of encoders by measures without labels, on made-up evaluations."""

import json

import numpy as np
import pytest

from experiments.ranking.rank import SCORES, lines_of_accuracy, rank, read

MEASURES = {"lidar": 3.0, "alpha_req": 1.0, "alignment": 0.2, "uniformity": -2.0}


def encoders(rankmes, accuracies):
    return [(MEASURES | {"rankme": r}, a) for r, a in zip(rankmes, accuracies, strict=True)]


def slow_tau(x, y):
    """Of values without ties: concordant less discordant pairs, over all pairs."""
    signs = [np.sign((x[i] - x[j]) * (y[i] - y[j])) for i in range(len(x)) for j in range(i)]
    return sum(signs) / len(signs)


def test_tau_and_regret():
    rankmes, accuracies = [5.0, 9.0, 7.0, 2.0], [0.5, 0.6, 0.8, 0.1]
    found = rank(SCORES["RankMe"], encoders(rankmes, accuracies))
    assert found.tau == pytest.approx(slow_tau(rankmes, accuracies)) and found.encoders == 4
    assert found.regret == pytest.approx(0.2)  # the third is best, the second is chosen


def test_directions_of_the_measures():
    good = {"rankme": 9, "lidar": 9, "alpha_req": 0.9, "alignment": 0.1, "uniformity": -3}
    bad = {"rankme": 2, "lidar": 2, "alpha_req": 3.0, "alignment": 0.5, "uniformity": -1}
    for score in SCORES.values():
        assert score(good) > score(bad)
        assert rank(score, [(good, 0.9), (bad, 0.1), (bad, 0.1)]).regret == 0


def test_encoders_without_a_measure_are_left_out():
    some = [*encoders([1, 2, 3], [0.1, 0.2, 0.3]), (MEASURES | {"alpha_req": None}, 0.9)]
    assert rank(SCORES["alpha-ReQ"], some).encoders == 3
    assert rank(SCORES["alpha-ReQ"], some[-1:]).encoders == 0


def test_of_equal_scores_the_worst_encoder_counts():
    assert rank(SCORES["RankMe"], encoders([3, 3, 1], [0.9, 0.5, 0.1])).regret == 0.4


def test_evaluations_of_one_checkpoint_belong_together(tmp_path):
    (tmp_path / "eval").mkdir()
    # The last checkpoint was evaluated twice: it counts once.
    for suffix, step, accuracy in (("", 9, 0.7), ("-step5", 5, 0.4), ("-step9", 9, 0.7)):
        measures = {"details": {"byol": MEASURES | {"rankme": 10 * accuracy}}, "step": step}
        (tmp_path / "eval" / f"label_free{suffix}.json").write_text(json.dumps(measures))
        logistic = {"top1": {"byol": accuracy}}
        (tmp_path / "eval" / f"logistic{suffix}.json").write_text(json.dumps(logistic))
    (tmp_path / "eval" / "label_free-step7.json").write_text("{}")  # not evaluated by logistic
    found = read(tmp_path)
    assert sorted((measures["rankme"], top1) for measures, top1 in found) == [(4, 0.4), (7, 0.7)]
    assert lines_of_accuracy(found) == "logistic 40.0% to 70.0%"
