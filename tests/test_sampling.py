"""Rollouts on environments whose every observation and reward is known."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl_l2f.rl.sampling import Sampler, vectorise


class Counter(gymnasium.Env):
    """Observes (task, steps so far); the reward is the action; the episode ends after `task` steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, fault=None):
        self.task, self.fault = 1.0, fault

    def sample_tasks(self, number, generator):
        return generator.integers(1, 9, size=number).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.task = float((options or {}).get("task", self.task))
        self.steps = 0
        return np.array([self.task, 0.0], np.float32), {}

    def step(self, action):
        self.steps += 1
        observation = np.array([self.task, self.steps], np.float32)
        if self.fault == "nan" and self.task == 3 and self.steps == 2:
            observation[1] = np.nan
        if self.fault == "shape" and self.task == 3:
            observation = np.zeros(3, np.float32)
        reward = np.inf if self.fault == "reward" and self.task == 3 else float(action[0])
        return observation, reward, self.steps >= self.task, False, {}


def constant(value):
    return lambda observations, noise: torch.full((*observations.shape[:-1], 1), value)


def generators(count, seed=0):
    return [np.random.default_rng([seed, task]) for task in range(count)]


def counter_sampler(horizon=4, **kwargs):
    return Sampler(vectorise(lambda: Counter(**kwargs), 4), num_tasks=2, episodes_per_task=2, horizon=horizon)


def test_every_task_gets_its_own_environments_and_episodes_end_on_their_own():
    episodes = counter_sampler().sample(constant(0.5), np.array([2.0, 9.0], np.float32), generators(2))
    assert episodes.observations[:, :, 0, 0].tolist() == [[2.0, 2.0], [9.0, 9.0]]
    assert episodes.mask.tolist() == [[[1, 1, 0, 0]] * 2, [[1, 1, 1, 1]] * 2]  # task 2 ends; task 9 is cut at T = 4
    assert episodes.returns().tolist() == [[1.0, 1.0], [2.0, 2.0]]  # 0.5 a step
    assert episodes.observations[0, 0, :, 1].tolist() == [0.0, 1.0, 0.0, 0.0]  # 0 after the end
    assert episodes.steps() == 12


def test_sampling_stops_when_every_episode_has_ended():
    sampler = counter_sampler(horizon=50)
    episodes = sampler.sample(constant(0.0), np.array([1.0, 2.0], np.float32), generators(2))
    assert sampler.envs.envs[0].unwrapped.steps <= 2
    assert episodes.steps() == 6


def test_a_tasks_noise_depends_on_its_own_generator_only():
    def noisy(observations, noise):
        return noise

    sampler, tasks = counter_sampler(), np.array([4.0, 4.0], np.float32)
    first = sampler.sample(noisy, tasks, generators(2)).actions
    swapped = sampler.sample(noisy, tasks, generators(2)[::-1]).actions
    assert torch.equal(first[0], swapped[1])
    assert not torch.equal(first[0], first[1])


def test_tasks_come_from_the_environment():
    tasks = counter_sampler().sample_tasks(5, np.random.default_rng(0))
    assert tasks.shape == (5,)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan", r"Counter: observation \[ 3. nan\] at step 2 of task 1 \(3.0\), episode 0"),
        ("reward", r"Counter: reward inf at step 0 of task 1 \(3.0\), episode 0"),
    ],
)
def test_numbers_that_are_not_finite_name_environment_task_and_step(fault, message):
    sampler = counter_sampler(fault=fault)
    with pytest.raises(ValueError, match=message):
        sampler.sample(constant(0.0), np.array([4.0, 3.0], np.float32), generators(2))


def test_an_observation_of_the_wrong_shape_names_environment_task_and_step():
    message = r"Counter: the observation at step 1 of task 3.0 has shape \(3,\), expected \(2,\)"
    with pytest.raises(ValueError, match=message):
        counter_sampler(fault="shape").sample(constant(0.0), np.array([4.0, 3.0], np.float32), generators(2))


def test_a_batch_of_the_wrong_shape_names_environment_and_step():
    sampler = Sampler(vectorise("metarl_l2f/Navigation2D-v0", 2), 1, 2, 3)
    reset = sampler.envs.reset
    sampler.envs.reset = lambda **kwargs: (reset(**kwargs)[0][:, :1], {})
    message = r"metarl_l2f/Navigation2D-v0: observations at step 0 have shape \(2, 1\), expected \(2, 2\)"
    with pytest.raises(ValueError, match=message):
        sampler.sample(constant(0.0), np.zeros((1, 2), np.float32), generators(1))


@pytest.mark.parametrize(
    ("tasks", "horizon", "message"),
    [(2, 0, "horizon must be a positive number of steps, got 0"), (3, 4, "3 tasks × 2 episodes need 6 env")],
)
def test_bad_sizes_are_refused(tasks, horizon, message):
    with pytest.raises(ValueError, match=message):
        Sampler(vectorise(Counter, 4), tasks, 2, horizon)


def test_the_batched_environment_gives_the_same_episodes_as_copies_of_the_scalar_one():
    def act(observations, noise):
        return 0.1 * noise - 0.2 * observations

    goals = np.array([[0.3, 0.1], [-0.02, 0.03], [-0.4, 0.5]], np.float32)
    batched = vectorise("metarl_l2f/Navigation2D-v0", 12, varying_start=True)
    copies = vectorise(lambda: gymnasium.make("metarl_l2f/Navigation2D-v0", varying_start=True), 12)
    assert isinstance(copies, gymnasium.vector.SyncVectorEnv)
    assert not isinstance(batched, gymnasium.vector.SyncVectorEnv)
    first, second = (Sampler(e, 3, 4, 100).sample(act, goals, generators(3)) for e in (batched, copies))
    for ours, theirs in zip(first, second, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
    assert first.mask.min() == 0, "no episode ended early: the comparison misses that case"
