"""Environments that fail, at any step: the error says which, where and at what; nothing that was learned is touched."""

import time

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl_l2f.rl.experiment import MetaRL
from metarl_l2f.rl.settings import MetaRLSettings, PolicyNetwork
from metarl_l2f.rl.workers import WorkerError

HORIZON = 6
SETTINGS = MetaRLSettings(tasks_per_batch=2, episodes_per_task=2, horizon=HORIZON, policy=PolicyNetwork((3,)))


def local_class():
    """A class that workers take along; importing this file would take them seconds."""

    class Faulty(gymnasium.Env):
        """Walks about, and in one call of step, counted over all episodes, returns something else in one part."""

        observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        action_space = spaces.Box(-1, 1, (1,), np.float32)

        def __init__(self, part=None, value=None, at=1):
            self.part, self.value, self.at, self.calls = part, value, at, 0

        def sample_tasks(self, number, generator):
            return self.value if self.part == "tasks" else generator.uniform(size=number)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            observation = self.np_random.normal(size=2).astype(np.float32)
            return self.value if self.part == "reset" else (observation, {})

        def step(self, action):
            self.calls += 1
            answer = [self.np_random.normal(size=2).astype(np.float32), float(action[0]), False, False, {}]
            if self.calls == self.at:
                if self.part == "raise":
                    raise self.value
                if self.part == "hang":
                    time.sleep(600)
                if self.part == "step":
                    return self.value
                names = ("observation", "reward", "terminated", "truncated", "info")
                answer[names.index(self.part)] = self.value
            return tuple(answer)

    return Faulty


Faulty = local_class()

NOT_FINITE = "environments must return finite numbers that float32 holds"
BAD_OBSERVATION = r"the observation at step \d+ of task .* has shape .* and dtype .*, expected \(2,\) and float32"
BAD = [
    *(("observation", value, NOT_FINITE) for value in ([np.nan, 0.0], [0.0, np.inf], [-np.inf, 0.0], [1e300, 0.0])),
    *(("observation", value, BAD_OBSERVATION) for value in (None, "xy", 0.0, [0.0], np.zeros((2, 2)), {"a": 1})),
    *(("observation", value, BAD_OBSERVATION) for value in ([0, "x"], [[1], [1, 2]], np.zeros(2, complex), [None, 1])),
    *(("reward", value, NOT_FINITE) for value in (np.nan, np.inf, -np.inf, 1e39, np.float64(-1e300))),
    *(("reward", value, "reward must be one number, got")
      for value in (None, "1.5", [1.0], np.zeros(1), 1j, {}, 10**400)),
    *((end, value, f"{end} must be True or False, got") for end in ("terminated", "truncated")
      for value in (None, "", "no", np.nan, 0.5, 2, [True], np.zeros(2, bool))),
    *(("step", value, r"Faulty must return the tuple \(observation, reward, terminated, truncated, info\), got")
      for value in (None, 1, "abcde", (np.zeros(2), 0.0, False, {}), np.zeros(5))),
    *(("reset", value, r"Faulty must return the tuple \(observation, info\), got")
      for value in (None, np.zeros(2, np.float32), (np.zeros(2),), "ab")),
    *(("tasks", value, "Faulty: tasks must be 2 of them, got") for value in (None, 5, [], [0.5], np.zeros(3))),
    ("raise", ZeroDivisionError("as ordered"), "as ordered"),
    ("raise", MemoryError("none left"), "none left"),
    ("raise", StopIteration("ended"), "ended"),
]  # fmt: skip
"""Part, value, and what the error says of it."""

GOOD = [
    *(
        ("observation", value)
        for value in ([0, 1], np.ones(2), np.array([1, 2]), np.array([True, False]), torch.ones(2))
    ),
    *(
        ("reward", value)
        for value in (1, True, np.float32(2), np.int64(3), np.bool_(True), np.array(1.5), torch.tensor(1.0))
    ),
    *((end, value) for end in ("terminated", "truncated") for value in (1, 0, np.bool_(True), np.array(True), 1.0)),
    ("info", None),
]


def learned(run):
    return torch.cat([p.detach().flatten() for p in run.learner.parameters()])


def fails(run, error, message):
    """One iteration fails with the error; what was learned stays."""
    before = learned(run)
    with pytest.raises(error, match=message) as caught:
        for iteration in (1, 2, 3):
            run.iterate(iteration)
            before = learned(run)
    assert torch.equal(learned(run), before)
    assert before.isfinite().all()
    return "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


# In three iterations each copy takes 3 · 2 · HORIZON steps.
@pytest.mark.parametrize(("part", "value", "message"), BAD, ids=lambda value: repr(value)[:30])
def test_a_fault_at_a_random_step_is_named_and_changes_nothing(part, value, message, amount, record_property):
    dice = np.random.default_rng([len(repr(value)), *part.encode()])
    times = amount(1, 5)
    for _ in range(times):
        at = int(
            dice.integers(6) * HORIZON + dice.integers(1, HORIZON)
        )  # Nobody looks at an episode's last observation.
        run = MetaRL(Faulty, SETTINGS, {"part": part, "value": value, "at": at})
        error = type(value) if part == "raise" else ValueError
        text = fails(run, error, message)
        assert "Faulty" in text
        assert part == "tasks" or ("task " in text and ("step" in text or "reset" in text))
        run.close()


@pytest.mark.parametrize(("part", "value"), GOOD, ids=lambda value: repr(value)[:30])
def test_what_means_the_same_is_taken(part, value):
    run = MetaRL(Faulty, SETTINGS, {"part": part, "value": value, "at": 2})
    assert np.isfinite(run.iterate(1)["return/step_1"])
    run.close()


@pytest.mark.parametrize("part", ["observation", "reward", "raise", "hang"])
def test_a_fault_in_a_worker_is_named_and_changes_nothing(part, amount, record_property):
    values = {"observation": np.zeros(3), "reward": "x", "raise": ZeroDivisionError("as ordered"), "hang": None}
    messages = {"observation": "has shape", "reward": "one number", "raise": "as ordered", "hang": "no answer in 2 s"}
    dice = np.random.default_rng(0)
    for _ in range(amount(1, 3)):
        arguments = {"part": part, "value": values[part], "at": int(dice.integers(1, 2 * HORIZON))}
        run = MetaRL(Faulty, SETTINGS, arguments, workers=2)
        run.sampler.envs.timeout = 2.0 if part == "hang" else 60.0  # building them may take its time
        assert "worker" in fails(run, WorkerError, messages[part])
        run.close()


class FaultyBatch(gymnasium.vector.VectorEnv):
    """A batched environment of one's own that returns something else in one part."""

    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}  # noqa: RUF012
    observation_space = action_space = spaces.Box(-1, 1, (4, 1), np.float32)
    single_observation_space = single_action_space = spaces.Box(-1, 1, (1,), np.float32)
    num_envs = 4

    def __init__(self, num_envs, part, value):
        self.part, self.value = part, value

    def sample_tasks(self, number, generator):
        return np.zeros(number)

    def reset(self, *, seed=None, options=None):
        return self.value if self.part == "reset" else (np.zeros((4, 1), np.float32), {})

    def step(self, actions):
        if self.part == "step":
            return self.value
        good = {"observation": np.zeros((4, 1), np.float32), "reward": np.zeros(4)}
        ends = {"terminated": np.zeros(4, bool), "truncated": np.zeros(4, bool)}
        return tuple((good | ends | {"info": {}} | {self.part: self.value}).values())


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("observation", np.zeros((4, 2)), r"observations at step 1 have shape \(4, 2\)"),
        ("observation", [["a"]] * 4, "observations at step 1 have shape .* and dtype <U1"),
        ("observation", np.full((4, 1), 1e300), NOT_FINITE),
        ("reward", np.zeros((4, 1)), r"rewards at step 0 have shape \(4, 1\)"),
        ("reward", None, "rewards at step 0 have shape .* and dtype object"),
        ("reward", np.array([0, 0, 0, np.nan]), "reward nan at step 0 of task 1 .*, episode 1"),
        ("terminated", np.zeros(3, bool), r"terminated flags at step 0 have shape \(3,\)"),
        ("truncated", None, "truncated flags at step 0 have shape .* and dtype object"),
        ("step", None, "Batch-v0 must return the tuple"),
        ("reset", np.zeros((4, 1)), "Batch-v0 must return the tuple"),
    ],
)
def test_a_fault_of_a_batched_environment_is_named_and_changes_nothing(part, value, message):
    gymnasium.register("Batch-v0", entry_point=Faulty, vector_entry_point=FaultyBatch)
    try:
        run = MetaRL("Batch-v0", SETTINGS, {"part": part, "value": value})
    finally:
        del gymnasium.registry["Batch-v0"]
    fails(run, ValueError, message)
