"""Paths of 2D navigation: those drawn are those walked."""

import numpy as np
import pytest
import torch

from metarl_l2f.reports.paths import navigation_paths
from metarl_l2f.reports.style import COLOURS, COLUMN
from metarl_l2f.rl.episodes import Episodes

GOALS = [[0.5, 0.0], [0.0, -0.5], [-0.5, 0.5]]


def walks(velocities, steps=4, episodes=2, reward=-1.0):
    """Episodes of N tasks that walk from the origin with a constant velocity each, all steps of them done."""
    actions = torch.tensor(velocities)[:, None, None, :].expand(-1, episodes, steps, -1)
    observations = actions * torch.arange(steps)[:, None]
    filled = torch.ones(len(velocities), episodes, steps)
    return Episodes(observations, actions.clone(), reward * filled, filled)


def towards_goals(**settings):
    return walks([[0.1, 0.0], [0.0, -0.1], [-0.05, 0.05]], **settings)


def data(line):
    return [list(values) for values in line.get_data()]


def tracks(axes):
    """The drawn paths: everything that has a line."""
    return [line for line in axes.lines if line.get_linestyle() != "None"]


def grid_of(axes):
    return axes.get_subplotspec().get_gridspec().get_geometry()


def marks(axes, marker):
    return [tuple(np.concatenate(line.get_data())) for line in axes.lines if line.get_marker() == marker]


def test_every_number_of_inner_steps_has_a_panel_with_its_mean_return():
    figure = navigation_paths([towards_goals(reward=-2.0), towards_goals(), towards_goals(reward=0.0)], GOALS)
    # Four steps of reward −2, −1 and 0.
    expected = ["before\nreturn −8.0", "after 1 step\nreturn −4.0", "after 2 steps\nreturn 0.0"]
    assert [axes.get_title() for axes in figure.axes] == expected


def test_a_path_holds_every_position_with_the_one_after_the_last_move():
    (axes,) = navigation_paths([towards_goals()], GOALS, tasks=[1], episodes_shown=1).axes
    (path,) = tracks(axes)
    # Four moves of −0.1 along y lead through five positions.
    np.testing.assert_allclose(data(path), [[0.0] * 5, [0.0, -0.1, -0.2, -0.3, -0.4]], atol=1e-6)


def test_the_last_move_is_clipped_as_the_environment_clips_it():
    (axes,) = navigation_paths([walks([[3.0, 0.0]], steps=1)], [[0.5, 0.0]], episodes_shown=1).axes
    (path,) = tracks(axes)
    np.testing.assert_allclose(data(path), [[0.0, 0.1], [0.0, 0.0]], atol=1e-6)


def test_a_path_ends_with_its_episode():
    episodes = towards_goals(episodes=1)
    episodes.mask[0, 0, 2:] = 0  # arrived with its second move
    episodes.observations[0, 0, 2:] = 0
    (axes,) = navigation_paths([episodes], GOALS, tasks=[0]).axes
    (path,) = tracks(axes)
    np.testing.assert_allclose(data(path), [[0.0, 0.1, 0.2], [0.0, 0.0, 0.0]], atol=1e-6)


def test_a_task_has_one_strong_path_and_faint_ones_in_its_colour():
    (axes,) = navigation_paths([towards_goals(episodes=9)], GOALS, tasks=[2], episodes_shown=4).axes
    paths = tracks(axes)
    strong = [path for path in paths if path.get_alpha() is None]
    assert (len(paths), len(strong)) == (4, 1)
    assert all(path.get_linewidth() < strong[0].get_linewidth() for path in paths if path is not strong[0])
    assert {path.get_color() for path in paths} == {COLOURS[0]}


def test_goals_are_stars_and_starts_are_dots():
    for axes in navigation_paths([towards_goals(), towards_goals()], GOALS, tasks=[2, 0]).axes:
        assert marks(axes, "*") == [(-0.5, 0.5), (0.5, 0.0)]
        assert marks(axes, "o") == [(0.0, 0.0), (0.0, 0.0)]


def test_by_default_the_first_five_tasks_are_drawn():
    goals = [[0.1 * i, 0.2] for i in range(8)]
    (axes,) = navigation_paths([walks([[0.0, 0.1]] * 8)], np.array(goals)).axes
    np.testing.assert_allclose(marks(axes, "*"), goals[:5])


def test_the_mean_return_counts_the_tasks_that_are_not_drawn():
    episodes = towards_goals()
    episodes.rewards[2] = -4.0
    (axes,) = navigation_paths([episodes], GOALS, tasks=[0]).axes
    # (−4 − 4 − 16) / 3
    assert axes.get_title() == "before\nreturn −8.0"


def test_all_panels_have_one_scale_that_holds_goals_and_paths():
    figure = navigation_paths([walks([[0.0, 0.0]] * 3), walks([[0.0, -0.1]] * 3, steps=6)], GOALS)
    for axes in figure.axes:
        # The farthest anything is drawn is y = −0.6; 5 % more.
        np.testing.assert_allclose([axes.get_xlim(), axes.get_ylim()], [[-0.63, 0.63]] * 2, atol=1e-6)
        assert axes.get_aspect() == 1
        assert list(axes.get_xticks()) == list(axes.get_yticks()) == [-0.5, 0, 0.5]


def test_a_path_that_strays_does_not_set_the_scale():
    (axes,) = navigation_paths([walks([[0.1, 0.0]], steps=100)], [[0.0, 0.5]]).axes
    # 1.5 × 0.5, the farthest goal, and 5 % more, though the path reaches 10.
    np.testing.assert_allclose(axes.get_xlim(), [-0.7875, 0.7875])


def test_a_goal_and_a_path_that_never_leave_the_origin_can_be_drawn():
    (axes,) = navigation_paths([walks([[0.0, 0.0]])], [[0.0, 0.0]]).axes
    assert axes.get_xlim() == (-1, 1)


@pytest.mark.parametrize(
    ("panels", "width", "grid"),
    [(1, None, (1, 1)), (4, None, (1, 4)), (6, None, (2, 3)), (4, COLUMN, (2, 2)), (3, 0.5, (3, 1))],
)
def test_panels_that_would_be_too_small_move_to_further_rows(panels, width, grid):
    figure = navigation_paths([towards_goals()] * panels, GOALS, width=width)
    assert len(figure.axes) == panels
    assert {grid_of(axes) for axes in figure.axes} == {grid}


@pytest.mark.parametrize("shape", [(3, 2, 4, 3), (3, 4, 2)])
def test_episodes_that_are_not_on_a_plane_are_refused(shape):
    episodes = towards_goals()._replace(observations=torch.zeros(shape))
    with pytest.raises(ValueError, match=r"observations must be positions on a plane, \(N, B, T, 2\), got shape \(3, "):
        navigation_paths([towards_goals(), episodes], GOALS)


def test_goals_must_be_those_of_the_episodes():
    with pytest.raises(ValueError, match=r"goals must be \(N, 2\), .* \(N = 3\), got shape \(2, 2\); give the tasks"):
        navigation_paths([towards_goals()], GOALS[:2])
    with pytest.raises(ValueError, match=r"goals must be .* \(N = 1, 3\), got shape \(3, 2\)"):
        navigation_paths([towards_goals(), walks([[0.1, 0.0]])], GOALS)


@pytest.mark.parametrize("tasks", [[3], [-1], []])
def test_tasks_must_exist(tasks):
    with pytest.raises(ValueError, match=r"tasks must be some of the numbers 0 … 2, got \["):
        navigation_paths([towards_goals()], GOALS, tasks=tasks)


def test_there_must_be_episodes_to_draw():
    with pytest.raises(ValueError, match="episodes must hold those before adaptation at least, got none"):
        navigation_paths([], GOALS)
    with pytest.raises(ValueError, match="episodes_shown must be a whole number, 1 or more, got 0"):
        navigation_paths([towards_goals()], GOALS, episodes_shown=0)


def test_paths_fit_a_column_of_a_paper(fits_its_page):
    fits_its_page(navigation_paths([towards_goals()] * 4, GOALS, width=COLUMN))
