"""The picture of 2D navigation: the goal, the path and the walker stand where they are."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from PIL import ImageColor

from metarl_l2f.envs import navigation as plane


def begin(goal=(0.3, -0.2), **settings) -> gymnasium.Env:
    env = gymnasium.make("metarl_l2f/Navigation2D-v0", render_mode="rgb_array", **settings)
    env.reset(seed=0, options={"task": goal})
    return env


def pixel(picture: np.ndarray, point, sight: float) -> tuple[int, ...]:
    """The colour at a point of the plane; y points upwards."""
    side = len(picture)
    column, row = (round((0.5 + sign * x / (2 * sight)) * side) for sign, x in zip((1, -1), point, strict=True))
    return tuple(picture[row, column].tolist())


@pytest.mark.filterwarnings("ignore:.*A Box observation space m(in|ax)imum value is.*infin.*:UserWarning")
def test_gymnasium_accepts_the_environment_that_draws_itself():
    check_env(begin().unwrapped)


def test_goal_and_walker_stand_where_they_are():
    env = begin()
    first = env.render()
    assert (first.shape, first.dtype) == ((480, 480, 3), np.uint8)
    sight = plane.SIGHT * 0.5
    goal, walker = (ImageColor.getrgb(colour) for colour in (plane.GOAL, plane.WALKER))
    assert pixel(first, (0.3, -0.2), sight) == goal
    assert pixel(first, (0, 0), sight) == walker
    env.step(np.array([-0.1, 0.1], np.float32))
    second = env.render()
    assert pixel(second, (-0.1, 0.1), sight) == walker
    assert pixel(second, (-0.04, 0.04), sight) == walker  # The path.
    assert pixel(second, (0.04, 0.04), sight) != walker


def test_a_new_episode_begins_without_a_path():
    env = begin()
    first = env.render()
    env.step(np.array([0.1, 0.1], np.float32))
    assert (env.render() != first).any()
    env.reset()
    np.testing.assert_array_equal(env.render(), first)


def test_goals_outside_the_square_are_in_sight():
    picture = begin(goal=(3.0, -3.0)).render()
    assert pixel(picture, (3.0, -3.0), plane.SIGHT * 3.0) == ImageColor.getrgb(plane.GOAL)


def test_a_walker_that_left_the_picture_shows_on_its_edge():
    env = begin(goal_range=0.2, goal=(0.1, 0.1))
    for _ in range(20):
        env.step(np.array([0.1, 0.0], np.float32))
    right = env.render()[:, -30:].reshape(-1, 3).tolist()
    assert list(ImageColor.getrgb(plane.WALKER)) in right
    paths = [np.array([[0.0, 0.0], [x, 0.0]]) for x in (1e6, np.float32(3e38))]
    pictures = [plane.picture(path, np.array([0.1, 0.1]), 0.2) for path in paths]
    np.testing.assert_array_equal(*pictures)


def test_drawing_needs_a_mode_and_an_episode():
    with pytest.raises(ValueError, match="render needs a render_mode, got None; make the environment with render_mode"):
        plane.Navigation2D().render()
    with pytest.raises(ValueError, match="render_mode must be None or 'rgb_array', got 'human'"):
        plane.Navigation2D(render_mode="human")
    with pytest.raises(ValueError, match=r"render needs a running episode, got none; call reset\(\) first"):
        plane.Navigation2D(render_mode="rgb_array").render()
