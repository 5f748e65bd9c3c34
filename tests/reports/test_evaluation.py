"""Intervals by hand, and evaluations that survive a file."""

import math

import numpy as np
import pytest

from metarl_l2f.reports.evaluation import Evaluation, load_evaluation, mean_interval, paired_differences, task_groups

PROTOCOL = {"held_out_tasks": 3, "seed": 0}


def test_interval_by_hand():
    # values 1, 2, 3: mean 2, s = 1, t_{0.975, 2} = 4.3027: half-width 4.3027 / √3
    interval = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert interval.mean == pytest.approx(2.0)
    assert interval.half_width == pytest.approx(4.30265 / 3**0.5, rel=1e-5)


def test_one_value_has_no_interval():
    interval = mean_interval(np.array([4.0]))
    assert interval.mean == 4.0
    assert math.isnan(interval.half_width)


def test_a_single_task_is_printed_without_an_interval():
    lines = Evaluation(np.array([[1.0, 2.0]]), PROTOCOL).table().splitlines()
    assert [line.split() for line in lines[1:]] == [["0", "1.00"], ["1", "2.00"]]


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="values must be a non-empty list"):
        mean_interval(np.array([]))


def test_evaluation_survives_its_file(tmp_path):
    evaluation = Evaluation(np.array([[1.0, 2.0], [3.0, 5.0], [2.0, 2.0]]) + 1e-9 / 3, PROTOCOL)
    evaluation.save(tmp_path / "evaluation.json")
    loaded = load_evaluation(tmp_path / "evaluation.json")
    assert np.array_equal(loaded.scores, evaluation.scores)
    assert loaded.protocol == PROTOCOL
    assert [i.mean for i in loaded.intervals()] == pytest.approx([2.0, 3.0])


def test_table_has_a_line_per_step():
    table = Evaluation(np.array([[1.0, 2.0], [3.0, 5.0]]), PROTOCOL).table()
    assert table.splitlines()[0].startswith("steps  return (mean over 2 held-out tasks")
    assert table.splitlines()[1].split()[:2] == ["0", "2.00"]
    assert table.splitlines()[2].split()[:2] == ["1", "3.50"]


def test_paired_differences_are_task_by_task():
    # differences after one step: 1 and 1: no spread at all, though the tasks differ by 100
    ours, theirs = np.array([[0.0, 101.0], [0.0, 1.0]]), np.array([[0.0, 100.0], [0.0, 0.0]])
    after = paired_differences(Evaluation(ours, PROTOCOL), Evaluation(theirs, PROTOCOL))[1]
    assert after.mean == pytest.approx(1.0)
    assert after.half_width == pytest.approx(0.0)


def test_unlike_protocols_cannot_be_paired():
    scores = np.zeros((2, 2))
    with pytest.raises(ValueError, match="paired evaluations must share one protocol"):
        paired_differences(Evaluation(scores, PROTOCOL), Evaluation(scores, PROTOCOL | {"seed": 1}))
    with pytest.raises(ValueError, match="paired evaluations must have as many steps, got 1 and 2"):
        paired_differences(Evaluation(scores, PROTOCOL), Evaluation(np.zeros((2, 3)), PROTOCOL))


def test_the_table_shows_a_task_that_fails_behind_a_good_average():
    # Forwards 0 → 100, backwards 0 → −20: the mean, 40, hides that one way is never run.
    scores = np.array([[0.0, 90.0], [0.0, -20.0], [0.0, 110.0], [0.0, -20.0]])
    table = Evaluation(scores, PROTOCOL, tasks=np.array([1.0, -1.0, 1.0, -1.0])).table().splitlines()
    assert table[2].split()[:2] == ["1", "40.00"]
    assert [line.split() for line in table[-2:]] == [["-1", "2", "0.00", "-20.00"], ["1", "2", "0.00", "100.00"]]


def test_many_task_numbers_are_grouped_into_quarters_of_their_range():
    groups = task_groups(np.array([0.0, 0.4, 0.5, 1.1, 1.9, 2.0]))
    assert {name: mask.tolist() for name, mask in groups.items()} == {
        "0.00 to 0.50": [True, True, False, False, False, False],
        "0.50 to 1.00": [False, False, True, False, False, False],
        "1.00 to 1.50": [False, False, False, True, False, False],
        "1.50 to 2.00": [False, False, False, False, True, True],
    }


def test_a_quarter_without_a_task_has_no_line():
    assert list(task_groups(np.array([0.0, 0.1, 0.2, 0.3, 4.0]))) == ["0.00 to 1.00", "3.00 to 4.00"]


def test_tasks_that_are_no_single_numbers_are_not_grouped():
    assert task_groups(np.zeros((3, 2))) == {}
    assert task_groups(np.array([{"goal": 1}, {"goal": 2}])) == {}


def test_tasks_survive_the_file(tmp_path):
    evaluation = Evaluation(np.zeros((2, 2)), PROTOCOL, tasks=np.array([-1.0, 1.0]))
    evaluation.save(tmp_path / "e.json")
    assert load_evaluation(tmp_path / "e.json").tasks.tolist() == [-1.0, 1.0]
