"""Speeds of runners: what is drawn is how fast the bodies ran."""

import numpy as np
import pytest
import torch

from metarl_l2f.reports.speeds import running_speeds
from metarl_l2f.reports.style import COLUMN
from metarl_l2f.rl.episodes import Episodes


def runs_at(speeds, steps=4, episodes=2):
    """Episodes of one task a speed; observations hold (height, forward speed)."""
    observations = torch.zeros(len(speeds), episodes, steps, 2)
    observations[..., 1] = torch.tensor(speeds).view(-1, 1, 1)
    ones = torch.ones(len(speeds), episodes, steps)
    return Episodes(observations, torch.zeros(len(speeds), episodes, steps, 1), ones * 0.5, ones)


def data(line):
    return [list(values) for values in line.get_data()]


def speeds_figure(*batches, tasks, **settings):
    return running_speeds(batches, tasks, speed_column=1, task_name="direction", **settings)


def test_speeds_stand_over_time_and_against_the_task():
    figure = speeds_figure(runs_at([0.0, 0.0]), runs_at([-2.0, 3.0]), tasks=[-1.0, 1.0])
    _, after, _, against = figure.axes
    assert [data(line)[1] for line in after.lines[:2]] == [[-2.0] * 4, [3.0] * 4]
    np.testing.assert_allclose(against.collections[0].get_offsets(), [[-1.0, -2.0], [1.0, 3.0]])
    # four steps of reward 0.5
    assert after.get_title() == "after 1 step\nreturn 2.0"


def test_the_mean_speed_counts_running_episodes_alone():
    episodes = runs_at([1.0])
    episodes.mask[0, 1, 2:] = 0  # the second episode ends after two steps, …
    episodes.observations[0, 1, 2:] = 0
    episodes.observations[0, 1, :2, 1] = 3.0  # … at speed 3
    (above, _) = speeds_figure(episodes, tasks=[1.0]).axes
    assert data(above.lines[0])[1] == [2.0, 2.0, 1.0, 1.0]


def test_goal_speeds_get_the_line_on_which_speed_and_goal_agree():
    _, against = speeds_figure(runs_at([0.5, 1.5]), tasks=[0.0, 2.0], goals_are_speeds=True).axes
    assert [[0.0, 2.0], [0.0, 2.0]] in [data(line) for line in against.lines]


@pytest.mark.parametrize(("tasks", "column"), [([1.0], 1), ([1.0, 2.0], 2), ([[1.0, 2.0]] * 2, 1)])
def test_speeds_need_a_number_per_task_and_a_column(tasks, column):
    with pytest.raises(ValueError, match=r"tasks must be \(N,\), one number for each task .* and column [12]"):
        running_speeds([runs_at([0.0, 1.0])], tasks, speed_column=column, task_name="speed")


def test_a_task_whose_episodes_all_end_early_has_no_dot_and_no_warning():
    episodes = runs_at([1.0, 2.0])
    episodes.mask[0, :, 1:] = 0
    _, against = speeds_figure(episodes, tasks=[-1.0, 1.0]).axes
    offsets = np.ma.filled(against.collections[0].get_offsets(), np.nan)
    np.testing.assert_allclose(offsets[:, 1], [np.nan, 2.0])


def test_speeds_fit_a_column_of_a_paper(fits_its_page):
    fits_its_page(speeds_figure(runs_at([0.0]), runs_at([1.0]), tasks=[1.0], width=COLUMN))
