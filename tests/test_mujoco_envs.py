"""MuJoCo environments: each against gymnasium's own and against its batch, rewards by hand, and what is refused."""

import importlib
import logging
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import metarl_l2f.envs  # noqa: F401  (registers the environments)
from metarl_l2f.envs import ant, half_cheetah, rand_params
from metarl_l2f.envs.mujoco_batch import GYMNASIUM_MODELS, MuJoCoEnv, MuJoCoVectorEnv, State


@dataclass(frozen=True)
class Facts:
    """What is known of one environment without looking at its code."""

    original: str
    """gymnasium's environment of the same body."""
    observation: int
    """Numbers observed."""
    action: int
    """Actuators."""
    task: Any
    """One of its tasks; under this one its reward is gymnasium's, where `same_reward` says so."""
    another_task: Any
    height: int
    """Place of the torso's vertical velocity in qvel."""
    ends: bool = True
    """Whether a fall ends the episode."""
    same_reward: bool = True
    original_arguments: dict[str, Any] = field(default_factory=dict)
    """That make gymnasium's reward this one."""


CHEETAH = partial(Facts, "HalfCheetah-v5", 20, 6, height=1, ends=False, original_arguments={"ctrl_cost_weight": 0.05})
ANT = partial(Facts, "Ant-v5", height=2, original_arguments={"ctrl_cost_weight": 0.005})
FACTS = {
    "HalfCheetahDir": CHEETAH(task=1.0, another_task=-1.0),
    "HalfCheetahVel": CHEETAH(task=0.5, another_task=1.7, same_reward=False),
    "AntDir": ANT(27, 8, task=1.0, another_task=-1.0),
    "AntVel": ANT(27, 8, task=0.5, another_task=2.5, same_reward=False),
    "HopperRandParams": Facts("Hopper-v5", 11, 3, np.zeros(8), np.linspace(-1, 1, 8), height=1),
    "Walker2dRandParams": Facts("Walker2d-v5", 17, 6, np.zeros(14), np.linspace(-1, 1, 14), height=1),
}
every_environment = pytest.mark.parametrize("name", FACTS)


def single(name: str, **arguments) -> MuJoCoEnv:
    return gymnasium.make(f"metarl_l2f/{name}-v0", disable_env_checker=True, **arguments).unwrapped


def batch(name: str, num_envs: int, **arguments) -> MuJoCoVectorEnv:
    return gymnasium.make_vec(f"metarl_l2f/{name}-v0", num_envs=num_envs, **arguments)


def random_actions(name: str, *leading: int, scale: float = 1.0) -> np.ndarray:
    """Some of them beyond the actuators' range."""
    return np.random.default_rng(0).normal(scale=scale, size=(*leading, FACTS[name].action))


@pytest.fixture
def gymnasiums_own(tmp_path, monkeypatch):
    """gymnasium's environments, without the notes that MuJoCo prints, and writes to a file, about their models."""
    monkeypatch.chdir(tmp_path)
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda text: None)
    yield lambda env_id, **arguments: gymnasium.make(env_id, disable_env_checker=True, **arguments).unwrapped
    mujoco.set_mju_user_warning(previous)


# --- Every environment: spaces, registration, tasks ---


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


# --- Every environment: gymnasium's own ---


@every_environment
def test_an_episode_is_gymnasiums_own_bit_for_bit(name, gymnasiums_own):
    facts = FACTS[name]
    env, original = single(name), gymnasiums_own(facts.original, **facts.original_arguments)
    actions = np.clip(random_actions(name, 60, scale=0.5), -1, 1)
    for seed in (3, None):  # The second episode goes on with the first one's random numbers.
        env.reset(seed=seed, options={"task": facts.task})
        original.reset(seed=seed)
        np.testing.assert_array_equal(env.data.qpos, original.data.qpos)
        np.testing.assert_array_equal(env.data.qvel, original.data.qvel)
        for action in actions:
            before = original.data.qpos[0]
            _, reward, terminated, _, _ = env.step(action)
            _, expected_reward, expected_end, _, parts = original.step(action)
            np.testing.assert_array_equal(env.data.qpos, original.data.qpos)
            np.testing.assert_array_equal(env.data.qvel, original.data.qvel)
            assert terminated == expected_end
            if name == "AntDir":
                # gymnasium's ant pays nothing for a fall, and reads its place one physics step late.
                expected_reward = (original.data.qpos[0] - before) / 0.05 + parts["reward_ctrl"] + 0.05
            if facts.same_reward:
                assert reward == pytest.approx(expected_reward, abs=1e-12)
            if terminated:
                break
        assert terminated == (facts.original in ("Hopper-v5", "Walker2d-v5"))  # They do fall at such actions.


@every_environment
def test_observations_are_gymnasiums_own_and_more(name, gymnasiums_own):
    facts = FACTS[name]
    arguments = {"include_cfrc_ext_in_observation": False} if facts.original == "Ant-v5" else {}
    env, original = single(name), gymnasiums_own(facts.original, **arguments)
    observation, expected = env.reset(seed=3, options={"task": facts.task})[0], original.reset(seed=3)[0]
    for action in np.clip(random_actions(name, 6, scale=2.0), -1, 1):
        np.testing.assert_array_equal(observation[: len(expected)], expected)
        observation, expected = env.step(action)[0], original.step(action)[0]
    extra = facts.observation - len(expected)
    assert extra == {"HalfCheetah-v5": 3}.get(facts.original, 0)


def test_fast_joints_are_observed_at_ten_radians_a_second():
    env = single("HopperRandParams")
    env.reset(seed=0)
    observation = env.domain.observe(np.zeros(6), np.array([0.0, -30.0, 9.0, 11.0, 0.0, -9.0]))
    np.testing.assert_array_equal(observation, [0, 0, 0, 0, 0, 0, -10, 9, 10, 0, -9])


def test_an_ant_that_runs_may_observe_its_place():
    qpos, qvel = np.arange(15.0), np.arange(14.0)
    np.testing.assert_array_equal(ant.Direction(positions=True).observe(qpos, qvel), [*qpos, *qvel])
    np.testing.assert_array_equal(ant.Direction().observe(qpos, qvel), [*qpos[2:], *qvel])


def test_the_cheetahs_centre_of_mass_is_mujocos():
    env = single("HalfCheetahVel")
    for seed in range(5):
        env.reset(seed=seed)
        for action in random_actions("HalfCheetahVel", 5):
            observation = env.step(action)[0]
            mujoco.mj_forward(env.model, env.data)
            np.testing.assert_allclose(observation[17:], env.data.subtree_com[1], rtol=0, atol=1e-12)
    assert single("HalfCheetahVel", centre_of_mass=False).observation_space.shape == (17,)


# --- Every environment: many episodes ---


def assert_same_step(ones, many, rows) -> None:
    """Compare steps of scalar environments with those rows of one step of the batch, bit for bit."""
    for values, expected in zip(many[:4], zip(*[one[:4] for one in ones], strict=True), strict=True):
        np.testing.assert_array_equal(values[rows], np.array(expected))


@every_environment
def test_many_episodes_equal_single_ones_bit_for_bit(name):
    facts, num_envs, horizon = FACTS[name], 5, 25
    many = batch(name, num_envs, horizon=horizon, threads=2)
    ones = [single(name, horizon=horizon) for _ in range(num_envs)]
    tasks = many.sample_tasks(num_envs, np.random.default_rng(1))
    everyone, some = list(range(num_envs)), [0, 3]
    mask = np.isin(everyone, some)

    def step_all(times: int, seed: int) -> Any:
        for actions in np.random.default_rng(seed).normal(size=(times, num_envs, facts.action)):
            steps = many.step(actions)
            assert_same_step([one.step(action) for one, action in zip(ones, actions, strict=True)], steps, everyone)
        return steps

    starts, _ = many.reset(seed=[7, 9, 8, 7, 30], options={"task": tasks})
    for one, seed, task, start in zip(ones, [7, 9, 8, 7, 30], tasks, starts, strict=True):
        np.testing.assert_array_equal(one.reset(seed=seed, options={"task": task})[0], start)
    # Environment 1 is kicked up, out of any height at which an episode goes on.
    many._qvel[1, facts.height] = ones[1].data.qvel[facts.height] = 9.0
    frozen = step_all(horizon, seed=1)
    assert frozen[2][1] == facts.ends
    assert (frozen[2] | frozen[3]).all()
    assert frozen[3].any() or facts.original in ("Hopper-v5", "Walker2d-v5")  # Which fall within 25 steps.
    # Finished episodes are frozen.
    later = step_all(2, seed=2)
    np.testing.assert_array_equal(later[0], frozen[0])
    np.testing.assert_array_equal(later[1], np.zeros(num_envs))

    # Some begin anew, under their old tasks and with their own random numbers; the others stay as they are.
    starts, _ = many.reset(options={"reset_mask": mask})
    np.testing.assert_array_equal(starts[some], [ones[i].reset()[0] for i in some])
    np.testing.assert_array_equal(starts[~mask], frozen[0][~mask])
    step_all(4, seed=3)

    # Then again under other tasks, of which the others get none.
    others = many.sample_tasks(num_envs, np.random.default_rng(2)) if "Dir" not in name else -tasks
    starts, _ = many.reset(seed=40, options={"reset_mask": mask, "task": others})
    expected = [ones[i].reset(seed=40 + i, options={"task": others[i]})[0] for i in some]
    np.testing.assert_array_equal(starts[some], expected)
    np.testing.assert_array_equal(many.tasks, np.where(mask.reshape(-1, *[1] * (tasks.ndim - 1)), others, tasks))
    step_all(4, seed=4)

    # And all of them, with tasks drawn from their seeds no more, since theirs were given.
    starts, _ = many.reset(seed=50)
    np.testing.assert_array_equal(starts, [one.reset(seed=50 + i)[0] for i, one in enumerate(ones)])
    step_all(3, seed=5)


@every_environment
def test_tasks_drawn_from_the_seed_are_the_same_for_one_and_many(name):
    many, one = batch(name, 2), single(name)
    starts, _ = many.reset(seed=5)
    np.testing.assert_array_equal(starts[1], one.reset(seed=6)[0])
    np.testing.assert_array_equal(many.tasks[1], one.task)


@every_environment
def test_threads_change_no_bit(name):
    actions = random_actions(name, 12, 7)
    runs = []
    for threads in (1, 2, 3):
        env = batch(name, 7, threads=threads)
        assert env.threads == threads
        env.reset(seed=0)
        runs.append([env.step(action)[:4] for action in actions])
    for step, *others in zip(*runs, strict=True):
        for other in others:
            for values, same in zip(step, other, strict=True):
                np.testing.assert_array_equal(values, same)


@every_environment
def test_the_task_matters_and_stays_until_replaced(name):
    facts, action = FACTS[name], random_actions(name, 3)
    env = batch(name, 2)

    def rewards(**options) -> list[float]:
        env.reset(seed=0, options=options or None)
        return [tuple(env.step(np.tile(a, (2, 1)))[1]) for a in action]

    first = rewards(task=facts.task)
    assert first == rewards()
    assert first != rewards(task=facts.another_task)
    assert first == rewards(task=facts.task)


@every_environment
def test_an_action_beyond_the_actuators_range_is_clipped(name):
    beyond, within = single(name), single(name)
    for env in (beyond, within):
        env.reset(seed=0, options={"task": FACTS[name].task})
    action = random_actions(name, scale=3.0)
    assert np.abs(action).max() > 1
    step, clipped = beyond.step(action), within.step(np.clip(action, -1, 1))
    np.testing.assert_array_equal(step[0], clipped[0])
    assert step[1] == clipped[1]


@every_environment
def test_the_memory_layout_of_actions_changes_no_bit(name):
    rows, columns = batch(name, 9), batch(name, 9)
    actions = random_actions(name, 9)
    for env in (rows, columns):
        env.reset(seed=0)
    expected, found = rows.step(actions), columns.step(np.asfortranarray(actions))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@every_environment
def test_the_caller_may_write_into_what_step_returns(name):
    written, left = batch(name, 2), batch(name, 2)
    for env in (written, left):
        env.reset(seed=0)
    for action in random_actions(name, 3, 2):
        step, expected = written.step(action), left.step(action)
        for values, same in zip(step[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(values, same)
            values[:] = 1


# --- Rewards and ends by hand ---


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


HOPPER, WALKER = rand_params.Hopper(), rand_params.Walker2d()


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


# --- Divergence ---


def assert_reports_its_end(one: MuJoCoEnv, last_good: np.ndarray, action: np.ndarray) -> None:
    observation, reward, terminated, truncated, info = one.step(action)
    np.testing.assert_array_equal(observation, last_good)
    assert (reward, terminated, truncated, info) == (0.0, True, False, {"diverged": True})


@every_environment
def test_a_diverged_simulation_ends_alone_and_keeps_its_last_good_state(name):
    actions = random_actions(name, 6, 4, scale=0.1)
    disturbed, calm = batch(name, 4, threads=2), batch(name, 4)
    others = [0, 2, 3]
    for seed in (0, None):  # Nothing of the first divergence is left in the second episode.
        last_good = disturbed.reset(seed=seed)[0]
        calm.reset(seed=seed)
        for time, action in enumerate(actions):
            if time == 3:
                disturbed._qpos[1, 0] = math.nan
            observation, reward, terminated, truncated, info = step = disturbed.step(action)
            for values, same in zip(step[:4], calm.step(action)[:4], strict=True):
                np.testing.assert_array_equal(values[others], same[others])
            assert terminated.tolist() == [False, time >= 3, False, False]
            assert not truncated.any()
            assert (list(info) == ["diverged"]) == (time == 3)
            if time == 3:
                assert info["diverged"].tolist() == [False, True, False, False]
            if time >= 3:
                assert reward[1] == 0
                np.testing.assert_array_equal(observation[1], last_good[1])
            last_good = observation


@every_environment
def test_a_single_diverged_simulation_ends_too(name):
    env = single(name)
    for seed in (0, None):
        env.reset(seed=seed)
        for action in random_actions(name, 3, scale=0.1):
            last_good, _, terminated, _, info = env.step(action)
            assert (terminated, info) == (False, {})
        env.data.qpos[0] = math.nan
        assert_reports_its_end(env, last_good, action)
        assert np.isfinite(env.data.qpos).all()  # A picture shows the last good state too.
        observation, *rest = env.step(action)
        np.testing.assert_array_equal(observation, last_good)
        assert rest == [0.0, True, False, {}]


def test_a_divergence_is_logged_once_and_leaves_no_file(caplog, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Where MuJoCo would write its own report, besides the terminal.
    many, one = batch("AntVel", 3), single("AntVel")
    many.reset(seed=0, options={"task": np.array([0, 1, 0])})
    one.reset(seed=0, options={"task": 3})
    many._qpos[1, 0] = one.data.qpos[0] = math.nan
    for _ in range(2):
        many.step(np.zeros((3, 8)))
        one.step(np.zeros(8))
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "simulations [1] diverged, in tasks [1.0]; their episodes end",
        "the simulation diverged in task 3.0; its episode ends",
    ]
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("quantity", "value"), [("qvel", 1e9), ("qfrc_applied", math.nan), ("qfrc_applied", 1e30)])
def test_speeds_and_forces_that_explode_are_found(quantity, value):
    many, one = batch("HalfCheetahVel", 3), single("HalfCheetahVel")
    start, _ = many.reset(seed=0)
    one.reset(seed=2)
    many._batch.bind(quantity)[2, 4] = getattr(one.data, quantity)[4] = value
    observation, reward, terminated, _, info = many.step(np.zeros((3, 6)))
    assert info["diverged"].tolist() == terminated.tolist() == [False, False, True]
    assert reward[2] == 0
    np.testing.assert_array_equal(observation[2], start[2])
    assert_reports_its_end(one, start[2], np.zeros(6))


def test_a_number_that_turns_bad_in_the_last_physics_step_is_found(monkeypatch):
    env = batch("HopperRandParams", 3)
    start, _ = env.reset(seed=0)
    step = env._batch.step

    def step_into_nan(*arguments) -> None:
        step(*arguments)
        env._qvel[2, 0] = math.nan

    monkeypatch.setattr(env._batch, "step", step_into_nan)
    observation, reward, terminated, _, info = env.step(np.zeros((3, 3)))
    assert info["diverged"].tolist() == terminated.tolist() == [False, False, True]
    np.testing.assert_array_equal(observation[2], start[2])
    assert reward[2] == 0

    one = single("HopperRandParams")
    start, _ = one.reset(seed=0)
    mj_step = mujoco.mj_step

    def one_step_into_nan(model, data, nstep) -> None:
        mj_step(model, data, nstep=nstep)
        data.qvel[0] = math.nan

    monkeypatch.setattr(mujoco, "mj_step", one_step_into_nan)
    assert_reports_its_end(one, start, np.zeros(3))


# --- Random dynamics ---

rand_params_environments = pytest.mark.parametrize("name", ["HopperRandParams", "Walker2dRandParams"])
SCALED = ("body_mass", "body_inertia", "dof_damping", "geom_friction")
DERIVED = ("body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0", "actuator_acc0")


def scaled_task(masses: list[float], dampings: list[float], friction: float) -> np.ndarray:
    return np.log([*masses, *dampings, friction])


def test_a_task_scales_the_models_own_values():
    env, original = single("HopperRandParams"), rand_params.Hopper().model
    for _ in range(3):  # Again and again: factors do not pile up.
        env.reset(seed=0, options={"task": scaled_task([2, 3, 4, 5], [0.5, 1, 3], 0.25)})
    factors = np.array([1, 2, 3, 4, 5])  # The world's stays.
    np.testing.assert_allclose(env.model.body_mass, factors * original.body_mass)
    np.testing.assert_allclose(env.model.body_inertia, factors[:, None] * original.body_inertia)
    np.testing.assert_allclose(env.model.dof_damping, [0, 0, 0, 0.5, 1, 3])  # In the model: 1 at each joint.
    np.testing.assert_allclose(env.model.geom_friction, 0.25 * original.geom_friction)
    # What follows from them follows: the whole body's mass.
    assert env.model.body_subtreemass[1] == pytest.approx(factors[1:] @ original.body_mass[1:])


def test_twice_the_mass_takes_half_the_speed_from_the_same_force():
    # In the air, pushed along x with 10 N for one time step: Σ m v = 10 N · 0.008 s, whatever the joints do.
    for factor in (1, 2, 0.5):
        env = single("HopperRandParams", reset_noise_scale=0.0)
        env.reset(seed=0, options={"task": scaled_task([factor] * 4, [1] * 3, 1)})
        env.data.qpos[1], env.data.qfrc_applied[0] = 5.0, 10.0
        env.step(np.array([0.3, -0.2, 0.1]))
        mujoco.mj_forward(env.model, env.data)
        mujoco.mj_subtreeVel(env.model, env.data)
        mass = factor * rand_params.Hopper().model.body_mass.sum()
        assert env.data.subtree_linvel[1, 0] == pytest.approx(10 * 0.008 / mass, rel=1e-6)


def test_a_contacts_friction_is_scaled_exactly():
    env = single("HopperRandParams")
    env.reset(seed=0, options={"task": scaled_task([1] * 4, [1] * 3, 0.1)})
    while not env.data.ncon:
        assert not env.step(np.zeros(3))[3]
    # The foot's friction, 2, is larger than the floor's, 1.
    np.testing.assert_allclose(env.data.contact.friction[:, 0], 0.1 * 2)


@rand_params_environments
def test_the_batch_simulates_the_single_environments_models(name):
    many, one = batch(name, 3), single(name)
    for seed in range(2):
        tasks = many.sample_tasks(3, np.random.default_rng(seed))
        many.reset(seed=0, options={"task": tasks})
        for i, task in enumerate(tasks):
            one.reset(options={"task": task})
            model = many._batch.get_model(i)
            for name_of_field in (*SCALED, *DERIVED):
                np.testing.assert_array_equal(getattr(model, name_of_field), getattr(one.model, name_of_field))


@rand_params_environments
def test_task_zero_is_the_original_again_after_any_other(name):
    zero, other = FACTS[name].task, FACTS[name].another_task
    actions = random_actions(name, 8, 2)
    env, fresh = batch(name, 2), batch(name, 2)
    for task in (other, zero):
        env.reset(seed=0, options={"task": task})
    fresh.reset(seed=0, options={"task": zero})
    for action in actions:
        for values, same in zip(env.step(action)[:4], fresh.step(action)[:4], strict=True):
            np.testing.assert_array_equal(values, same)
    one, original = single(name), rand_params.Hopper().model if "Hopper" in name else rand_params.Walker2d().model
    for task in (other, zero):
        one.reset(seed=0, options={"task": task})
    for name_of_field in (*SCALED, *DERIVED):
        np.testing.assert_array_equal(getattr(one.model, name_of_field), getattr(original, name_of_field))
        np.testing.assert_array_equal(getattr(env._batch.get_model(1), name_of_field), getattr(original, name_of_field))


@rand_params_environments
def test_other_dynamics_lead_elsewhere(name):
    env = batch(name, 3)
    env.reset(
        seed=[4, 4, 4], options={"task": np.stack([FACTS[name].task, FACTS[name].another_task, FACTS[name].task])}
    )
    observation = env.step(np.tile(random_actions(name), (3, 1)))[0]
    np.testing.assert_array_equal(observation[0], observation[2])
    assert np.abs(observation[0] - observation[1]).max() > 0.01


def test_a_masked_reset_leaves_the_dynamics_of_the_others_alone():
    env = batch("HopperRandParams", 2)
    tasks = np.stack([scaled_task([2] * 4, [1] * 3, 1), scaled_task([3] * 4, [1] * 3, 1)])
    env.reset(seed=0, options={"task": tasks})
    env.reset(options={"task": np.zeros(8), "reset_mask": np.array([True, False])})
    own = rand_params.Hopper().model.body_mass
    np.testing.assert_allclose(env._batch.get_model(0).body_mass, own)
    np.testing.assert_allclose(env._batch.get_model(1).body_mass[1:], 3 * own[1:])


# --- What is refused ---


@every_environment
@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_bad_calls_are_refused_by_name(name, many):
    env = batch(name, 2) if many else single(name)
    facts = FACTS[name]
    actions = np.zeros((2, facts.action) if many else facts.action)
    with pytest.raises(ValueError, match=r"step needs a running episode, got none; call reset\(\) first"):
        env.step(actions)
    with pytest.raises(
        ValueError, match=r"task must be .* of shape .*, got shape \(3, 3, 3\); sample_tasks\(\) draws tasks"
    ):
        env.reset(options={"task": np.zeros((3, 3, 3))})
    with pytest.raises(ValueError, match=r"task must be finite, got .*nan.*; check where it comes from"):
        env.reset(options={"task": np.full(np.shape(facts.task), math.nan)})
    with pytest.raises(ValueError, match=r"task must be .*, got 'fast'; sample_tasks\(\) draws tasks"):
        env.reset(options={"task": "fast"})
    env.reset(seed=0)
    with pytest.raises(
        ValueError, match=rf"action must have shape \({'2, ' if many else ''}{facts.action},?\), got \(4, 7\)"
    ):
        env.step(np.zeros((4, 7)))
    actions[..., -1] = math.nan
    with pytest.raises(
        ValueError, match=r"action must be finite, got NaN or infinity.*; check the policy's parameters"
    ):
        env.step(actions)


@pytest.mark.parametrize("name", ["HalfCheetahDir", "AntDir"])
def test_a_task_that_is_no_direction_is_refused(name):
    with pytest.raises(ValueError, match=r"task must be a direction, -1 \(backwards\) or 1 \(forwards\), got \[0.5\]"):
        single(name).reset(options={"task": 0.5})
    with pytest.raises(ValueError, match=r"task must be a direction.*, got \[-1.  0.  1.\]"):
        batch(name, 3).reset(options={"task": np.array([1.0, 0.0, -1.0])})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("HalfCheetahVel", {"min_speed": 2.5}, "got min_speed 2.5 and max_speed 2.0; the papers use 0 and 2"),
        ("AntVel", {"min_speed": 2.0, "max_speed": 1.0}, "the slowest first, .*; the papers use 0 and 3"),
        ("AntVel", {"max_speed": math.inf}, "goal speeds must be finite"),
        (
            "HopperRandParams",
            {"spread": 0.5},
            "spread must be finite and at least 1, got 0.5; .* 3.375 in the published",
        ),
        (
            "HopperRandParams",
            {"damping_spread": math.inf},
            "damping_spread must be finite .*, got inf; .* 2.197 in the",
        ),
        (
            "Walker2dRandParams",
            {"reset_noise_scale": -1.0},
            "reset_noise_scale must be finite and not negative, got -1",
        ),
        ("AntDir", {"horizon": 0}, "horizon must be a positive number of steps, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(name, arguments, message):
    for make in (single, partial(batch, num_envs=2)):
        with pytest.raises(ValueError, match=message):
            make(name, **arguments)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_threads_that_are_no_positive_number_are_refused(threads):
    with pytest.raises(ValueError, match=f"threads must be a positive number, got {threads}"):
        batch("HopperRandParams", 2, threads=threads)


def test_new_threads_begin_anew():
    env = batch("HopperRandParams", 2)
    env.reset(seed=0)
    env.threads = 2
    with pytest.raises(ValueError, match="step needs a running episode, got none"):
        env.step(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="reset_mask must choose every environment at the first reset"):
        env.reset(options={"reset_mask": np.array([True, False])})


def test_a_model_of_the_users_own_is_used(tmp_path):
    path = tmp_path / "moon.xml"
    path.write_text((GYMNASIUM_MODELS / "hopper.xml").read_text().replace('timestep="0.002"', 'timestep="0.001"'))
    assert single("HopperRandParams", model_file=str(path)).domain.time_step == pytest.approx(0.004)


@every_environment
def test_a_model_that_does_not_fit_is_refused(name, tmp_path):
    missing, no_xml, pendulum = (
        tmp_path / "missing.xml",
        tmp_path / "text.xml",
        GYMNASIUM_MODELS / "inverted_pendulum.xml",
    )
    no_xml.write_text("a cheetah")
    version = mujoco.mj_versionString()
    with pytest.raises(
        ValueError, match=rf"{missing} does not load: .*; give an XML file that MuJoCo {version} compiles"
    ):
        single(name, model_file=str(missing))
    with pytest.raises(ValueError, match=rf"{no_xml} does not load: .*XML"):
        batch(name, 2, model_file=str(no_xml))
    with pytest.raises(
        ValueError, match=r"inverted_pendulum.xml has 2 positions, 2 velocities and 1 actuators; \w+ needs"
    ):
        single(name, model_file=str(pendulum))


def test_a_model_of_other_parts_is_refused(tmp_path):
    own = (GYMNASIUM_MODELS / "hopper.xml").read_text()
    hat = tmp_path / "hat.xml"
    hat.write_text(own.replace('<body name="thigh"', '<body pos="0 0 .3"><geom size=".05"/></body><body name="thigh"'))
    with pytest.raises(
        ValueError, match=r"hat.xml has 5 bodies and 3 damped joints; tasks of Hopper scale 4 and 3, as in hop"
    ):
        single("HopperRandParams", model_file=str(hat))
    unlimited = tmp_path / "unlimited.xml"
    limits = ['ctrllimited="true" ctrlrange="-1.0 1.0"', 'ctrllimited="false" ctrlrange="0 0"']
    unlimited.write_text(own.replace(*[f'{limit} gear="200.0" joint="leg_joint"' for limit in limits]))
    with pytest.raises(
        ValueError, match=r"unlimited.xml must give every actuator a ctrlrange, got none for actuators \[1\]"
    ):
        single("HopperRandParams", model_file=str(unlimited))


# --- Pictures ---


def run_python(code: str, directory: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run code in a fresh process: which graphics library is used is settled at the first import."""
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-c", code], cwd=directory, env=environment, capture_output=True, text=True)


PROBE = """
import mujoco
context = mujoco.GLContext(64, 64)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_150.value)
"""
PICTURE = """
import gymnasium, numpy as np, metarl_l2f.envs
for name in ("HalfCheetahDir", "AntDir", "HopperRandParams", "Walker2dRandParams"):
    env = gymnasium.make(f"metarl_l2f/{name}-v0", render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    first = env.render()
    assert first.shape == (480, 480, 3) and first.dtype == np.uint8, (first.shape, first.dtype)
    assert first.std() > 5, "a picture of one colour"
    for _ in range(5):
        env.step(np.ones(env.action_space.shape))
    assert (env.render() != first).any(), "nothing moved"
    env.close()
small = gymnasium.make("metarl_l2f/AntDir-v0", render_mode="rgb_array", width=64, height=32).unwrapped
small.reset(seed=0)
assert small.render().shape == (32, 64, 3)
small.close()
"""


def test_pictures_show_the_body_move(tmp_path):
    errors = []
    for backend in ("egl", "osmesa"):
        probe = run_python(PROBE, tmp_path, MUJOCO_GL=backend)
        if probe.returncode == 0:
            picture = run_python(PICTURE, tmp_path, MUJOCO_GL=backend)
            assert picture.returncode == 0, picture.stderr
            return
        errors.append(f"{backend}: {probe.stderr.strip().splitlines()[-1]}")
    pytest.skip(f"no library draws without a screen here: {'; '.join(errors)}")


def test_training_needs_no_graphics_library(tmp_path):
    code = """
import sys
for name in ("glfw", "OpenGL", "imageio"):
    sys.modules[name] = None  # Importing it raises ImportError.
import gymnasium, metarl_l2f
for make in (gymnasium.make, gymnasium.make_vec):
    env = make("metarl_l2f/HalfCheetahDir-v0")
    env.reset(seed=0)
    env.step(env.action_space.sample())
"""
    run = run_python(code, tmp_path, MUJOCO_GL="disable")
    assert run.returncode == 0, run.stderr
    assert list(tmp_path.iterdir()) == []


def test_rendering_without_a_mode_is_refused():
    with pytest.raises(
        ValueError, match="render needs a render_mode, got None; make the environment with render_mode='rgb"
    ):
        single("AntDir").render()
    with pytest.raises(ValueError, match="render_mode must be None, 'rgb_array' or 'human', got 'ansi'"):
        ant.AntDir(render_mode="ansi")
