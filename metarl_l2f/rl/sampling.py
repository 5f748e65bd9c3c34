"""Rollouts: N tasks × B episodes of one vector environment.

One policy call per time step serves all N·B environments. A finished episode is masked, not replaced. Policy noise is
drawn before the rollout from generators keyed by task, so episodes do not depend on the number of workers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..checks import check_count
from .copies import RESET_PARTS, STEP_PARTS, copied_task, drawn_tasks, hold_statistics, no_sample_tasks, parts
from .episodes import Episodes
from .spaces import Reader, taken
from .vectorise import name_of

Act = Callable[[Tensor, Tensor], Tensor]
"""A policy: maps observations (N, B, O) and noise (N, B, A) to actions (N, B, A), one-hot where they are discrete.
Observations of pictures are bytes."""


class Sampler:
    """Collects B episodes of each of N tasks from one vector environment.

    The attribute `discrete` is true if actions are numbers from 0 to A − 1, which policies and episodes hold as one-hot
    rows of length A. Arrays have torch's default dtype, float32 unless a program sets float64; observations of pictures
    are bytes.

    Args:
        envs: N·B environments, from `vectorise`; those numbered n·B … n·B + B − 1 belong to task n.
        num_tasks: N, the number of tasks.
        episodes_per_task: B, the number of episodes per task.
        horizon: T, the number of steps after which every episode is cut.
    Raises:
        ValueError: the numbers do not fit each other, or a space is neither Box nor, for actions, Discrete.
    """

    def __init__(self, envs: gymnasium.vector.VectorEnv, num_tasks: int, episodes_per_task: int, horizon: int) -> None:
        self.envs, self.horizon = envs, horizon
        self.name = name_of(envs)
        check_count("horizon", horizon, unit="steps")
        if envs.num_envs != num_tasks * episodes_per_task:
            raise ValueError(
                f"{self.name}: {num_tasks} tasks × {episodes_per_task} episodes need {num_tasks * episodes_per_task} "
                f"environments, got {envs.num_envs}"
            )
        self.shape = (num_tasks, episodes_per_task)
        self.dtype = np.dtype(str(torch.get_default_dtype()).removeprefix("torch."))
        observed, acted = envs.single_observation_space, envs.single_action_space
        if not isinstance(observed, spaces.Box):
            raise ValueError(f"{self.name}: the observation space must be a Box, got {observed}; wrap the environment")
        if not isinstance(acted, spaces.Box | spaces.Discrete):
            raise ValueError(
                f"{self.name}: the action space must be a Box or Discrete, got {acted}; wrap the environment, "
                "e.g. with gymnasium.wrappers.TransformAction"
            )
        hold_statistics(envs, self.name)
        self.reader = _reader(envs)
        self.observed_dtype = np.dtype(np.uint8) if self.reader.keeps_bytes else self.dtype
        self.action_space, self.discrete = acted, isinstance(acted, spaces.Discrete)
        self.observation_shape = observed.shape
        self.action_shape = (int(acted.n),) if isinstance(acted, spaces.Discrete) else acted.shape
        self.observation_size, self.action_size = math.prod(self.observation_shape), math.prod(self.action_shape)

    @property
    def physics_seconds(self) -> float:
        """The time, in seconds, that the simulator has taken so far; 0 where environments do not measure it."""
        return getattr(self.envs.unwrapped, "physics_seconds", 0.0)

    def sample_tasks(self, number: int, generator: np.random.Generator) -> Any:
        """Draw tasks from the environment's own distribution, `env.sample_tasks(number, generator)`.

        Raises:
            ValueError: there is no such method, or it draws another number of tasks, or none in order.
        """
        if not hasattr(self.envs.unwrapped, "sample_tasks"):
            raise no_sample_tasks(self.name)
        envs = self.envs.unwrapped
        # Copies know how to draw; a batched environment of somebody else may have either form of sample_tasks.
        tasks = listed(drawn_tasks(self.name, envs.sample_tasks, envs, number, generator), self.name)
        self._check_number(tasks, number)
        return tasks

    def sample(self, act: Act, tasks: Sequence[Any], generators: Sequence[np.random.Generator]) -> Episodes:
        """Collect one episode from every environment.

        Args:
            act: the policy.
            tasks: N tasks, as the environment's `sample_tasks` returns them.
            generators: N random generators, one per task, for its policy noise and the seeds of its environments.
        Returns:
            Episodes with T = horizon.
        Raises:
            ValueError: an observation, reward or action is not finite or has the wrong shape; the error names task and
                step.
            WorkerError: an environment in a worker process raised an error, hung, or lost its process.
        """
        n, b = self.shape
        t_max, o_size, a_size = self.horizon, self.observation_size, self.action_size
        self._check_number(tasks, n)
        seeds = np.concatenate([g.integers(2**31, size=b) for g in generators])
        drawn = np.stack([g.standard_normal((t_max, b, a_size), dtype=np.float32) for g in generators], 1)
        noise = torch.from_numpy(drawn.astype(self.dtype, copy=False))
        observations = np.zeros((n, b, t_max, o_size), self.observed_dtype)
        actions = np.zeros((n, b, t_max, a_size), self.dtype)
        rewards, mask = np.zeros((n, b, t_max), self.dtype), np.zeros((n, b, t_max), self.dtype)
        alive = np.ones((n, b), bool)
        seen, _ = parts(
            self.name,
            RESET_PARTS,
            self.envs.reset(seed=seeds.tolist(), options={"task": _repeated(tasks, b, self.name)}),
        )
        for t in range(t_max):
            seen = self._checked("observation", seen, (n * b, *self.observation_shape), tasks, t, self.observed_dtype)
            current = seen.reshape(n, b, o_size)
            current = current if self.reader.keeps_bytes else self.reader.scaled(current)
            with torch.no_grad():
                action = act(torch.from_numpy(current), noise[t]).numpy()
            self._checked("action", action, (n, b, a_size), tasks, t)
            # Stored before the step, in which environments may change the array.
            observations[:, :, t], actions[:, :, t] = current, action
            seen, reward, *ends, _ = parts(
                self.name, STEP_PARTS, self.envs.step(taken(self.action_space, action.reshape(n * b, a_size)))
            )
            rewards[:, :, t] = self._checked("reward", reward, (n * b,), tasks, t).reshape(n, b)
            mask[:, :, t] = alive
            for name, end in zip(STEP_PARTS[2:], ends, strict=False):
                alive &= self._checked(f"{name} flag", end, (n * b,), tasks, t).reshape(n, b) == 0
            if not alive.any():
                break
        for values in (observations, actions, rewards):
            values[mask == 0] = 0.0
        return Episodes(*(torch.from_numpy(a) for a in (observations, actions, rewards, mask)))

    def _checked(
        self,
        what: str,
        values: Any,
        shape: tuple[int, ...],
        tasks: Sequence[Any],
        step: int,
        dtype: np.dtype | None = None,
    ) -> np.ndarray:
        """Convert values to a dtype, by default the policy's precision; refuse other shapes and numbers not finite."""
        values, dtype = np.asarray(values), dtype or self.dtype
        in_bytes = dtype == np.uint8  # Other numbers would be cut to bytes without a word.
        if values.shape != shape or not (values.dtype == dtype if in_bytes else values.dtype.kind in "biuf"):
            raise ValueError(
                f"{self.name}: {what}s at step {step} have shape {values.shape} and dtype {values.dtype}, expected "
                f"{'bytes' if in_bytes else 'numbers'} of shape {shape}"
            )
        with np.errstate(over="ignore"):
            held = values.astype(dtype, copy=False)
        if not np.isfinite(held).all():
            raise self._not_finite(what, held, values, tasks, step)
        return held

    def _check_number(self, tasks: Any, number: int) -> None:
        found = len(tasks) if hasattr(tasks, "__len__") else repr(tasks)
        if found != number:
            raise ValueError(f"{self.name}: tasks must be {number} of them, got {found}")

    def _not_finite(
        self, what: str, held: np.ndarray, values: np.ndarray, tasks: Sequence[Any], step: int
    ) -> ValueError:
        rows = values.reshape(math.prod(self.shape), *values.shape[2 if what == "action" else 1 :])
        index = int(np.argwhere(~np.isfinite(held.reshape(rows.shape)))[0, 0])
        task, episode = divmod(index, self.shape[1])
        blame = (
            "actions are not finite: the policy's parameters are not, or outgrew what float32 holds; lower the step "
            "sizes, or the scale of rewards and observations"
            if what == "action"
            else "environments must return finite numbers that float32 holds"
        )
        return ValueError(
            f"{self.name}: {what} {rows[index]} at step {step} of task {task} ({tasks[task]}), episode {episode}; "
            f"{blame}"
        )

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()


def listed(tasks: Any, name: str) -> Any:
    """Put tasks in an order: arrays, tensors and sequences stay as they are, a dictionary of arrays is split into rows.

    Args:
        tasks: N tasks.
        name: the environment's name, for errors.
    Returns:
        The tasks; for a dictionary of arrays, a list of N dictionaries.
    Raises:
        ValueError: the tasks have no order, or a dictionary's arrays differ in length.
    """
    if isinstance(tasks, np.ndarray | Tensor | Sequence) or not hasattr(tasks, "__len__"):
        return tasks  # Tasks without a length are refused where tasks are counted.
    if isinstance(tasks, Mapping) and all(
        isinstance(rows, np.ndarray | Tensor) and rows.ndim for rows in tasks.values()
    ):
        lengths = {key: len(rows) for key, rows in tasks.items()}
        if len(set(lengths.values())) == 1:
            return [dict(zip(tasks, row, strict=True)) for row in zip(*tasks.values(), strict=True)]
        found = f"a dictionary of arrays of {lengths} rows"
    else:
        found = f"a {type(tasks).__name__}"
    raise ValueError(
        f"{name}: tasks must be an array with one row a task, a list of anything, or a dictionary of arrays with one "
        f"row a task, got {found}"
    )


def _reader(envs: gymnasium.vector.VectorEnv) -> Reader:
    """A reader of the environment's own observations, or of the vector's where wrappers of the vector change them."""
    own = getattr(envs.unwrapped, "raw_observation_space", envs.single_observation_space)
    reader = Reader(own)
    return reader if reader.flat == envs.single_observation_space else Reader(envs.single_observation_space)


def _repeated(tasks: Sequence[Any], times: int, name: str) -> Any:
    """Repeat each task `times` times; an array stays an array, for environments that read it whole."""
    if isinstance(tasks, np.ndarray):
        return np.repeat(tasks, times, axis=0)
    # Every environment gets its own copy, since it may change its task.
    return [copied_task(name, task) for task in tasks for _ in range(times)]
