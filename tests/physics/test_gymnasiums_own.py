"""Starts, dynamics, rewards and observations against gymnasium's own environments and MuJoCo's own numbers."""

import gymnasium
import mujoco
import numpy as np
import pytest

from metarl_l2f.envs import ant

from .bodies import FACTS, every_environment, random_actions, single


@pytest.fixture
def gymnasiums_own(tmp_path, monkeypatch):
    """gymnasium's environments, without the notes that MuJoCo prints, and writes to a file, about their models."""
    monkeypatch.chdir(tmp_path)
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda text: None)
    yield lambda env_id, **arguments: gymnasium.make(env_id, disable_env_checker=True, **arguments).unwrapped
    mujoco.set_mju_user_warning(previous)


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
