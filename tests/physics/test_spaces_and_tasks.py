"""Every MuJoCo environment: spaces, registration, horizon, and the tasks that it draws."""

import importlib
import math

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from metarl_l2f.envs.mujoco_batch import MuJoCoEnv, MuJoCoVectorEnv

from .bodies import FACTS, batch, every_environment, single


def test_these_are_all_registered_mujoco_environments():
    entries = {i: spec.entry_point.split(":") for i, spec in gymnasium.registry.items() if i.startswith("metarl_l2f/")}
    classes = {i: getattr(importlib.import_module(module), name) for i, (module, name) in entries.items()}
    assert {i for i, kind in classes.items() if issubclass(kind, MuJoCoEnv)} == {f"metarl_l2f/{n}-v0" for n in FACTS}


@pytest.mark.filterwarnings("ignore:.*A Box observation space m(in|ax)imum value is.*infin.*:UserWarning")
@every_environment
def test_gymnasium_accepts_the_environment(name):
    # Observations have no bounds, which check_env warns about; everything else must pass silently.
    check_env(single(name), skip_render_check=True)


@every_environment
def test_one_and_many_have_the_same_spaces(name):
    one, many, facts = single(name), batch(name, 3), FACTS[name]
    assert isinstance(many, MuJoCoVectorEnv)
    assert many.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert many.single_observation_space == one.observation_space
    assert many.single_action_space == one.action_space
    assert one.observation_space.shape == (facts.observation,)
    assert many.observation_space.shape == (3, facts.observation)
    np.testing.assert_array_equal(
        [one.action_space.low, one.action_space.high], [[-1] * facts.action, [1] * facts.action]
    )
    assert many.reset(seed=0)[0] in many.observation_space
    observation, reward, *_ = many.step(many.action_space.sample())
    assert observation in many.observation_space
    assert observation.dtype == reward.dtype == np.float64
    assert one.reset(seed=0)[0] in one.observation_space


@every_environment
def test_an_episode_has_200_steps_unless_told_otherwise(name):
    assert single(name).domain.horizon == 200
    assert batch(name, 1, horizon=7).domain.horizon == 7


@every_environment
def test_sampled_tasks_repeat_with_the_seed_and_are_accepted(name):
    env = batch(name, 5)
    tasks = env.sample_tasks(5, np.random.default_rng(1))
    np.testing.assert_array_equal(tasks, single(name).sample_tasks(5, np.random.default_rng(1)))
    assert tasks.shape == (5, *np.shape(FACTS[name].task))
    env.reset(seed=0, options={"task": tasks})
    np.testing.assert_array_equal(env.tasks, tasks)


@pytest.mark.parametrize("name", ["HalfCheetahDir", "AntDir"])
def test_half_of_the_directions_are_forwards(name):
    env, generator = single(name), np.random.default_rng(0)
    draws = np.array([env.sample_tasks(20, generator) for _ in range(200)])
    assert set(draws.ravel()) == {-1.0, 1.0}
    assert (draws.sum(axis=1) == 0).all()
    # In random order: each place is forwards in half of 200 draws, ± 5 standard errors of √(1/4/200) = 0.035.
    np.testing.assert_allclose((draws == 1).mean(axis=0), 0.5, atol=0.18)
    # And a place has its neighbour's direction as often as any other place's: 9 of 19.
    assert (draws[:, 1:] == draws[:, :-1]).mean() == pytest.approx(9 / 19, abs=0.05)
    # Of an odd number, one is tossed.
    assert {env.sample_tasks(3, generator).sum() for _ in range(30)} == {-1.0, 1.0}


def assert_uniform(draws: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> None:
    """4000 draws (4000, ...) fill [low, high] evenly."""
    assert len(draws) == 4000
    position = (draws - low) / (high - low)  # Uniform in [0, 1].
    assert position.min() >= 0
    assert position.max() <= 1
    # Five standard errors of quartiles' shares: 5·√(3/16/4000) = 0.034.
    for quartile in range(4):
        share = ((position >= quartile / 4) & (position < (quartile + 1) / 4)).mean(axis=0)
        np.testing.assert_allclose(share, 0.25, atol=0.034)


# 3 log 1.5 = 1.2164 for masses and friction, 3 log 1.3 = 0.7871 for dampings.
HOPPER_SCALES = np.array([1.2164] * 4 + [0.7871] * 3 + [1.2164])
# Under the arguments below: 1 for masses and friction, 2 for dampings.
WALKER_SCALES = np.array([1.0] * 7 + [2.0] * 6 + [1.0])


@pytest.mark.parametrize(
    ("name", "arguments", "low", "high"),
    [
        ("HalfCheetahVel", {}, 0.0, 2.0),
        ("HalfCheetahVel", {"min_speed": 1.0, "max_speed": 3.0}, 1.0, 3.0),
        ("AntVel", {}, 0.0, 3.0),
        ("HopperRandParams", {}, -HOPPER_SCALES, HOPPER_SCALES),
        ("Walker2dRandParams", {"spread": math.e, "damping_spread": math.e**2}, -WALKER_SCALES, WALKER_SCALES),
    ],
)
def test_other_tasks_are_uniform(name, arguments, low, high):
    tasks = single(name, **arguments).sample_tasks(4000, np.random.default_rng(0))
    assert_uniform(tasks, low - 1e-4, high + 1e-4)


def test_a_spread_of_one_leaves_the_body_alone():
    tasks = single("HopperRandParams", spread=1, damping_spread=1).sample_tasks(3, np.random.default_rng(0))
    np.testing.assert_array_equal(tasks, np.zeros((3, 8)))
