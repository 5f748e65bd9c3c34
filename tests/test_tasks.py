"""Tasks reach every episode, each its own copy: in this library's interface, in others', in workers and in batches."""

import logging
import random
import sys

import cloudpickle
import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.vector.utils import batch_space

from metarl_l2f import MetaRL, MetaRLSettings, vectorise
from metarl_l2f.rl.copies import Options, drawn_tasks
from metarl_l2f.rl.sampling import Sampler, listed

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Workers need not import this file, and torch with it.


class Line(gymnasium.Env):
    """Walks on a line; an observation shows the goal, so that episodes say which task they are of."""

    observation_space, action_space = Box(-99, 99, (1,), np.float32), Box(-1, 1, (1,), np.float32)
    goal = 0.0

    def seen(self):
        return np.full(1, self.goal, np.float32)

    def sample_tasks(self, number, generator):
        return list(generator.uniform(-5, 5, number))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.seen(), {}

    def step(self, action):
        return self.seen(), -abs(float(self.goal)), False, False, {}


class Settable(Line):
    """RLlib's and learn2learn's interface; tasks from NumPy's global random numbers."""

    def sample_tasks(self, number):
        return list(np.random.uniform(-5, 5, number))

    def set_task(self, task):
        self.goal = task


class Resettable(Line):
    """pytorch-maml-rl's interface; tasks from the environment's own random numbers."""

    def sample_tasks(self, num_tasks):
        return [{"goal": goal} for goal in self.np_random.uniform(-5, 5, num_tasks)]

    def reset_task(self, task):
        self.goal = task["goal"]


class Tossed(Settable):
    def sample_tasks(self, number):
        return [random.uniform(-5, 5) for _ in range(number)]


class Halfway(Settable):
    """The library's sample_tasks, others' set_task, below a wrapper of gymnasium's."""

    def sample_tasks(self, number, generator):
        return Line.sample_tasks(self, number, generator)


def run_on(env, **how):
    return MetaRL(env, MetaRLSettings("maml", tasks_per_batch=3, episodes_per_task=2, horizon=2), **how)


def goals_seen(run, iteration=1):
    """By task, the goals that episodes before adaptation show, in training."""
    sampler, seen = run.sampler, []
    sample = sampler.sample
    sampler.sample = lambda *given: seen.append(sample(*given)) or seen[-1]
    run.iterate(iteration)
    sampler.sample = sample
    return seen[0].observations[..., 0].flatten(1)


@pytest.mark.parametrize(
    "env",
    [Settable, Resettable, Tossed, Halfway, lambda: gymnasium.wrappers.TimeLimit(Halfway(), 9)],
    ids=["set_task", "reset_task", "python's random", "halfway", "wrapped"],
)
def test_the_task_interfaces_of_other_libraries_are_taken_as_they_are(env, caplog):
    numpys, python = np.random.get_state()[1].copy(), random.getstate()
    seen = goals_seen(run_on(env))
    assert (seen == seen[:, :1]).all() and len(set(seen[:, 0].tolist())) == 3  # Three tasks, each to all its episodes.
    assert np.array_equal(seen, goals_seen(run_on(env)))  # Another run of the same seed meets the same tasks, …
    assert not np.array_equal(seen, goals_seen(run_on(env), iteration=2))  # … another iteration others, …
    assert (
        np.array_equal(np.random.get_state()[1], numpys) and random.getstate() == python
    )  # … and nobody else notices.
    assert "same task" not in caplog.text


def test_workers_take_those_interfaces_too():
    run = run_on(Resettable, workers=1)
    assert np.array_equal(goals_seen(run), goals_seen(run_on(Resettable)))
    run.close()


def test_tasks_that_cannot_be_drawn_again_are_refused():
    class Endless(Settable):
        drawn = 0

        def sample_tasks(self, number):
            type(self).drawn += number
            return [float(self.drawn + i) for i in range(number)]

    with pytest.raises(
        ValueError, match=r"Endless: sample_tasks\(3\) drew other tasks .* sample_tasks\(self, number, g"
    ):
        run_on(Endless).iterate(1)


def test_a_batched_environment_may_draw_without_a_generator():
    env = Resettable()
    first, again = (drawn_tasks("it", env.sample_tasks, env, 3, np.random.default_rng(5)) for _ in range(2))
    assert first == again and len({task["goal"] for task in first}) == 3


def test_a_missing_argument_inside_sample_tasks_is_the_environments_own_error():
    class Broken(Line):
        def sample_tasks(self, number, generator):
            return generator.uniform(number, missing=1)

    with pytest.raises(TypeError, match="missing"):
        run_on(Broken).iterate(1)


# --- Tasks that do not arrive ---


def test_a_reset_that_never_looks_at_its_task_is_named_once(caplog):
    run = run_on(Line)
    run.iterate(1)
    run.iterate(2)
    (warning,) = [record.getMessage() for record in caplog.records if "options" in record.getMessage()]
    assert warning.startswith(
        'Line: reset does not look at options["task"], and there is no set_task: every episode ma'
    )


@pytest.mark.parametrize(
    "look",
    [
        lambda options: options["task"],
        lambda options: options.get("task"),
        lambda options: options.pop("task"),
        lambda options: "task" in options,
        lambda options: dict(**options),
        lambda options: {**options},
        lambda options: dict(options),
        lambda options: {} | options,
        lambda options: options | {},
        lambda options: options.copy(),
        lambda options: list(options.values()),
        lambda options: sorted(options.items()),
    ],
)
def test_every_way_to_look_at_options_counts(look):
    options = Options({"speed": 1}, task=2)
    assert len(options) == 2 and options["speed"] == 1 and not options.looked
    look(options)
    assert options.looked


# --- Each episode has its own ---


class Spoiler(Line):
    """Changes its task in place, at reset and at every step."""

    def sample_tasks(self, number, generator):
        return [{"goal": [float(goal)]} for goal in generator.uniform(1, 5, number)]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.task = options["task"]
        self.task["goal"][0] += 1
        self.goal = self.task["goal"][0]
        return self.seen(), {}

    def step(self, action):
        self.task["goal"][0] *= 2
        self.goal = self.task["goal"][0]
        return super().step(action)


class ArraySpoiler(Spoiler):
    """The same with rows of an array."""

    def sample_tasks(self, number, generator):
        return generator.uniform(1, 5, (number, 1))

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed, options={"task": {"goal": options["task"]}})


class SpoilerBatch(gymnasium.vector.VectorEnv):
    """Many of `Spoiler` in one object, as a vector_entry_point."""

    def __init__(self, num_envs):
        self.num_envs, self.metadata = num_envs, {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}
        self.single_observation_space, self.single_action_space = Line.observation_space, Line.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def sample_tasks(self, number, generator):
        return Spoiler().sample_tasks(number, generator)

    def _all(self, change):
        for task in self.tasks:
            task["goal"][0] = change(task["goal"][0])
        return np.array([task["goal"] for task in self.tasks], np.float32)

    def reset(self, *, seed=None, options=None):
        self.tasks = options["task"]
        return self._all(lambda goal: goal + 1), {}

    def step(self, actions):
        seen, no = self._all(lambda goal: goal * 2), np.zeros(self.num_envs, bool)
        return seen, -seen[:, 0].astype(float), no, no, {}


def goal_of(task):
    return task["goal"][0] if isinstance(task, dict) else task[0]


@pytest.mark.parametrize(("env", "counts"), [(Spoiler, (0, 1, 2)), (ArraySpoiler, (0, 2))])
def test_tasks_that_environments_change_are_the_same_for_any_number_of_workers(env, counts):
    tasks = env().sample_tasks(3, np.random.default_rng(0))
    goals = [goal_of(task) for task in tasks]
    # g + 1 at reset, then twice that, in both episodes of a task, however often it is played.
    expected = np.repeat(np.array([[[g + 1, 2 * g + 2]] for g in goals], np.float32), 2, 1)
    for workers in counts:
        envs = vectorise(env, 6, workers=workers)
        sampler = Sampler(envs, 3, 2, 2)
        for _ in range(2):
            episodes = sampler.sample(lambda observations, noise: noise, tasks, [np.random.default_rng(0)] * 3)
            assert np.array_equal(episodes.observations[..., 0], expected)
        envs.reset(options={"task": [tasks[0]] * 6})  # One object for all, without a sampler between.
        assert np.array_equal(envs.step(np.zeros((6, 1), np.float32))[0], np.full((6, 1), expected[0, 0, 1]))
        envs.close()
    assert [goal_of(task) for task in tasks] == goals  # The caller's, too.


def test_adapting_to_a_task_leaves_it_alone():
    task = {"goal": [3.0]}
    adapted = run_on(Spoiler).adapt(task=task, steps=1, episodes=2)
    assert adapted.returns == [-24.0, -24.0] and task == {"goal": [3.0]}  # 3 + 1, then −2 · 4 − 2 · 8.


def test_a_batched_environment_that_changes_its_tasks_gives_the_same():
    gymnasium.register("Spoiler-v0", entry_point=Spoiler, vector_entry_point=SpoilerBatch)
    try:
        batched, single = run_on("Spoiler-v0"), run_on(Spoiler)
        assert isinstance(batched.sampler.envs.unwrapped, SpoilerBatch)
        assert batched.iterate(1)["return/step_1"] == single.iterate(1)["return/step_1"]
    finally:
        del gymnasium.registry["Spoiler-v0"]


def test_a_task_that_cannot_be_copied_is_named():
    envs = vectorise(Line, 1)
    with pytest.raises(TypeError, match=r"Line: task <generator .* cannot be copied \(TypeError.*let tasks be data"):
        envs.reset(options={"task": [(number for number in range(3))]})


# --- How tasks are listed ---


def test_a_dictionary_of_arrays_is_read_row_by_row():
    class Named(Line):
        def sample_tasks(self, number, generator):
            return {"goal": generator.uniform(-5, 5, number), "colour": np.array(["red"] * number)}

        def reset(self, *, seed=None, options=None):
            assert options["task"].keys() == {"goal", "colour"}
            self.goal = options["task"]["goal"]
            return super().reset(seed=seed)

    run = run_on(Named)
    assert len(set(goals_seen(run)[:, 0].tolist())) == 3
    found = run.evaluate({"goal": np.array([1.0, 2.0]), "colour": np.array(["a", "b"])}, episodes=2, steps=1, seed=0)
    assert found.episodes[0].observations[:, :, 0, 0].tolist() == [[1.0, 1.0], [2.0, 2.0]]


@pytest.mark.parametrize(
    ("tasks", "found"),
    [
        ({1.0, 2.0}, "a set"),
        ({"a": np.zeros(2), "b": np.zeros(3)}, r"a dictionary of arrays of \{'a': 2, 'b': 3\} rows"),
        ({"a": 1.0, "b": 2.0}, "a dict"),
    ],
)
def test_tasks_without_an_order_are_named(tasks, found):
    with pytest.raises(ValueError, match=rf"it: tasks must be an array with one row a task, .* got {found}"):
        listed(tasks, "it")


# --- Seeds and statistics ---


def test_numpys_integers_are_seeds():
    class Drawn(Line):
        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.goal = self.np_random.uniform()
            return self.seen(), {}

    first = vectorise(Drawn, 2).reset(seed=7)[0]
    assert np.array_equal(vectorise(Drawn, 2).reset(seed=np.int64(7))[0], first)
    assert np.array_equal(vectorise(Drawn, 2).reset(seed=np.array([7, 8]))[0], first)


def normalised():
    return gymnasium.wrappers.NormalizeReward(gymnasium.wrappers.NormalizeObservation(Halfway()))


def test_running_statistics_are_held_so_that_a_state_continues_exactly(caplog):
    caplog.set_level(logging.WARNING)
    whole, first, resumed = run_on(normalised), run_on(normalised), run_on(normalised)
    assert caplog.text.count("the running statistics of NormalizeObservation (obs_rms) are held") == 3  # One a run.
    for iteration in (1, 2):
        whole.iterate(iteration)
    first.iterate(1)
    resumed.load_state_dict(first.state_dict())
    assert whole.iterate(3)["return/step_1"] == (resumed.iterate(2), resumed.iterate(3))[1]["return/step_1"]
    assert all(env.get_wrapper_attr("obs_rms").mean == 0 for env in whole.sampler.envs.envs)


def test_statistics_that_were_set_before_are_kept():
    def scaled():
        env = gymnasium.wrappers.NormalizeObservation(Halfway())
        env.obs_rms.mean[:], env.obs_rms.var[:] = 1.0, 4.0
        return env

    seen = run_on(scaled).evaluate([5.0], episodes=1, steps=1, seed=0).episodes[0].observations
    assert seen.flatten().tolist() == pytest.approx([2.0, 2.0])  # (5 − 1) / √4


def test_statistics_that_cannot_be_held_are_refused_in_environments_and_in_vectors():
    class Own(gymnasium.Wrapper):
        def __init__(self):
            super().__init__(Halfway())
            self.ret_rms = gymnasium.wrappers.utils.RunningMeanStd()

    class OwnVector(gymnasium.vector.VectorWrapper):
        obs_rms: object

    with pytest.raises(
        ValueError, match=r"Halfway: the running statistics of Own \(ret_rms\) cannot be used: .* Scale"
    ):
        run_on(Own)
    vector = OwnVector(vectorise(Halfway, 2))
    Sampler(vector, 1, 2, 3)
    vector.obs_rms = gymnasium.wrappers.utils.RunningMeanStd()
    with pytest.raises(ValueError, match=r"Halfway: the running statistics of OwnVector \(obs_rms\) cannot be used"):
        Sampler(vector, 1, 2, 3)
