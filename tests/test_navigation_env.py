"""2D navigation: the equations by hand, one episode against many, tasks, seeds, and what is refused."""

import importlib
import math
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import metarl_l2f.envs
from metarl_l2f.envs.navigation import (
    Navigation2D,
    Navigation2DVector,
    arrived,
    distance_reward,
    move,
    sample_goals,
    squared_distance_reward,
)

ENV_ID = "metarl_l2f/Navigation2D-v0"
FLAGS = [{"varying_start": start, "squared": squared} for start in (False, True) for squared in (False, True)]


def vector32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def begin(goal=(0.3, 0.4), **settings) -> Navigation2D:
    env = Navigation2D(**settings)
    env.reset(seed=0, options={"task": goal})
    return env


def begin_many(goals, **settings) -> Navigation2DVector:
    env = Navigation2DVector(len(goals), **settings)
    env.reset(seed=0, options={"task": np.array(goals)})
    return env


# --- The equations ---


def test_move_clips_each_coordinate_alone():
    # x: 0.2 + min(0.3, 0.1) = 0.3;  y: −0.1 + max(−5, −0.1) = −0.2
    np.testing.assert_allclose(move(vector32(0.2, -0.1), vector32(0.3, -5.0)), [0.3, -0.2], rtol=1e-6)
    # Inside ±0.1 the action is the move: 0.2 + 0.05 and −0.1 − 0.02
    np.testing.assert_allclose(move(vector32(0.2, -0.1), vector32(0.05, -0.02)), [0.25, -0.12], rtol=1e-6)


def test_rewards_of_a_three_four_five_triangle():
    position, goal = vector32(0.1, 0.1), vector32(0.4, 0.5)  # Offset (−0.3, −0.4), distance 0.5.
    assert distance_reward(position, goal) == pytest.approx(-0.5)
    assert squared_distance_reward(position, goal) == pytest.approx(-0.25)


def test_arrival_needs_both_coordinates_within_a_hundredth():
    goal = vector32(0.5, 0.5)
    positions = np.array([[0.509, 0.491], [0.511, 0.5], [0.5, 0.489], [0.52, 0.52]], dtype=np.float32)
    np.testing.assert_array_equal(arrived(positions, goal), [True, False, False, False])


def test_equations_keep_any_leading_shape_and_float32():
    position, goal = np.zeros((3, 4, 2), np.float32), np.ones((3, 4, 2), np.float32)
    assert move(position, goal).shape == (3, 4, 2)
    assert distance_reward(position, goal).shape == arrived(position, goal).shape == (3, 4)
    assert move(position, goal).dtype == distance_reward(position, goal).dtype == np.float32


def test_sampled_goals_fill_the_square_and_repeat_with_the_seed():
    goals = sample_goals(4000, np.random.default_rng(1), goal_range=0.5)
    assert goals.shape == (4000, 2)
    assert goals.dtype == np.float32
    assert np.abs(goals).max() <= 0.5
    # Uniform on [−0.5, 0.5]: mean 0, standard deviation 1/√12 = 0.2887; five standard errors are 0.023.
    np.testing.assert_allclose(goals.mean(axis=0), 0.0, atol=0.023)
    np.testing.assert_allclose(goals.std(axis=0), 1 / math.sqrt(12), atol=0.01)
    np.testing.assert_array_equal(goals, sample_goals(4000, np.random.default_rng(1), goal_range=0.5))


@pytest.mark.parametrize("env", [Navigation2D(goal_range=2.0), Navigation2DVector(3, goal_range=2.0)])
def test_sample_tasks_follows_goal_range(env):
    tasks = env.sample_tasks(500, np.random.default_rng(0))
    np.testing.assert_array_equal(tasks, sample_goals(500, np.random.default_rng(0), goal_range=2.0))
    assert 1.9 < np.abs(tasks).max() <= 2.0


# --- One episode ---


@pytest.mark.filterwarnings("ignore:.*A Box observation space m(in|ax)imum value is.*infin.*:UserWarning")
@pytest.mark.parametrize("flags", FLAGS)
def test_gymnasium_accepts_the_environment(flags):
    # The plane has no border, which check_env warns about; everything else must pass silently.
    check_env(gymnasium.make(ENV_ID, **flags).unwrapped)


def test_an_episode_starts_at_the_origin_and_pays_for_the_position_after_the_move():
    env = Navigation2D()
    start, info = env.reset(options={"task": (0.4, 0.4)})
    np.testing.assert_array_equal(start, [0.0, 0.0])
    assert info == {}
    # (0, 0) + clip((0.1, 7), ±0.1) = (0.1, 0.1), then 0.3·√2 = 0.424264 away.
    position, reward, terminated, truncated, info = env.step(np.array([0.1, 7.0]))
    np.testing.assert_allclose(position, [0.1, 0.1], rtol=1e-6)
    assert reward == pytest.approx(-0.424264, abs=1e-6)
    assert (terminated, truncated, info) == (False, False, {})


def test_squared_flag_squares_the_distance():
    # (0.1, 0.1) is (0.3, 0.4) short of the goal: 0.09 + 0.16.
    assert begin((0.4, 0.5), squared=True).step(np.array([0.1, 0.1]))[1] == pytest.approx(-0.25, abs=1e-6)


def test_arrival_terminates():
    env = begin((0.2, 0.0))
    assert env.step(np.array([0.1, 0.0]))[2:4] == (False, False)
    _, reward, terminated, truncated, _ = env.step(np.array([0.095, 0.0]))  # 0.005 short of the goal.
    assert (terminated, truncated) == (True, False)
    assert reward == pytest.approx(-0.005, abs=1e-6)


def test_horizon_truncates_at_its_last_step():
    env = begin(horizon=3)
    assert [env.step(np.zeros(2))[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]


def test_varying_start_stays_in_the_square_and_follows_the_seed():
    env = Navigation2D(varying_start=True, goal_range=0.3)
    starts = np.array([env.reset(seed=seed)[0] for seed in range(200)])
    assert 0.28 < np.abs(starts).max() <= np.float32(0.3)
    np.testing.assert_array_equal(starts[7], env.reset(seed=7)[0])
    # The start of a seed is the same whether the task is given or drawn.
    np.testing.assert_array_equal(starts[7], env.reset(seed=7, options={"task": (0.1, 0.1)})[0])


def test_standing_still_costs_what_the_papers_report_before_adaptation():
    # Goals uniform in the unit square: E|g| = (√2 + ln(1 + √2)) / 6 = 0.3826 and E|g|² = 2/12, each over 100 steps.
    mean_distance = (math.sqrt(2) + math.log(1 + math.sqrt(2))) / 6
    goals = sample_goals(20_000, np.random.default_rng(0), goal_range=0.5)
    for squared, expected in ((False, -100 * mean_distance), (True, -100 / 6)):
        env = begin_many(goals, squared=squared)
        returns = sum(env.step(np.zeros((20_000, 2)))[1] for _ in range(100))
        # Standard errors 0.10 and 0.08.
        assert returns.mean() == pytest.approx(expected, abs=0.3)


# --- Tasks ---


def reward_of_standing_still(env) -> float | np.ndarray:
    return env.step(np.zeros(env.action_space.shape))[1]


def test_the_task_stays_over_resets_until_replaced():
    env = Navigation2D()
    env.reset(options={"task": (0.3, 0.4)})
    for seed in (None, 5):
        env.reset(seed=seed)
        assert reward_of_standing_still(env) == pytest.approx(-0.5)
    env.reset(options={"task": (0.0, 0.2)})
    assert reward_of_standing_still(env) == pytest.approx(-0.2)


def test_without_a_task_one_is_drawn_from_the_seed_and_kept():
    env, again = Navigation2D(), Navigation2D()
    rewards = []
    for seed in (3, None, 4):
        env.reset(seed=seed)
        rewards.append(reward_of_standing_still(env))
    again.reset(seed=3)
    assert reward_of_standing_still(again) == rewards[0] == rewards[1] != rewards[2]


def test_the_caller_may_reuse_the_task_array():
    task = np.array([0.3, 0.4], dtype=np.float32)
    env = begin(task)
    many = Navigation2DVector(2)
    many.reset(options={"task": task})
    task[:] = 9.0
    assert reward_of_standing_still(env) == pytest.approx(-0.5)
    np.testing.assert_allclose(reward_of_standing_still(many), [-0.5, -0.5])


def test_the_caller_may_write_into_what_step_returns():
    env = begin_many([(0.3, 0.4)], horizon=2)
    for returned in env.step(np.zeros((1, 2)))[:4]:
        returned[:] = 1
    position, reward, terminated, truncated, _ = env.step(np.zeros((1, 2)))
    np.testing.assert_array_equal(position, [[0.0, 0.0]])
    assert reward == pytest.approx(-0.5)
    assert (terminated[0], truncated[0]) == (False, True)


def test_one_task_serves_every_environment():
    env = Navigation2DVector(3)
    env.reset(options={"task": (0.3, 0.4)})
    np.testing.assert_allclose(reward_of_standing_still(env), [-0.5, -0.5, -0.5])


# --- Many episodes ---


def assert_same_step(one, many) -> None:
    """Compare the steps of N scalar environments with one step of the batch, bit for bit."""
    positions, rewards, terminated, truncated, _ = zip(*one, strict=True)
    assert many[0].dtype == many[1].dtype == np.float32
    np.testing.assert_array_equal(many[0], np.stack(positions))
    np.testing.assert_array_equal(many[1].astype(np.float64), rewards)
    np.testing.assert_array_equal(many[2], terminated)
    np.testing.assert_array_equal(many[3], truncated)


@pytest.mark.parametrize("given", [True, False], ids=["given_tasks", "drawn_tasks"])
@pytest.mark.parametrize("flags", FLAGS)
def test_many_episodes_equal_single_ones_bit_for_bit(flags, given):
    # Given tasks: environment 0 walks straight at its goal, at most 1 away on each axis, so it arrives in 10 steps.
    # The others wander until truncated. Three more steps follow, on finished episodes.
    num_envs, horizon = 7, 15
    generator = np.random.default_rng(0)
    goals = sample_goals(num_envs, generator, goal_range=0.5)
    many = Navigation2DVector(num_envs, horizon=horizon, **flags)
    ones = [Navigation2D(horizon=horizon, **flags) for _ in range(num_envs)]
    for seed in (11, None):  # The second episode goes on with the first one's random numbers, and tasks.
        resets = [
            env.reset(seed=None if seed is None else seed + i, options={"task": goals[i]} if given and seed else None)
            for i, env in enumerate(ones)
        ]
        positions, _ = many.reset(seed=seed, options={"task": goals} if given and seed else None)
        np.testing.assert_array_equal(positions, np.stack([position for position, _ in resets]))
        for _ in range(horizon + 3):
            actions = generator.normal(scale=0.1, size=(num_envs, 2)).astype(np.float32)
            if given:
                actions[0] = goals[0] - positions[0]
            step = many.step(actions)
            assert_same_step([env.step(action) for env, action in zip(ones, actions, strict=True)], step)
            positions = step[0]
        assert step[2][0] or not given
        assert step[3][1:].any()
        assert (step[2] | step[3]).all()


def test_finished_episodes_are_frozen():
    # Environment 0 arrives at once, 1 is truncated at step 2.
    env = begin_many([(0.1, 0.0), (0.3, 0.4)], horizon=2)
    right = np.array([[0.1, 0.0], [0.1, 0.0]])
    assert env.step(right)[2].tolist() == [True, False]
    position, reward, terminated, truncated, _ = env.step(right)
    np.testing.assert_allclose(position, [[0.1, 0.0], [0.2, 0.0]], rtol=1e-6)
    # The second stands at (0.2, 0): √(0.1² + 0.4²) = 0.412311 away.
    np.testing.assert_allclose(reward, [0.0, -0.412311], atol=1e-6)
    assert (terminated.tolist(), truncated.tolist()) == ([True, False], [False, True])

    later_position, later_reward, later_terminated, later_truncated, _ = env.step(right)
    np.testing.assert_array_equal(later_position, position)
    np.testing.assert_array_equal(later_reward, [0.0, 0.0])
    np.testing.assert_array_equal(later_terminated, terminated)
    np.testing.assert_array_equal(later_truncated, truncated)


def test_a_finished_single_episode_is_frozen():
    env = begin((0.1, 0.0))
    position = env.step(np.array([0.1, 0.0]))[0]
    later_position, reward, terminated, truncated, _ = env.step(np.array([0.1, 0.0]))
    np.testing.assert_array_equal(later_position, position)
    assert (reward, terminated, truncated) == (0.0, True, False)


def test_reset_mask_restarts_only_what_it_chooses():
    env = begin_many([(0.3, 0.4), (0.3, 0.4), (0.3, 0.4)], horizon=2)
    right = np.full((3, 2), [0.1, 0.0])
    env.step(right)
    options = {"reset_mask": np.array([False, True, False]), "task": np.array([(9, 9), (0.1, 0.3), (9, 9)])}
    position, _ = env.reset(options=options)
    np.testing.assert_allclose(position, [[0.1, 0.0], [0.0, 0.0], [0.1, 0.0]], rtol=1e-6)
    position, reward, _, truncated, _ = env.step(right)
    np.testing.assert_allclose(position, [[0.2, 0.0], [0.1, 0.0], [0.2, 0.0]], rtol=1e-6)
    # Old goal from (0.2, 0): √(0.1² + 0.4²) = 0.412311.  New goal from (0.1, 0): 0.3.
    np.testing.assert_allclose(reward, [-0.412311, -0.3, -0.412311], atol=1e-6)
    assert truncated.tolist() == [True, False, True]
    assert "reset_mask" in options  # The caller's dictionary is not changed.


def test_reset_mask_leaves_the_random_numbers_of_the_others_alone():
    masked, single = Navigation2DVector(2, varying_start=True), Navigation2D(varying_start=True)
    masked.reset(seed=[3, 4])
    single.reset(seed=4)
    masked.reset(seed=[8, 9], options={"reset_mask": np.array([True, False])})
    np.testing.assert_array_equal(masked.reset()[0][1], single.reset()[0])


def test_seeds_spread_as_in_gymnasiums_own_vector_environments():
    batched = gymnasium.make_vec(ENV_ID, num_envs=4, varying_start=True)
    sync = gymnasium.make_vec(ENV_ID, num_envs=4, vectorization_mode="sync", varying_start=True)
    for seed in (5, None, [9, 2, 9, 0], [None, 1, None, 2]):
        np.testing.assert_array_equal(batched.reset(seed=seed)[0], sync.reset(seed=seed)[0])
    np.testing.assert_array_equal(batched.reset(seed=np.arange(4))[0], sync.reset(seed=[0, 1, 2, 3])[0])


# --- Registration ---


def test_make_builds_the_single_environment():
    env = gymnasium.make(ENV_ID, horizon=50, squared=True)
    assert isinstance(env.unwrapped, Navigation2D)
    assert env.unwrapped.domain.horizon == 50
    env.reset(options={"task": (0.4, 0.5)})
    # Beyond the action space: clipped to (0.1, 0.1), 0.3² + 0.4² from the goal.
    assert env.step(np.array([3.0, 3.0], dtype=np.float32))[1] == pytest.approx(-0.25, abs=1e-6)


@pytest.mark.parametrize("mode", [{}, {"vectorization_mode": "vector_entry_point"}])
def test_make_vec_builds_the_batched_environment(mode):
    env = gymnasium.make_vec(ENV_ID, num_envs=8, horizon=50, **mode)
    assert isinstance(env, Navigation2DVector)
    assert (env.num_envs, env.domain.horizon) == (8, 50)
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    positions, _ = env.reset(seed=0)
    assert positions in env.observation_space
    assert env.step(env.action_space.sample())[0] in env.observation_space


def test_importing_again_registers_nothing_twice():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(metarl_l2f.envs)
    assert ENV_ID in gymnasium.registry


# --- What is refused ---


@pytest.mark.parametrize("make", [Navigation2D, Navigation2DVector])
@pytest.mark.parametrize("horizon", [0, -3, 2.5, True])
def test_a_horizon_that_is_no_positive_number_of_steps_is_refused(make, horizon):
    with pytest.raises(ValueError, match=f"^horizon must be a whole number of steps, 1 or more, got {horizon}$"):
        make(horizon=horizon)


@pytest.mark.parametrize("make", [Navigation2D, Navigation2DVector])
@pytest.mark.parametrize("goal_range", [0.0, -0.5, math.inf, math.nan])
def test_a_goal_range_that_is_not_positive_and_finite_is_refused(make, goal_range):
    with pytest.raises(ValueError, match=f"goal_range must be positive and finite, got {goal_range}"):
        make(goal_range=goal_range)


def test_zero_environments_are_refused():
    with pytest.raises(ValueError, match="num_envs must be a whole number of environments, 1 or more, got 0"):
        Navigation2DVector(0)


def test_a_task_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"task must be a goal of shape \(2,\), got shape \(3,\); sample_tasks"):
        Navigation2D().reset(options={"task": (1.0, 2.0, 3.0)})
    with pytest.raises(ValueError, match=r"shape \(4, 2\) or \(2,\), got shape \(3, 2\)"):
        Navigation2DVector(4).reset(options={"task": np.zeros((3, 2))})


@pytest.mark.parametrize("env", [Navigation2D(), Navigation2DVector(2)])
def test_a_task_that_is_not_finite_is_refused(env):
    with pytest.raises(ValueError, match=r"task must be finite, got \[nan, 1.0\]"):
        env.reset(options={"task": (math.nan, 1.0)})


def test_an_action_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"action must have shape \(2,\), got \(3,\)"):
        begin().step(np.zeros(3))
    with pytest.raises(ValueError, match=r"action must have shape \(1, 2\), got \(2,\)"):
        begin_many([(0.3, 0.4)]).step(np.zeros(2))


def test_an_action_that_is_not_finite_is_refused_and_located():
    with pytest.raises(ValueError, match=r"action must be finite, got NaN or infinity, \[nan, 0.0\]; check the policy"):
        begin().step(np.array([math.nan, 0.0]))
    actions = np.array([[0.0, 0.0], [math.inf, 0.0], [0.0, math.nan]])
    with pytest.raises(ValueError, match=r"got NaN or infinity in environments \[1, 2\]; check the policy"):
        begin_many(np.zeros((3, 2))).step(actions)


@pytest.mark.parametrize("env", [Navigation2D(), Navigation2DVector(2)])
def test_a_step_before_reset_is_refused(env):
    with pytest.raises(ValueError, match=r"step needs a running episode, got none; call reset\(\) first"):
        env.step(np.zeros(env.action_space.shape))


def test_seeds_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"one integer or one per environment \(3\), got 2 of them"):
        Navigation2DVector(3).reset(seed=[1, 2])


def test_a_reset_mask_of_another_kind_or_shape_is_refused():
    env = begin_many([(0.3, 0.4), (0.3, 0.4)])
    with pytest.raises(TypeError, match="reset_mask must be a numpy array of bool, got a list"):
        env.reset(options={"reset_mask": [True, False]})
    with pytest.raises(TypeError, match="reset_mask must be a numpy array of bool, got an array of int64"):
        env.reset(options={"reset_mask": np.array([1, 0])})
    with pytest.raises(ValueError, match=r"reset_mask must have shape \(2,\), one per environment, got \(3,\)"):
        env.reset(options={"reset_mask": np.ones(3, dtype=bool)})


def test_a_first_reset_with_gaps_is_refused():
    with pytest.raises(ValueError, match="reset_mask must choose every environment at the first reset"):
        Navigation2DVector(2).reset(options={"reset_mask": np.array([True, False])})
