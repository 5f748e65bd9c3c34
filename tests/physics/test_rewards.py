"""Rewards and ends of episodes, by hand."""

from typing import Any

import numpy as np
import pytest

from metarl_l2f.envs import ant, half_cheetah, rand_params
from metarl_l2f.envs.mujoco_batch import State

HOPPER, WALKER = rand_params.Hopper(), rand_params.Walker2d()


def moved(body: Any, distance: float, height: float) -> tuple[State, State]:
    """A body upright at x = 1 m, and the same one further on."""
    qpos, qvel = body.model.qpos0.copy(), np.zeros(body.model.nv)
    height_place = 2 if isinstance(body, ant.Ant) else 1
    qpos[0], qpos[height_place] = 1.0, height
    after = qpos.copy()
    after[0] += distance
    return State(qpos, qvel), State(after, qvel)


@pytest.mark.parametrize(
    ("body", "task", "expected"),
    [
        # 0.1 m in 0.05 s: v = 2.  Six controls of 0.5: |a|² = 1.5, and 0.05·1.5 = 0.075.
        (half_cheetah.Direction(), 1.0, 2 - 0.075),
        (half_cheetah.Direction(), -1.0, -2 - 0.075),
        (half_cheetah.Velocity(), 0.5, -1.5 - 0.075),
        (half_cheetah.Velocity(), 3.0, -1.0 - 0.075),
        # Eight controls of 0.5: |a|² = 2, and 0.005·2 = 0.01; 0.05 for surviving.
        (ant.Direction(), 1.0, 2 - 0.01 + 0.05),
        (ant.Direction(), -1.0, -2 - 0.01 + 0.05),
        (ant.Velocity(), 0.5, 1 - 1.5 - 0.01 + 0.05),
        (ant.Velocity(), 3.0, 1 - 1.0 - 0.01 + 0.05),
    ],
)
def test_rewards_by_hand(body, task, expected):
    before, after = moved(body, 0.1, height=0.75)
    control = np.full(body.model.nu, 0.5)
    assert body.reward(before, after, control, task) == pytest.approx(expected, abs=1e-12)
    # For many, each under a task of its own.
    pair = [State(np.stack([s.qpos] * 2), np.stack([s.qvel] * 2)) for s in (before, after)]
    found = body.reward(*pair, np.stack([control, 0 * control]), np.stack([task, task]))
    costs = {half_cheetah.HalfCheetah: 0.075, ant.Ant: 0.01}[type(body).__mro__[1]]
    np.testing.assert_allclose(found, [expected, expected + costs], atol=1e-12)


@pytest.mark.parametrize(
    ("body", "cost"),
    # 0.016 m in 0.008 s: v = 2.  Controls of 0.5: |a|² = 0.75 of three and 1.5 of six.
    [(rand_params.Hopper(), 0.00075), (rand_params.Walker2d(), 0.0015)],
)
def test_rewards_of_random_dynamics_by_hand(body, cost):
    control = np.full(body.model.nu, 0.5)
    for height, survival in ((1.25, 1.0), (0.5, 0.0)):  # The second one has fallen.
        reward = body.reward(*moved(body, 0.016, height), control, np.zeros(body.task_shape))
        assert reward == pytest.approx(2 + survival - cost, abs=1e-12)


@pytest.mark.parametrize(
    ("body", "quantity", "place", "values", "fallen"),
    [
        # An ant's height, bounds included; not its place.
        (ant.Direction(), "qpos", 2, [0.19, 0.2, 1.0, 1.01], [True, False, False, True]),
        (ant.Direction(), "qpos", 0, [-1e4, 1e4], [False, False]),
        # A cheetah may lie on its back.
        (half_cheetah.Direction(), "qpos", 2, [-3.1, 3.1], [False, False]),
        (half_cheetah.Direction(), "qvel", 0, [-500.0, 500.0], [False, False]),
        # A hopper's height and tilt, bounds excluded, and all but its place within ±100.
        (HOPPER, "qpos", 1, [0.7, 0.71, 50.0], [True, False, False]),
        (HOPPER, "qpos", 2, [-0.2, -0.19, 0.19, 0.2], [True, False, False, True]),
        (HOPPER, "qpos", 4, [-100.0, -99.0, 99.0, 100.0], [True, False, False, True]),
        (HOPPER, "qvel", 0, [-100.0, -99.0, 99.0, 100.0], [True, False, False, True]),
        (HOPPER, "qpos", 0, [-1e4, 1e4], [False, False]),
        # A walker's height and tilt, bounds excluded.
        (WALKER, "qpos", 1, [0.8, 0.81, 1.99, 2.0], [True, False, False, True]),
        (WALKER, "qpos", 2, [-1.0, -0.99, 0.99, 1.0], [True, False, False, True]),
        (WALKER, "qvel", 0, [-500.0, 500.0], [False, False]),
    ],
)
def test_where_an_episode_ends(body, quantity, place, values, fallen):
    states = {"qpos": np.tile(body.model.qpos0, (len(values), 1)), "qvel": np.zeros((len(values), body.model.nv))}
    assert not body.fallen(State(**states)).any()
    states[quantity][:, place] = values
    assert body.fallen(State(**states)).tolist() == fallen
    alone = [body.fallen(State(qpos, qvel)) for qpos, qvel in zip(states["qpos"], states["qvel"], strict=True)]
    assert alone == fallen
