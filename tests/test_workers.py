"""Environments in worker processes: the same episodes as in this one, and faults that say what happened and end."""

import contextlib
import gc
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl_l2f.rl.experiment import MetaRL
from metarl_l2f.rl.sampling import Sampler
from metarl_l2f.rl.settings import MetaRLSettings, PolicyNetwork
from metarl_l2f.rl.vectorise import vectorise
from metarl_l2f.rl.workers import WorkerError
from metarl_l2f.training.checkpoint import load
from metarl_l2f.training.loop import train


def local_classes():
    """Classes that no worker could import, like those of a notebook; importing this file would also take seconds."""

    class Drift(gymnasium.Env):
        """Observes (task, steps, noise); the reward is the action; ends after `task` steps, or by the fault."""

        observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        action_space = spaces.Box(-1, 1, (1,), np.float32)

        def __init__(self, fault=None, at=None):
            self.fault, self.at = fault, at
            self._fail("build")

        def sample_tasks(self, number, generator):
            return generator.integers(1, 9, size=number).astype(np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.task, self.steps = options["task"], 0
            if self.task == 3:
                self._fail("reset")
            return self._observe(), {}

        def step(self, action):
            if self.task == 3 and self.steps == 1:
                self._fail("step")
            self.steps += 1
            return self._observe(), float(action[0]), self.steps >= self.task, False, {"not": "carried"}

        def _observe(self):
            return np.array([self.task, self.steps, self.np_random.normal()], np.float32)

        def _fail(self, at):
            if at != self.at:
                return
            if self.fault == "raise":
                raise ZeroDivisionError("as ordered")
            if self.fault == "hang":
                time.sleep(600)
            if self.fault == "die":
                os._exit(3)

    class Rooms(gymnasium.Env):
        """A dictionary as observation, discrete actions, and tasks that are dictionaries with a function in them."""

        observation_space = spaces.Dict({"place": spaces.Box(-1, 1, (2,), np.float32), "room": spaces.Discrete(3)})
        action_space = spaces.Discrete(3, start=5)

        def sample_tasks(self, number, generator):
            rooms = generator.integers(3, size=number)
            return [{"room": int(room), "score": lambda action: -abs(action - 6)} for room in rooms]

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.task = options["task"]
            return {"place": np.zeros(2, np.float32), "room": self.task["room"]}, {}

        def step(self, action):
            place = self.np_random.uniform(-1, 1, 2).astype(np.float32)
            return {"place": place, "room": self.task["room"]}, self.task["score"](action), False, False, {}

    return Drift, Rooms


Drift, Rooms = local_classes()
TASKS = np.array([1, 2, 9, 4, 3, 7, 5], np.float32)


def generators(count, seed=0):
    return [np.random.default_rng([seed, task]) for task in range(count)]


def follow(observations, noise):
    """Depends on all that is seen and drawn."""
    return 0.1 * noise + 0.01 * observations.sum(-1, keepdim=True)


def process_ids(envs):
    return [worker.process.pid for worker in envs._workers]


def has_ended(process):
    """No such process, or one that only waits for whoever inherited it to take note."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture(scope="module")
def drifting():
    """Seven environments on three workers, for tests that leave them whole."""
    envs = vectorise(Drift, 7, workers=3)
    yield envs
    processes = process_ids(envs)
    envs.close()
    assert all(has_ended(process) for process in processes)


def test_episodes_do_not_depend_on_the_number_of_workers(drifting):
    def episodes(envs):
        return Sampler(envs, 7, 1, 6).sample(follow, TASKS, generators(7))

    expected = episodes(vectorise(Drift, 7))
    assert expected.mask.sum(-1).ravel().tolist() == [1, 2, 6, 4, 3, 6, 5]
    for envs in (drifting, vectorise(lambda: Drift(), 7, workers=2), vectorise(Drift, 7, workers=1)):
        for ours, theirs in zip(episodes(envs), expected, strict=True):
            assert torch.equal(ours, theirs)
        if envs is not drifting:
            envs.close()


def test_workers_draw_tasks_and_advance_the_generator(drifting):
    ours, theirs = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(2):
        tasks = Sampler(drifting, 7, 1, 6).sample_tasks(5, ours)
        assert tasks.tolist() == Drift().sample_tasks(5, theirs).tolist()
    assert ours.bit_generator.state == theirs.bit_generator.state


def test_ctrl_c_does_not_reach_workers(drifting):
    for process in process_ids(drifting):
        os.kill(process, signal.SIGINT)
    observations, _ = drifting.reset(seed=0, options={"task": TASKS})
    assert observations[:, 0].tolist() == TASKS.tolist()


def test_a_task_per_environment_is_needed(drifting):
    with pytest.raises(ValueError, match=r'options\["task"\] must hold 7 tasks, one per environment, got 2'):
        drifting.reset(options={"task": TASKS[:2]})
    drifting.reset(options={"task": TASKS})  # and the workers are none the worse


def test_a_registered_environment_with_dictionaries_and_discrete_actions_runs_in_workers():
    # Registered here and with a local class: workers could not look the id up.
    gymnasium.register("Rooms-v0", entry_point=Rooms, max_episode_steps=3)
    try:
        here, there = (Sampler(vectorise("Rooms-v0", 4, workers=w), 2, 2, 5) for w in (0, 2))
    finally:
        del gymnasium.registry["Rooms-v0"]
    tasks = there.sample_tasks(2, np.random.default_rng(0))
    one_hot = torch.nn.functional.one_hot(torch.tensor([[0, 1], [2, 1]]), 3).float()
    found, expected = (s.sample(lambda observations, noise: one_hot, tasks, generators(2)) for s in (there, here))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert found.rewards[:, :, 0].tolist() == [[-1.0, 0.0], [-1.0, 0.0]]  # −|action − 6| of actions 5, 6 and 7, 6
    assert found.mask.sum(-1).unique().tolist() == [3]
    there.close()


def test_workers_do_not_import_torch():
    class Imports(Drift):
        def sample_tasks(self, number, generator):
            return sorted(name for name in ("gymnasium", "metarl_l2f", "torch") if name in sys.modules)

    envs = vectorise(Imports, 1, workers=1)
    assert envs.sample_tasks(1, np.random.default_rng(0)) == ["gymnasium"]
    envs.close()


def roll(envs):
    return Sampler(envs, 4, 1, 5).sample(follow, np.array([9.0, 8.0, 3.0, 7.0]), generators(4))


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("reset", r"Drift: raised in reset, task 3.0, environment 2, worker 1: ZeroDivisionError: as ordered\. "),
        ("step", r"Drift: raised at step 1, task 3.0, environment 2, worker 1: ZeroDivisionError: as ordered\. "),
    ],
)
def test_an_exception_in_a_worker_arrives_with_its_traceback_and_ends_all_workers(at, message):
    envs = vectorise(Drift, 4, workers=2, fault="raise", at=at)
    processes = process_ids(envs)
    with pytest.raises(WorkerError, match=message) as caught:
        roll(envs)
    frames = r"(?s)Traceback \(most recent call last\).*line \d+, in _fail.*ZeroDivisionError"
    assert re.search(frames, str(caught.value))
    assert all(has_ended(process) for process in processes)
    with pytest.raises(RuntimeError, match="Drift: the workers have ended, closed or after an error; make new ones"):
        envs.step(np.zeros((4, 1), np.float32))
    envs.close()
    envs.close()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise", r"Drift: raised while environment 0 was built, worker 0: ZeroDivisionError: as ordered\. "),
        ("die", r"Drift: a process was lost while it was built, ended with exit status 3: worker 0 \(environments 0"),
        (
            "hang",
            r"no answer in 1.5 s while it was built from worker 0 \(environments 0 to 0\)\. .*raise timeout",
        ),
    ],
)
def test_an_environment_that_cannot_be_built_says_so(fault, message):
    with pytest.raises(WorkerError, match=message):
        vectorise(Drift, 1, workers=1, timeout=1.5 if fault == "hang" else 60.0, fault=fault, at="build")


def test_an_environment_that_hangs_ends_the_call_and_names_the_tasks():
    envs = vectorise(Drift, 4, workers=2, fault="hang", at="step")
    envs.timeout = 3.0  # only now: building them may take its time
    processes, begin = process_ids(envs), time.monotonic()
    message = r"no answer in 3 s at step 1 from worker 1 \(environments 2 to 3, tasks 3.0, 7.0\)\. .*raise timeout"
    with pytest.raises(WorkerError, match=message):
        roll(envs)
    assert all(has_ended(process) for process in processes)
    assert time.monotonic() - begin < 30  # not the 600 s of the environment
    envs.close()


def test_a_process_that_ends_ends_the_call_and_names_the_tasks():
    envs = vectorise(Drift, 4, workers=2, fault="die", at="step")
    processes = process_ids(envs)
    message = r"Drift: a process was lost at step 1, ended with exit status 3: worker 1 \(.*tasks 3.0, 7.0\)"
    with pytest.raises(WorkerError, match=message):
        roll(envs)
    assert all(has_ended(process) for process in processes)
    envs.close()


def test_a_process_killed_between_two_steps_is_noticed_by_the_next():
    envs = vectorise(Drift, 4, workers=2)
    envs.reset(options={"task": TASKS[:4]})
    os.kill(process_ids(envs)[0], signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"lost at step 0, killed by SIGKILL: worker 0 \(.*tasks 1.0, 2.0\).*memory"):
        envs.step(np.zeros((4, 1), np.float32))


def test_an_interrupted_call_ends_the_workers():
    # Their answers would be taken for those of the next call.
    envs = vectorise(Drift, 1, workers=1, fault="hang", at="reset")
    (process,) = process_ids(envs)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # A suite in the background starts deaf to it.
    try:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            envs.reset(options={"task": TASKS[4:5]})
    finally:
        signal.signal(signal.SIGINT, before)
    assert has_ended(process)


def test_what_cannot_be_pickled_is_refused_with_a_way_out():
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"cannot be sent to worker processes \(TypeError: cannot pickle .*or use work"):
        vectorise(lambda: lock and Drift(), 2, workers=2)


def test_systems_without_posix_are_named_where_workers_are_wanted(monkeypatch):
    monkeypatch.delattr(select, "poll")
    with pytest.raises(ValueError, match=r"worker processes need a POSIX system, got .*; use workers=0 here"):
        vectorise(Drift, 2, workers=2)
    vectorise(Drift, 2).close()


def test_workers_end_with_the_object_that_has_them():
    envs = vectorise(Drift, 1, workers=1)
    (process,) = process_ids(envs)
    del envs
    gc.collect()
    assert has_ended(process)


PROGRAM = """
import os, signal, sys, time
import gymnasium, numpy as np
from metarl_l2f.rl.vectorise import vectorise

class Sleepy(gymnasium.Env):  # in __main__, and without the guard that multiprocessing would ask for
    observation_space = action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}
    def step(self, action):
        time.sleep(600.0 * float(action[0]))
        return np.zeros(1, np.float32), 0.0, False, False, {}

signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
envs = vectorise(Sleepy, 2, workers=2)
envs.reset()
print(*(worker.process.pid for worker in envs._workers), flush=True)
signal.pause()
envs.step(np.zeros((2, 1), np.float32))
print("stepped", flush=True)
envs.step(np.array([[0.0], [1.0]], np.float32))
"""


def test_workers_survive_the_programs_interrupt_but_not_its_death(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    program = subprocess.Popen(
        [sys.executable, tmp_path / "program.py"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    workers = []
    with program:
        try:
            workers = [int(process) for process in program.stdout.readline().split()]
            time.sleep(0.2)  # until it pauses
            os.killpg(program.pid, signal.SIGINT)
            assert [program.stdout.readline() for _ in range(2)] == ["interrupted\n", "stepped\n"]
            assert len(workers) == 2
            assert not any(has_ended(process) for process in workers)
            program.kill()  # now one worker idles, the other is in the middle of a step
            deadline = time.monotonic() + 30
            while not all(has_ended(process) for process in workers) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert all(has_ended(process) for process in workers)
        finally:
            program.kill()
            for process in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


# --- A run that loses its worker ---


def test_a_fault_ends_a_run_with_the_workers_traceback_and_leaves_it_resumable(tmp_path):
    broken, marker = local_classes()[0], tmp_path / "break"

    class Breaks(broken):
        def step(self, action):
            if os.path.exists(marker):
                raise ZeroDivisionError("as ordered")
            return super().step(action)

    settings = MetaRLSettings(tasks_per_batch=2, episodes_per_task=2, horizon=4, policy=PolicyNetwork((3,)))

    def train_to(folder, iterations, resume=False):
        run = MetaRL(Breaks, settings, workers=2)
        try:
            keys = {"validation_key": "validation/return/step_1", "progress_key": "return/step_1"}
            every = {"validate_every": 1, "checkpoint_every": 1}
            train(run, folder, iterations=iterations, config={}, resume=resume, **every, **keys)
        finally:
            run.close()
        return load(folder / "checkpoint.pt")

    unbroken = train_to(tmp_path / "unbroken", 3)
    train_to(tmp_path / "broken", 1)
    marker.touch()
    with pytest.raises(WorkerError, match=r"(?s)raised at step 0, task .*ZeroDivisionError: as ordered.*Traceback"):
        train_to(tmp_path / "broken", 3, resume=True)
    assert load(tmp_path / "broken" / "checkpoint.pt")["iteration"] == 1
    marker.unlink()
    resumed = train_to(tmp_path / "broken", 3, resume=True)
    ours, theirs = resumed["experiment"]["learner"], unbroken["experiment"]["learner"]
    assert all(ours[name].equal(theirs[name]) for name in theirs)
