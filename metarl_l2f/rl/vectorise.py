"""Many copies of any gymnasium environment as one vector environment: in this process or spread over worker processes.

`Copies` steps its environments one after another. `Workers` runs one `Copies` a process, for its share of the
environments, so what an environment returns does not depend on the number of workers.

A worker is a fresh Python that runs this file as a script: never a fork, which torch's threads would not survive, nor
an import of this package and with it torch, nor a second run of the user's own script. All it needs arrives through
its pipe, pickled by cloudpickle, which takes lambdas, closures and classes out of notebooks too.
"""

import contextlib
import copy
import importlib
import inspect
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import Pipe, connection
from typing import Any, cast

import cloudpickle
import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

EnvSource = str | Callable[..., gymnasium.Env]
"""A registered environment id, or what makes an environment when called: a class, a function, a partial."""

Steps = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]
"""Observations, rewards, terminated, truncated, and an empty info."""

CLOSING_SECONDS = 5.0  # For workers to close their environments, before they are terminated.
TERMINATING_SECONDS = 1.0  # For a terminated worker to end, before it is killed.
SHOWN = 80  # Characters of a task, or of what an environment returned, in an error.

RESET_PARTS = ("observation", "info")
STEP_PARTS = ("observation", "reward", "terminated", "truncated", "info")


class WorkerError(RuntimeError):
    """An environment in a worker process raised, hung, or lost its process."""


def vectorise(
    env: EnvSource, num_envs: int, *, workers: int = 0, timeout: float = 60.0, threads: int = 1, **kwargs: Any
) -> VectorEnv:
    """`num_envs` copies of an environment that step together.

    The batched version that an id is registered with (its vector_entry_point) is used if it is a class with
    `sample_tasks`, for then it knows tasks; `workers` and `timeout` do not concern it. Everything else is copied.
    Observation spaces other than Box are flattened. A finished episode is frozen: its environment is not stepped.
    Infos are dropped.

    Args:
        env: a registered id, a class, or any function that returns a new environment.
        num_envs: copies.
        workers: processes that share the copies; 0 steps them in this process. Changes no number.
        timeout: seconds that a worker may take to build, reset or step its share once.
        threads: given to a batched version that has an attribute of this name. Changes no number.
        kwargs: passed to the environment.
    Returns:
        A vector environment whose `reset(options={"task": tasks})` takes one task per copy.
    Raises:
        ValueError: a count is out of range, or the environment has spaces or a reset that cannot be used here.
        TypeError: `env` makes no environments, or cannot be sent to worker processes.
        WorkerError: the environment could not be built in a worker.
    """
    for name, value, least in (("num_envs", num_envs, 1), ("workers", workers, 0), ("threads", threads, 1)):
        if value < least:
            raise ValueError(f"{name} must be {least} or more, got {value}")
    if not timeout > 0:
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout}")
    if isinstance(env, gymnasium.Env) or not (isinstance(env, str) or callable(env)):
        raise TypeError(
            f"env must be a registered id, a class, or a function that returns an environment, got {env!r}; copies of "
            "it are needed, so give what makes it, e.g. its class"
        )
    if isinstance(env, str) and _knows_tasks(_specification(env).vector_entry_point):
        batched = gymnasium.make_vec(env, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs)
        if hasattr(batched.unwrapped, "threads"):
            batched.unwrapped.threads = threads
        return batched
    make = partial(gymnasium.make, _specification(env), **kwargs) if isinstance(env, str) else partial(env, **kwargs)
    if workers == 0:
        return Copies(make, range(num_envs))
    return Workers(make, num_envs, min(workers, num_envs), timeout)


def name_of(envs: VectorEnv) -> str:
    """What errors call the environment: its registered id, or its class."""
    vector = envs.unwrapped
    if isinstance(vector, Copies | Workers):
        return vector.name
    return vector.spec.id if vector.spec is not None else type(vector).__name__


def flattener(envs: VectorEnv) -> Callable[[Any], np.ndarray]:
    """What turns one observation of the environment's own space, a dictionary say, into the array that policies read.

    An observation that is flat already stays as it is.
    """
    flat = envs.single_observation_space
    raw = getattr(envs.unwrapped, "raw_observation_space", flat)

    def flatten(observation: Any) -> np.ndarray:
        known = isinstance(raw, gymnasium.spaces.Box) or not raw.contains(observation)
        array = np.asarray(observation if known else gymnasium.spaces.flatten(raw, observation), np.float32)
        if array.shape != flat.shape:
            raise ValueError(
                f"observation must be one of {raw}, as an array of shape {flat.shape} or as the environment gives it, "
                f"got shape {array.shape}; give one observation at a time"
            )
        return array.ravel()

    return flatten


def parts(name: str, expected: tuple[str, ...], answer: Any) -> tuple[Any, ...]:
    """What an environment's reset or step returned, if it has all its parts."""
    if not isinstance(answer, tuple | list) or len(answer) != len(expected):
        raise ValueError(f"{name} must return the tuple ({', '.join(expected)}), got {_brief(repr(answer))}")
    return tuple(answer)


def no_sample_tasks(name: str) -> ValueError:
    """The error of an environment that cannot draw tasks."""
    return ValueError(f"{name} has no sample_tasks(number, generator), which draws that many of its tasks; add it")


class Copies(VectorEnv):
    """Environments that are stepped one after another, in this process; finished ones stay as they are.

    Args:
        make: builds one environment; called once for each.
        rows: numbers of the environments, for errors.
    Raises:
        TypeError, ValueError: the environment cannot be used here. Whatever an environment raises passes through, with
            a note that names environment, step and task.
    """

    def __init__(self, make: Callable[[], gymnasium.Env], rows: range) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.rows, self.num_envs = rows, len(rows)
        self.name = _name_of_maker(make)
        self.tasks: Sequence[Any] | None = None
        self.envs: list[gymnasium.Env] = []
        try:
            for row in rows:
                self._add(make, row)
        except BaseException:
            self.close()
            raise
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._shape = tuple(self.single_observation_space.shape or ())
        self._observations = np.zeros((self.num_envs, *self._shape), self.single_observation_space.dtype)
        self._terminated, self._truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        self._steps = -1  # Since reset; −1 before the first one.

    def sample_tasks(self, number: int, generator: np.random.Generator) -> Any:
        """Draw tasks from the environment's own distribution."""
        if not self.envs[0].has_wrapper_attr("sample_tasks"):
            raise no_sample_tasks(self.name)
        return self.envs[0].get_wrapper_attr("sample_tasks")(number, generator)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every environment.

        Args:
            seed: s gives environment i the seed s + i; a sequence names each one's.
            options: {"task": tasks} holds one task per environment, None for one that shall keep its own; what else
                there is goes to all of them.
        Returns:
            Observations (num_envs, …), and an empty info.
        """
        seeds, tasks = _spread(seed, self.num_envs), _tasks(options, self.num_envs)
        shared = {key: value for key, value in (options or {}).items() if key != "task"}
        self.tasks = tasks or self.tasks
        self._steps = 0
        index = 0
        try:
            for index, env in enumerate(self.envs):
                own = {} if tasks is None or tasks[index] is None else {"task": tasks[index]}
                observation, _ = parts(self.name, RESET_PARTS, env.reset(seed=seeds[index], options=shared | own))
                self._store(index, observation, 0)
        except Exception as fault:
            fault.add_note(f"{self.name}: raised in reset, {self._where(index)}")
            raise
        self._terminated[:] = self._truncated[:] = False
        return self._observations.copy(), {}

    def step(self, actions: np.ndarray) -> Steps:
        """Do one time step in every unfinished episode.

        Args:
            actions: (num_envs, …).
        Returns:
            Observations (num_envs, …); rewards, 0 in finished episodes, terminated and truncated, all (num_envs,); and
            an empty info.
        """
        if self._steps < 0:
            raise ValueError(f"{self.name}: step needs a running episode, got none; call reset() first")
        rewards = np.zeros(self.num_envs)
        index = 0
        try:
            for index in np.flatnonzero(~(self._terminated | self._truncated)).tolist():
                answer = parts(self.name, STEP_PARTS, self.envs[index].step(actions[index]))
                observation, reward, terminated, truncated, _ = answer
                self._store(index, observation, self._steps + 1)
                rewards[index] = _number("reward", reward)
                self._terminated[index] = _flag("terminated", terminated)
                self._truncated[index] = _flag("truncated", truncated)
        except Exception as fault:
            fault.add_note(f"{self.name}: raised at step {self._steps}, {self._where(index)}")
            raise
        self._steps += 1
        return self._observations.copy(), rewards, self._terminated.copy(), self._truncated.copy(), {}

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments."""
        for env in self.envs:
            env.close()

    def _add(self, make: Callable[[], gymnasium.Env], row: int) -> None:
        try:
            env = make()
        except Exception as fault:
            fault.add_note(f"{self.name}: raised while environment {row} was built")
            raise
        if not isinstance(env, gymnasium.Env):
            raise TypeError(f"{self.name} must return a gymnasium.Env, got {env!r}")
        if not self.envs:
            self.name = env.unwrapped.spec.id if env.unwrapped.spec is not None else type(env.unwrapped).__name__
            self.raw_observation_space = env.observation_space
            _check_reset(env, self.name)
        elif any(env.unwrapped is other.unwrapped for other in self.envs):
            raise ValueError(
                f"{self.name}: the function that makes the environments returned the same one twice; return a new one "
                "at every call"
            )
        env = _with_box_observations(env, self.name)
        self.envs.append(env)
        for role in ("observation_space", "action_space"):
            first, found = getattr(self.envs[0], role), getattr(env, role)
            if found != first:
                raise ValueError(
                    f"{self.name}: environment {row} has {role} {found}, but the first one has {first}; all copies "
                    "share one policy and need the same spaces"
                )

    def _store(self, index: int, observation: Any, step: int) -> None:
        array, expected = _as_array(observation), self._observations.dtype
        if array.shape != self._shape or not np.can_cast(array.dtype, expected, "same_kind"):
            # gymnasium's own vectors would only fail to stack them.
            raise ValueError(
                f"{self.name}: the observation at step {step} of {self._task(index)} has shape {array.shape} and dtype "
                f"{array.dtype}, expected {self._shape} and {expected}, those of its observation_space"
            )
        with np.errstate(over="ignore"):  # What the dtype cannot hold becomes infinite, which no sampler takes.
            np.copyto(self._observations[index, ...], array, casting="same_kind")

    def _task(self, index: int) -> str:
        return "no task" if self.tasks is None else f"task {_brief(self.tasks[index])}"

    def _where(self, index: int) -> str:
        return f"{self._task(index)}, environment {self.rows[index]}"


@dataclass
class _Worker:
    """One process, from the side of the one that started it."""

    number: int
    rows: range
    """Its environments."""
    process: subprocess.Popen
    pipe: connection.Connection


class Workers(VectorEnv):
    """Environments in worker processes, each of which steps its share of them one after another.

    A fault ends all workers, and the object is of no more use. Workers ignore SIGINT, so that the program can finish
    what it is doing, and end with it, however it ends.

    Args:
        make: builds one environment.
        num_envs: environments in all.
        workers: processes, 1 … num_envs.
        timeout: seconds that a worker may take to build, reset or step its share once.
    Raises:
        WorkerError: an environment raised, hung, or lost its process.
        TypeError: `make` or a task cannot be pickled.
    """

    def __init__(self, make: Callable[[], gymnasium.Env], num_envs: int, workers: int, timeout: float) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.num_envs, self.timeout = num_envs, timeout
        self.name = _name_of_maker(make)
        self.tasks: Sequence[Any] | None = None
        self._steps = 0
        self._workers: list[_Worker] = []
        self._stop = weakref.finalize(self, _stop, self._workers, os.getpid())
        edges = [num_envs * number // workers for number in range(workers + 1)]
        try:
            for number, (start, end) in enumerate(pairwise(edges)):
                self._workers.append(_start(number, range(start, end)))
        except BaseException:
            self._abort()
            raise
        pickled = self._pickled(make)
        arguments = [(sys.path, pickled, worker.rows) for worker in self._workers]
        built = self._call("build", arguments, "while it was built")
        self.name, self.raw_observation_space, self.single_observation_space, self.single_action_space = built[0]
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def sample_tasks(self, number: int, generator: np.random.Generator) -> Any:
        """Draw tasks from the environment's own distribution; the first worker draws them."""
        ((found, tasks, state),) = self._call("sample_tasks", [(number, generator)], "in sample_tasks")
        if not found:
            raise no_sample_tasks(self.name)
        generator.bit_generator.state = state
        return tasks

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every environment; as `Copies.reset`."""
        seeds, tasks, options = _spread(seed, self.num_envs), _tasks(options, self.num_envs), options or {}
        self.tasks = tasks or self.tasks
        self._steps = 0
        arguments = []
        for worker in self._workers:
            share = slice(worker.rows.start, worker.rows.stop)
            own = {} if tasks is None else {"task": tasks[share]}
            arguments.append((seeds[share], options | own))
        return np.concatenate(self._call("reset", arguments, "in reset")), {}

    def step(self, actions: np.ndarray) -> Steps:
        """Do one time step in every unfinished episode; as `Copies.step`."""
        shares = [(actions[worker.rows.start : worker.rows.stop],) for worker in self._workers]
        results = self._call("step", shares, f"at step {self._steps}")
        self._steps += 1
        observations, rewards, terminated, truncated = (np.concatenate(parts) for parts in zip(*results, strict=True))
        return observations, rewards, terminated, truncated, {}

    def close_extras(self, **kwargs: Any) -> None:
        """Have the workers close their environments and end; terminate those that do not."""
        self._stop()

    def _pickled(self, value: Any) -> bytes:
        try:
            return cloudpickle.dumps(value)
        except Exception as error:
            self._abort()
            raise TypeError(
                f"{self.name} cannot be sent to worker processes ({type(error).__name__}: {error}); make what "
                "cannot be pickled inside the environment's constructor, or use workers=0"
            ) from error

    def _call(self, method: str, arguments: Sequence[tuple[Any, ...]], when: str) -> list[Any]:
        """Call a method in the first workers, one per argument tuple, at the same time; results in their order."""
        if not self._stop.alive:
            raise RuntimeError(f"{self.name}: the workers have ended, closed or after an error; make new ones")
        try:
            return self._exchange(method, arguments, when)
        except BaseException:
            # After an interrupt, too: an answer left in a pipe would be taken for that of the next call.
            self._abort()
            raise

    def _exchange(self, method: str, arguments: Sequence[tuple[Any, ...]], when: str) -> list[Any]:
        called = self._workers[: len(arguments)]
        for worker, given in zip(called, arguments, strict=True):
            message = self._pickled((method, given))
            try:
                worker.pipe.send_bytes(message)
            except OSError:
                raise self._died(worker, when) from None
        answers: dict[int, Any] = {}
        waiting: dict[Any, _Worker] = {worker.pipe: worker for worker in called}
        deadline = time.monotonic() + self.timeout
        while waiting:
            ready = connection.wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                late = next(iter(waiting.values()))
                # A process that the environment started may hold the pipe of a dead worker open.
                raise self._hung(late, when) if late.process.poll() is None else self._died(late, when)
            for pipe in ready:
                worker = waiting.pop(pipe)
                try:
                    answer = worker.pipe.recv_bytes()
                except (EOFError, OSError):
                    raise self._died(worker, when) from None
                answers[worker.number] = self._unpacked(worker, answer, when)
        return [answers[worker.number] for worker in called]

    def _unpacked(self, worker: _Worker, answer: bytes, when: str) -> Any:
        succeeded, result = cloudpickle.loads(answer)
        if succeeded:
            return result
        error, notes, trace = result
        raise WorkerError(
            f"{'; '.join(notes) or f'{self.name}: raised {when}'}, worker {worker.number}: {error}. The worker's own "
            f"traceback is below; workers=0 steps the environments in this process, within reach of a debugger.\n\n"
            f"{trace}"
        )

    def _hung(self, worker: _Worker, when: str) -> WorkerError:
        return WorkerError(
            f"{self.name}: no answer in {self.timeout:g} s {when} from {self._described(worker)}. Either it hangs, or "
            "it is slow: then raise timeout, the seconds for one step of a worker's share, or use more workers"
        )

    def _died(self, worker: _Worker, when: str) -> WorkerError:
        try:
            status = worker.process.wait(TERMINATING_SECONDS)
        except subprocess.TimeoutExpired:
            end = "its pipe was closed"
        else:
            end = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        return WorkerError(
            f"{self.name}: a process was lost {when}, {end}: {self._described(worker)}. SIGKILL often means that "
            "memory ran out: use fewer environments; other signals are faults in compiled code"
        )

    def _described(self, worker: _Worker) -> str:
        """A worker, and the tasks it works on; the first, second and last where there are many."""
        described = f"worker {worker.number} (environments {worker.rows[0]} to {worker.rows[-1]}"
        if self.tasks is not None:
            tasks = list(dict.fromkeys(_brief(self.tasks[row]) for row in worker.rows))
            described += f", tasks {', '.join(tasks if len(tasks) < 4 else [*tasks[:2], '…', tasks[-1]])}"
        return described + ")"

    def _abort(self) -> None:
        """End all workers at once."""
        if self._stop.detach() is not None:
            _stop(self._workers, os.getpid(), grace=0.0)


def _start(number: int, rows: range) -> _Worker:
    ours, theirs = Pipe()
    try:
        process = subprocess.Popen(
            # -P keeps this file's folder out of the worker's sys.path.
            [sys.executable, "-P", __file__, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            # Ctrl-C goes to the terminal's foreground group: not even a worker that is just starting may get it.
            process_group=0,
            # Workers are the parallelism; a thread pool in each of them would fight the others' for the cores.
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )
    finally:
        theirs.close()
    return _Worker(number, rows, process, ours)


def _stop(workers: list[_Worker], owner: int, grace: float = CLOSING_SECONDS) -> None:
    """End workers: within the grace by themselves, else terminated, else killed."""
    if os.getpid() != owner:
        return  # A fork of the program that started them, which is at its own end.
    for worker in workers if grace else []:
        with contextlib.suppress(OSError):  # It has ended already.
            worker.pipe.send_bytes(cloudpickle.dumps(("close", ())))
    deadline = time.monotonic() + grace
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.terminate()
    for worker in workers:
        try:
            worker.process.wait(TERMINATING_SECONDS)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        worker.pipe.close()


# --- In the worker ---


def _serve(pipe: connection.Connection) -> None:
    """Answer calls until told to close, or until the pipe ends with the process at its other side."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(pipe.fileno(), False)
    threading.Thread(target=_end_with_parent, args=(pipe.fileno(),), daemon=True).start()
    share = _Share()
    while True:
        try:
            message = pipe.recv_bytes()
        except (EOFError, OSError):
            break
        try:
            method, arguments = cloudpickle.loads(message)
            if method == "close":
                break
            answer = cloudpickle.dumps((True, getattr(share, method)(*arguments)))
        except BaseException as fault:
            text = traceback.format_exception_only(type(fault), fault)[0].strip()
            notes = getattr(fault, "__notes__", [])
            answer = cloudpickle.dumps((False, (text, notes, traceback.format_exc())))
        pipe.send_bytes(answer)
    share.close()


def _end_with_parent(descriptor: int) -> None:
    """End this process, even in the middle of a step, soon after the other side of its pipe is gone."""
    hangup = select.poll()
    hangup.register(descriptor, 0)  # No event but the hang-up, which is always reported.
    hangup.poll()
    time.sleep(CLOSING_SECONDS)  # An idle worker notices too, and may close its environments.
    os._exit(1)


class _Share:
    """What a worker can be asked: `Copies`, built on request."""

    copies: Copies | None = None

    def build(self, path: list[str], make: bytes, rows: range) -> tuple[str, *tuple[gymnasium.Space, ...]]:
        sys.path[:] = path  # Before unpickling, which imports.
        copies = self.copies = Copies(cloudpickle.loads(make), rows)
        return (
            copies.name,
            copies.raw_observation_space,
            copies.single_observation_space,
            copies.single_action_space,
        )

    def sample_tasks(self, number: int, generator: np.random.Generator) -> tuple[bool, Any, Any]:
        """Whether the environment can, the tasks, and the generator's state after drawing them."""
        copies = self._built()
        if not copies.envs[0].has_wrapper_attr("sample_tasks"):
            return False, None, None
        return True, copies.sample_tasks(number, generator), generator.bit_generator.state

    def reset(self, seed: Sequence[int | None], options: dict[str, Any]) -> np.ndarray:
        return self._built().reset(seed=seed, options=options)[0]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        return self._built().step(actions)[:4]

    def close(self) -> None:
        if self.copies is not None:
            self.copies.close()

    def _built(self) -> Copies:
        assert self.copies is not None
        return self.copies


# --- Checks ---


def _specification(env_id: str) -> gymnasium.envs.registration.EnvSpec:
    """What an id is registered with: unlike the id, it means the same in a process that did not register it."""
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    found = copy.deepcopy(gymnasium.spec(name))
    if isinstance(found.entry_point, str) and found.entry_point.startswith("__main__:"):
        found.entry_point = cast(Any, load_env_creator(found.entry_point))
    return found


def _knows_tasks(entry_point: Any) -> bool:
    """Whether a vector entry point is a class that draws tasks: gymnasium's own, like CartPole's, know none."""
    return hasattr(load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point, "sample_tasks")


def _name_of_maker(make: Any) -> str:
    """What to call an environment that is not there yet: its id, its class, or the function that makes it."""
    while isinstance(make, partial):
        make = make.args[0].id if make.func is gymnasium.make else make.func
    return make if isinstance(make, str) else getattr(make, "__name__", type(make).__name__)


def _check_reset(env: gymnasium.Env, name: str) -> None:
    """Refuse an environment that would raise, in any of its layers, when reset with a seed and options."""
    layer = env
    while True:
        parameters = inspect.signature(layer.reset).parameters
        catches_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        missing = [key for key in ("seed", "options") if key not in parameters and not catches_all]
        if missing:
            raise ValueError(
                f"{name}: {type(layer).__name__}.reset takes no {' and no '.join(missing)}, but tasks come as "
                'reset(options={"task": task}); write it as reset(self, *, seed=None, options=None)'
            )
        if not isinstance(layer, gymnasium.Wrapper):
            return
        layer = layer.env


def _with_box_observations(env: gymnasium.Env, name: str) -> gymnasium.Env:
    """Flatten dictionaries, tuples and discrete observations (one-hot) into one array."""
    space = env.observation_space
    if isinstance(space, gymnasium.spaces.Box):
        return env
    if not space.is_np_flattenable:
        raise ValueError(
            f"{name}: the observation space {space} cannot be flattened into a Box, which policies read; wrap the "
            "environment with gymnasium.wrappers.TransformObservation, or change its space"
        )
    return gymnasium.wrappers.FlattenObservation(env)


def _as_array(value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except (TypeError, ValueError):  # Such as rows of different lengths.
        return np.asarray(None)


def _number(name: str, value: Any) -> float:
    if isinstance(value, float):
        return value
    array = _as_array(value)
    if array.shape == () and array.dtype.kind in "biuf":
        return float(array)
    raise ValueError(f"{name} must be one number, got {_brief(repr(value))}")


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    array = _as_array(value)
    if array.shape == () and array.dtype.kind in "biuf" and array in (0, 1):
        return bool(array)
    raise ValueError(f"{name} must be True or False, got {_brief(repr(value))}")


def _spread(seed: int | Sequence[int | None] | None, num_envs: int) -> Sequence[int | None]:
    if seed is None or isinstance(seed, int):
        return [None if seed is None else seed + i for i in range(num_envs)]
    if len(seed) != num_envs:
        raise ValueError(f"seed must be one integer or one per environment ({num_envs}), got {len(seed)} of them")
    return seed


def _tasks(options: dict[str, Any] | None, num_envs: int) -> list[Any] | None:
    if options is None or "task" not in options:
        return None
    if len(options["task"]) != num_envs:
        raise ValueError(f'options["task"] must hold {num_envs} tasks, one per environment, got {len(options["task"])}')
    return list(options["task"])


def _brief(task: Any) -> str:
    text = " ".join(str(task).split())
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


if __name__ == "__main__":
    _serve(connection.Connection(int(sys.argv[1])))
