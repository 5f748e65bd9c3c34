"""Copies of any gymnasium environment that step together in one process; finished episodes are frozen.

Run as a script, this file is a worker process of `workers.py`: a fresh Python that imports neither torch nor this
package, which is why all of this is one file. Its input arrives through a pipe, pickled by cloudpickle.
"""

import contextlib
import copy
import inspect
import logging
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing import connection
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

logger = logging.getLogger(__name__)

Steps = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]
"""Observations, rewards, terminated, truncated, and an empty info."""

CLOSING_SECONDS = 5.0  # Time for workers to close their environments, before they are terminated.
SHOWN = 80  # Longest text of a task, or of a value that an environment returned, in an error.

RESET_PARTS = ("observation", "info")
STEP_PARTS = ("observation", "reward", "terminated", "truncated", "info")

TASK_SETTERS = ("set_task", "reset_task")
"""The methods that set the task in RLlib and learn2learn, and in pytorch-maml-rl."""
STATISTICS = ("obs_rms", "return_rms", "ret_rms", "reward_rms")
"""The names of attributes in which normalising wrappers keep running statistics."""


class Options(dict[str, Any]):
    """Options of a reset that record whether an environment has read the task."""

    looked = False

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


def _recording(name: str, by_key: bool) -> Callable[..., Any]:
    """A dict's method that sets `looked`: always, or if its key is "task"."""
    method = getattr(dict, name)

    def read(self: Options, *arguments: Any) -> Any:
        self.looked |= not by_key or arguments[:1] == ("task",)
        return method(self, *arguments)

    return read


for _name in ("__getitem__", "__contains__", "get", "pop"):
    setattr(Options, _name, _recording(_name, by_key=True))
for _name in ("__iter__", "keys", "values", "items", "copy", "__or__"):  # Unpacking and conversion call one of these.
    setattr(Options, _name, _recording(_name, by_key=False))


class Copies(VectorEnv):
    """Environments that are stepped one after another in this process; finished episodes are not stepped.

    Args:
        make: a function that builds one environment; called once for each.
        rows: the numbers of the environments, for errors.
    Raises:
        TypeError, ValueError: the environment cannot be used here. An environment's own errors are raised with a note
            that names environment, step and task.
    """

    def __init__(self, make: Callable[[], gymnasium.Env], rows: range) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.rows, self.num_envs = rows, len(rows)
        self.name = name_of_maker(make)
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
        self._steps = -1  # Number of steps since reset; −1 before the first reset.
        self._setter = next((name for name in TASK_SETTERS if self.envs[0].has_wrapper_attr(name)), None)
        self._checked_reading = False  # Whether the first reset to a task has been checked for reading it.

    def sample_tasks(self, number: int, generator: np.random.Generator) -> Any:
        """Draw tasks from the environment's own distribution."""
        first = self.envs[0]
        if not first.has_wrapper_attr("sample_tasks"):
            raise no_sample_tasks(self.name)
        return drawn_tasks(self.name, first.get_wrapper_attr("sample_tasks"), first.unwrapped, number, generator)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every environment.

        Args:
            seed: an integer s, which gives environment i the seed s + i, or a sequence of one seed per environment.
            options: {"task": tasks} holds one task per environment, or None for an environment that keeps its task; all
                other entries are passed to every environment. Every environment gets a copy of its task, as
                options["task"] and as the argument of its set_task or reset_task, where it has one.
        Returns:
            Observations (num_envs, …), and an empty info.
        """
        seeds, tasks = spread_seeds(seed, self.num_envs), spread_tasks(options, self.num_envs)
        shared = {key: value for key, value in (options or {}).items() if key != "task"}
        self.tasks = tasks or self.tasks
        self._steps = 0
        index = 0
        try:
            for index, env in enumerate(self.envs):
                if tasks is None or tasks[index] is None:
                    answer = env.reset(seed=seeds[index], options=shared)
                else:
                    answer = self._reset_to(tasks[index], index, seeds[index], shared)
                observation, _ = parts(self.name, RESET_PARTS, answer)
                self._store(index, observation, 0)
        except Exception as fault:
            fault.add_note(f"{self.name}: raised in reset, {self._where(index)}")
            raise
        self._terminated[:] = self._truncated[:] = False
        return self._observations.copy(), {}

    def _reset_to(self, task: Any, index: int, seed: int | None, shared: dict[str, Any]) -> Any:
        """Begin an episode of a task in one environment."""
        env, options = self.envs[index], Options(shared, task=copied_task(self.name, task))
        if self._setter is not None:
            env.get_wrapper_attr(self._setter)(copied_task(self.name, task))
        answer = env.reset(seed=seed, options=options)
        if not (self._checked_reading or options.looked or self._setter) and self.rows[index] == 0:
            logger.warning(
                '%s: reset does not look at options["task"], and there is no set_task: every episode may be of the '
                'same task; read the task in reset, as in self.task = options["task"], or add set_task(task)',
                self.name,
            )
        self._checked_reading = True
        return answer

    def step(self, actions: np.ndarray) -> Steps:
        """Take one time step in every unfinished episode.

        Args:
            actions: (num_envs, …).
        Returns:
            Observations (num_envs, …); rewards, which are 0 in finished episodes, terminated and truncated, all of
            shape (num_envs,); and an empty info.
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
        hold_statistics(env, self.name, warn=row == 0)
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
        with np.errstate(over="ignore"):  # Numbers too large for the dtype become infinite, which samplers refuse.
            np.copyto(self._observations[index, ...], array, casting="same_kind")

    def _task(self, index: int) -> str:
        return "no task" if self.tasks is None else f"task {brief(self.tasks[index])}"

    def _where(self, index: int) -> str:
        return f"{self._task(index)}, environment {self.rows[index]}"


# --- Checks ---


def parts(name: str, expected: tuple[str, ...], answer: Any) -> tuple[Any, ...]:
    """Check that an environment's reset or step returned all of its parts.

    Args:
        name: the environment's name, for the error.
        expected: the names of the parts.
        answer: the returned value.
    Raises:
        ValueError: it is no tuple of that many parts.
    """
    if not isinstance(answer, tuple | list) or len(answer) != len(expected):
        raise ValueError(f"{name} must return the tuple ({', '.join(expected)}), got {brief(repr(answer))}")
    return tuple(answer)


def no_sample_tasks(name: str) -> ValueError:
    """Build the error for an environment that cannot draw tasks."""
    return ValueError(f"{name} has no sample_tasks(number, generator), which draws that many of its tasks; add it")


def drawn_tasks(name: str, draw: Callable[..., Any], owner: Any, number: int, generator: np.random.Generator) -> Any:
    """Draw tasks with an environment's sample_tasks(number, generator), or with its sample_tasks(number).

    The second form has its own source of random numbers. To make its tasks repeatable, NumPy's and Python's global
    generators and the environment's np_random are seeded from the generator, and restored afterwards.

    Args:
        name: the environment's name, for errors.
        draw: its sample_tasks.
        owner: the environment whose np_random is seeded.
        number: the number of tasks.
        generator: the source of random numbers.
    Raises:
        ValueError: tasks drawn twice from the same seed differ.
    """
    if not _accepts(draw, 1) or _accepts(draw, 2):
        return draw(number, generator)
    seed = int(generator.integers(2**32))
    with _seeded(owner, seed):
        tasks = draw(number)
    with _seeded(owner, seed):
        again = draw(number)
    if not _alike(tasks, again):
        raise ValueError(
            f"{name}: sample_tasks({number}) drew other tasks from the same random numbers, so that no run could be "
            "repeated; write it as sample_tasks(self, number, generator), and draw from that numpy generator alone"
        )
    return tasks


def _accepts(function: Callable[..., Any], arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*range(arguments))
    except (TypeError, ValueError):
        return False
    return True


@contextlib.contextmanager
def _seeded(owner: Any, seed: int) -> Iterator[None]:
    """Seed every generator that an environment may draw from, and restore them at the end of the context."""
    python, numpys, own = random.getstate(), np.random.get_state(), getattr(owner, "np_random", None)
    random.seed(seed)
    np.random.seed(seed)
    if own is not None:
        owner.np_random = type(own)(seed) if isinstance(own, np.random.RandomState) else np.random.default_rng(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpys)
        if own is not None:
            owner.np_random = own


def _alike(one: Any, other: Any) -> bool:
    """Whether two tasks are equal in all parts that are numbers or text."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    first, second = _as_array(one), _as_array(other)
    return first.dtype.kind == "O" or (first.shape == second.shape and first.tobytes() == second.tobytes())


def copied_task(name: str, task: Any) -> Any:
    """Copy a task, so that an environment that changes it does not change the task of another episode.

    Args:
        name: the environment's name, for the error.
        task: the task.
    Raises:
        TypeError: the task cannot be copied.
    """
    try:
        return copy.deepcopy(task)
    except Exception as error:
        raise TypeError(
            f"{name}: task {brief(task)} cannot be copied ({type(error).__name__}: {error}), but every episode gets "
            "a task of its own; let tasks be data, and make what cannot be copied in reset"
        ) from error


def flattened(space: gymnasium.Space, observation: Any) -> np.ndarray:
    """Flatten one observation, such as a dictionary, into one array.

    Args:
        space: the observation space; parts are cast to their dtypes, and keys that it lacks are left out.
        observation: the observation.
    Raises:
        ValueError: a part is missing, or of another kind.
    """
    try:
        return np.asarray(gymnasium.spaces.flatten(space, observation))
    except Exception as error:
        raise ValueError(
            f"observation must be one of {space}, got {brief(repr(observation))} ({type(error).__name__}: {error})"
        ) from error


def hold_statistics(env: Any, name: str, warn: bool = True) -> None:
    """Stop normalising wrappers, of single environments or of vectors, from updating their running statistics.

    Statistics would outlive an episode: no checkpoint holds them, and they would differ between the copies of an
    environment.

    Args:
        env: the environment with its wrappers.
        name: its name, for messages.
        warn: whether a warning is logged.
    Raises:
        ValueError: a wrapper that keeps statistics has no update_running_mean, gymnasium's switch for them.
    """
    layer = env
    while layer is not None:
        own = getattr(layer, "__dict__", {})
        found = [key for key, value in own.items() if key in STATISTICS or type(value).__name__ == "RunningMeanStd"]
        if found and getattr(layer, "update_running_mean", True):
            where = f"{name}: the running statistics of {type(layer).__name__} ({found[0]})"
            why = "no checkpoint holds them, and the copies of an environment would not share them"
            instead = (
                "Scale observations by fixed numbers instead, with gymnasium.wrappers.RescaleObservation or "
                "TransformObservation; rewards need no normalisation, for advantages are standardised task by task"
            )
            if not hasattr(layer, "update_running_mean"):
                raise ValueError(f"{where} cannot be used: {why}. {instead}")
            layer.update_running_mean = False
            if warn:
                logger.warning("%s are held as they are, new ones at mean 0, variance 1: %s. %s", where, why, instead)
        layer = layer.env if isinstance(layer, gymnasium.Wrapper | VectorWrapper) else None


def name_of_maker(make: Any) -> str:
    """Name an environment that is not built yet by its id, its class, or the function that makes it."""
    while isinstance(make, partial):
        named = make.args[0] if make.args else make.keywords.get("id")
        make = getattr(named, "id", named) if make.func is gymnasium.make else make.func
    return make if isinstance(make, str) else getattr(make, "__name__", type(make).__name__)


def _check_reset(env: gymnasium.Env, name: str) -> None:
    """Refuse an environment whose reset, or that of a wrapper, does not accept a seed and options."""
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
    flat = gymnasium.spaces.flatten_space(space)
    return gymnasium.wrappers.TransformObservation(env, partial(flattened, space), flat)


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
    raise ValueError(f"{name} must be one number, got {brief(repr(value))}")


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    array = _as_array(value)
    if array.shape == () and array.dtype.kind in "biuf" and array in (0, 1):
        return bool(array)
    raise ValueError(f"{name} must be True or False, got {brief(repr(value))}")


def spread_seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> Sequence[int | None]:
    """Turn the seed of a vector's reset into one seed per environment: s + i for an integer s."""
    if seed is None or isinstance(seed, int | np.integer):
        return [None if seed is None else int(seed) + i for i in range(num_envs)]
    if len(seed) != num_envs:
        raise ValueError(f"seed must be one integer or one per environment ({num_envs}), got {len(seed)} of them")
    return [None if one is None else int(one) for one in seed]


def spread_tasks(options: dict[str, Any] | None, num_envs: int) -> list[Any] | None:
    """Return the tasks in the options of a vector's reset, one per environment, or None where there are none."""
    if options is None or "task" not in options:
        return None
    if len(options["task"]) != num_envs:
        raise ValueError(f'options["task"] must hold {num_envs} tasks, one per environment, got {len(options["task"])}')
    return list(options["task"])


def brief(task: Any) -> str:
    """Return the text of a task, shortened to SHOWN characters."""
    text = " ".join(str(task).split())
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


# --- In the worker ---


def _serve(pipe: connection.Connection) -> None:
    """Answer calls until the call "close" arrives, or until the process at the other end of the pipe ends."""
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
    """End this process, even in the middle of a step, soon after the other end of its pipe is closed."""
    hangup = select.poll()
    hangup.register(descriptor, 0)  # No event but the hang-up, which is always reported.
    hangup.poll()
    time.sleep(CLOSING_SECONDS)  # An idle worker notices too, and may close its environments.
    os._exit(1)


class _Share:
    """The methods that can be called in a worker: those of `Copies`, which `build` makes first."""

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
        """Return whether the environment can draw tasks, the tasks, and the generator's state after drawing them."""
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


if __name__ == "__main__":
    _serve(connection.Connection(int(sys.argv[1])))
