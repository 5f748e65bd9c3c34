"""Rollouts on environments whose every observation and reward is known."""

import sys
from functools import partial

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl_l2f.envs.navigation import Navigation2DVector
from metarl_l2f.rl.copies import Copies
from metarl_l2f.rl.sampling import Sampler
from metarl_l2f.rl.vectorise import name_of, vectorise


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
    message = r"Counter: the observation at step 1 of task 3.0 has shape \(3,\) and dtype float32, expected \(2,\)"
    with pytest.raises(ValueError, match=message):
        counter_sampler(fault="shape").sample(constant(0.0), np.array([4.0, 3.0], np.float32), generators(2))


def test_a_batch_of_the_wrong_shape_names_environment_and_step():
    sampler = Sampler(vectorise("metarl_l2f/Navigation2D-v0", 2), 1, 2, 3)
    reset = sampler.envs.reset
    sampler.envs.reset = lambda **kwargs: (reset(**kwargs)[0][:, :1], {})
    message = r"metarl_l2f/Navigation2D-v0: observations at step 0 have shape \(2, 1\) and dtype .*expected.* \(2, 2\)"
    with pytest.raises(ValueError, match=message):
        sampler.sample(constant(0.0), np.zeros((1, 2), np.float32), generators(1))


@pytest.mark.parametrize(
    ("tasks", "horizon", "message"),
    [(2, 0, "horizon must be a whole number of steps, 1 or more, got 0"), (3, 4, "3 tasks × 2 episodes need 6 env")],
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
    assert isinstance(copies, Copies)
    assert not isinstance(batched, Copies)
    first, second = (Sampler(e, 3, 4, 100).sample(act, goals, generators(3)) for e in (batched, copies))
    for ours, theirs in zip(first, second, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
    assert first.mask.min() == 0, "no episode ended early: the comparison misses that case"


def test_episodes_of_any_length_are_those_of_a_plain_loop():
    tasks, n, b, t_max = np.array([1.0, 3.0, 9.0], np.float32), 3, 2, 5  # lengths 1, 3, and cut at 5

    def act(observations, noise):
        return 0.1 * noise + 0.01 * observations[..., 1:]

    episodes = Sampler(vectorise(Counter, n * b), n, b, t_max).sample(act, tasks, generators(n))
    for task in range(n):
        generator = generators(n)[task]
        seeds = generator.integers(2**31, size=b)
        noise = generator.standard_normal((t_max, b, 1), dtype=np.float32)
        for episode in range(b):
            env, rows = Counter(), []
            observation, _ = env.reset(seed=int(seeds[episode]), options={"task": tasks[task]})
            ended = False
            while not ended and len(rows) < t_max:
                action = 0.1 * noise[len(rows), episode] + np.float32(0.01) * observation[1:]
                following, reward, ended, _, _ = env.step(action)
                rows.append((*observation, *action, reward, 1.0))
                observation = following
            expected = torch.zeros(t_max, 5)
            expected[: len(rows)] = torch.tensor(np.array(rows), dtype=torch.float32)
            parts = (episodes.observations, episodes.actions, episodes.rewards[..., None], episodes.mask[..., None])
            found = torch.cat([part[task, episode] for part in parts], -1)
            torch.testing.assert_close(found, expected)
    assert episodes.mask.sum(-1).tolist() == [[1, 1], [3, 3], [5, 5]]


def test_a_finished_environment_is_not_stepped_on():
    sampler = counter_sampler(horizon=6)
    sampler.sample(constant(0.0), np.array([2.0, 9.0], np.float32), generators(2))
    assert [env.steps for env in sampler.envs.envs] == [2, 2, 6, 6]


class Switches(gymnasium.Env):
    """Observes a dictionary; the three actions 5, 6, 7 are rewarded with themselves. Tasks are dictionaries."""

    observation_space = spaces.Dict({"place": spaces.Box(-1, 1, (2,), np.float32), "room": spaces.Discrete(3)})
    action_space = spaces.Discrete(3, start=5)

    def sample_tasks(self, number, generator):
        return [{"room": int(room)} for room in generator.integers(3, size=number)]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.room = options["task"]["room"]
        return {"place": np.array([0.5, -0.5], np.float32), "room": self.room}, {}

    def step(self, action):
        assert self.action_space.contains(action)
        return {"place": np.zeros(2, np.float32), "room": self.room}, float(action), False, False, {}


def test_discrete_actions_are_one_hot_rows_and_dictionaries_are_flattened():
    sampler = Sampler(vectorise(Switches, 4), 2, 2, 2)
    assert (sampler.discrete, sampler.action_size, sampler.observation_size) == (True, 3, 2 + 3)
    one_hot = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]).expand(2, 2, 3)  # actions 7 and 5, for both tasks
    episodes = sampler.sample(lambda observations, noise: one_hot, [{"room": 1}, {"room": 2}], generators(2))
    assert episodes.rewards.tolist() == [[[7.0, 7.0], [5.0, 5.0]]] * 2
    assert torch.equal(episodes.actions[:, :, 0], one_hot)
    assert episodes.observations[0, 0, 0].tolist() == [0.5, -0.5, 0.0, 1.0, 0.0]  # place, and room 1 of 3
    assert episodes.observations[1, 0, 1].tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]


def test_box_actions_are_not_discrete():
    assert not counter_sampler().discrete


def test_gymnasiums_own_environments_run_without_their_batched_versions():
    # CartPole-v1 has a vector_entry_point, which knows no tasks and restarts finished episodes.
    sampler = Sampler(vectorise("CartPole-v1", 2), 1, 2, 50)
    assert isinstance(sampler.envs, Copies)
    left = torch.tensor([1.0, 0.0])
    episodes = sampler.sample(lambda observations, noise: left.expand(1, 2, 2), [None], generators(1))
    assert 5 < episodes.mask[0, 0].sum() < 15  # always pushing left, the pole soon falls
    with pytest.raises(ValueError, match=r"CartPole-v1 has no sample_tasks\(number, generator\)"):
        sampler.sample_tasks(1, np.random.default_rng(0))


@pytest.fixture
def registered():
    """An id that only this process knows, of an environment with tasks and an argument."""
    gymnasium.register("Counter-v0", entry_point=Counter, max_episode_steps=3)
    yield "Counter-v0"
    del gymnasium.registry["Counter-v0"]


@pytest.mark.parametrize(
    "source",
    [
        gymnasium.spec,
        lambda name: partial(gymnasium.make, name),
        lambda name: partial(gymnasium.make, id=name),
        lambda name: partial(gymnasium.make, name, fault="nan"),
        lambda name: partial(gymnasium.make, gymnasium.spec(name), disable_env_checker=True),
        lambda name: partial(gymnasium.make_vec, name),
    ],
    ids=["spec", "make(id)", "make(id=id)", "arguments", "make(spec)", "make_vec(id)"],
)
def test_whatever_names_an_id_is_as_good_as_the_id(source, registered):
    assert_steps_as_registered(vectorise(source(registered), 2), registered)


def test_workers_know_an_id_that_only_this_process_has_registered(registered):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # They need not import this file, and torch with it.
    try:
        assert_steps_as_registered(vectorise(partial(gymnasium.make, id=registered), 2, workers=1), registered)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def assert_steps_as_registered(envs, registered):
    assert name_of(envs) == registered
    assert envs.reset(seed=0, options={"task": [2.0, 9.0]})[0].tolist() == [[2.0, 0.0], [9.0, 0.0]]
    for _ in range(3):
        *_, terminated, truncated, _ = envs.step(np.zeros((2, 1), np.float32))
    assert terminated.tolist() == [True, False] and truncated.tolist() == [False, True]  # The id's limit of 3 steps.
    envs.close()


def test_arguments_of_a_partial_and_of_the_caller_come_together():
    made = partial(gymnasium.make, "metarl_l2f/Navigation2D-v0", horizon=7, goal_range=0.2)
    envs = vectorise(made, 2, goal_range=0.3)
    assert isinstance(envs.unwrapped, Navigation2DVector)  # The batched version, as for the id.
    assert (envs.unwrapped.domain.horizon, envs.unwrapped.domain.goal_range) == (7, 0.3)
    # A limit of gymnasium's is a wrapper, which the batched version would not have.
    assert isinstance(vectorise(partial(made, max_episode_steps=3), 2), Copies)
    assert isinstance(vectorise("metarl_l2f:metarl_l2f/Navigation2D-v0", 2).unwrapped, Navigation2DVector)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (partial(gymnasium.make), TypeError, "makes no environment: missing a required argument: 'id'; give the id"),
        (partial(gymnasium.make_vec, "CartPole-v1", 4), ValueError, "num_envs of .* cannot be used here"),
    ],
)
def test_a_call_of_gymnasiums_that_makes_no_copies_is_named(source, error, message):
    with pytest.raises(error, match=message):
        vectorise(source, 2)


def test_a_wrapper_may_bring_the_tasks():
    class WithTasks(gymnasium.Wrapper):
        def sample_tasks(self, number, generator):
            return generator.uniform(5, 15, number)

        def reset(self, *, seed=None, options=None):
            self.unwrapped.g = options["task"]
            return self.env.reset(seed=seed)

    sampler = Sampler(vectorise(lambda: WithTasks(gymnasium.make("Pendulum-v1")), 2), 2, 1, 3)
    tasks = sampler.sample_tasks(2, np.random.default_rng(0))
    sampler.sample(constant(0.0), tasks, generators(2))
    assert [env.unwrapped.g for env in sampler.envs.envs] == tasks.tolist()


def test_a_task_of_none_leaves_an_environment_the_one_it_has():
    env = vectorise(Counter, 2)
    env.reset(options={"task": [5.0, 6.0]})
    assert env.reset(options={"task": [None, 7.0]})[0][:, 0].tolist() == [5.0, 7.0]


def test_stored_actions_do_not_see_what_the_environment_does_to_them():
    class Scaling(Counter):
        def step(self, action):
            action *= 10
            return super().step(action)

    episodes = Sampler(vectorise(Scaling, 1), 1, 1, 1).sample(constant(0.5), np.array([2.0]), generators(1))
    assert (episodes.actions.item(), episodes.rewards.item()) == (0.5, 5.0)


def test_actions_that_are_not_finite_name_task_and_step_before_any_step():
    def act(observations, noise):
        actions = torch.zeros(2, 2, 1)
        actions[1, 1] = torch.nan if observations[1, 1, 1] == 2 else 0.0
        return actions

    sampler = counter_sampler()
    message = r"Counter: action \[nan\] at step 2 of task 1 \(9.0\), episode 1; actions are not finite: the policy's"
    with pytest.raises(ValueError, match=message):
        sampler.sample(act, np.array([9.0, 9.0], np.float32), generators(2))
    assert [env.steps for env in sampler.envs.envs] == [2] * 4


def test_an_exception_keeps_its_type_and_names_environment_step_and_task():
    class Fragile(Counter):
        def step(self, action):
            return super().step(action if self.task == 2 or self.steps < 1 else [])

    with pytest.raises(IndexError) as caught:
        Sampler(vectorise(Fragile, 4), 2, 2, 4).sample(constant(0.0), np.array([2.0, 3.0]), generators(2))
    assert caught.value.__notes__ == ["Fragile: raised at step 1, task 3.0, environment 2"]


def test_an_observation_that_its_space_cannot_hold_is_refused():
    class Halves(Counter):
        observation_space = spaces.Box(0, 9, (2,), np.int64)

    with pytest.raises(ValueError, match=r"dtype float32, expected .* and int64"):  # 0.5 would become 0
        vectorise(Halves, 1).reset(options={"task": [3.0]})


class NoOptions(Counter):
    def reset(self, seed=None):
        return super().reset(seed=seed)


SINGLE = Counter()


@pytest.mark.parametrize(
    ("env", "error", "message"),
    [
        (NoOptions, ValueError, "NoOptions: NoOptions.reset takes no options, but tasks come as reset"),
        (lambda: gymnasium.Wrapper(NoOptions()), ValueError, "NoOptions: NoOptions.reset takes no options"),
        (lambda: SINGLE, ValueError, "Counter: the function that makes the environments returned the same"),
        (Counter(), TypeError, "env must be a registered id, a class, or a function that returns an environment"),
        (dict, TypeError, "dict must return a gymnasium.Env, got {}"),
    ],
)
def test_what_makes_no_usable_environments_is_refused(env, error, message):
    with pytest.raises(error, match=message):
        vectorise(env, 2)


@pytest.mark.parametrize(
    ("role", "space", "message"),
    [
        ("action_space", spaces.MultiDiscrete([2, 3]), r"Odd: the action space must be a Box or Discrete, got Multi"),
        ("observation_space", spaces.Sequence(spaces.Discrete(2)), r"Odd: the observation space Sequence\(.*flattened"),
    ],
)
def test_spaces_that_no_policy_reads_or_writes_are_refused(role, space, message):
    with pytest.raises(ValueError, match=message):
        Sampler(vectorise(type("Odd", (Counter,), {role: space}), 1), 1, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs must be a whole number, 1 or more, got 0"),
        ({"workers": -1}, "workers must be a whole number, 0 or more, got -1"),
        ({"timeout": 0.0}, "timeout must be positive and finite, got 0.0 seconds"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        vectorise(Counter, **{"num_envs": 2} | arguments)


def test_copies_with_different_spaces_are_refused():
    sizes = iter([1, 2])

    def make():
        env = Counter()
        env.action_space = spaces.Box(-1, 1, (next(sizes),), np.float32)
        return env

    with pytest.raises(ValueError, match=r"Counter: environment 1 has action_space Box.*all copies share one policy"):
        vectorise(make, 2)


def test_the_number_of_tasks_must_be_that_of_the_sampler():
    with pytest.raises(ValueError, match="Counter: tasks must be 2 of them, got 3"):
        counter_sampler().sample(constant(0.0), np.ones(3), generators(2))


def test_threads_reach_a_batched_version_that_has_them(monkeypatch):
    batched = type(vectorise("metarl_l2f/Navigation2D-v0", 1))
    monkeypatch.setattr(batched, "threads", 1, raising=False)
    assert vectorise("metarl_l2f/Navigation2D-v0", 1, threads=3).threads == 3
