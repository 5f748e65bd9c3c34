"""Environments whose task is set at reset, for one episode and for many that step together.

A `Domain` describes a family of tasks: spaces, horizon, starts, and the distribution of tasks. `TaskEnv` runs one of
its episodes and `TaskVectorEnv` many; the domains' files add the dynamics of a time step. Both freeze finished
episodes: a further step changes nothing and gives reward 0.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

TaskKind = Literal["goal", "direction", "speed"]


@dataclass(frozen=True, kw_only=True)
class Domain(ABC):
    """A family of tasks on one environment. Its fields are the environment's arguments.

    It also holds, as plain data, the names, labels and ranges with which tasks are reported, drawn and chosen.

    Raises:
        ValueError: the horizon is not a positive whole number.
    """

    horizon: int = 100
    """Time steps T after which an episode is truncated."""

    dtype: ClassVar[type[np.floating]] = np.float64
    """The dtype of the arithmetic, and of tasks, actions, observations and rewards."""
    task_meaning: ClassVar[str]
    """A description of a task for error messages, such as "a goal"."""
    task_shape: ClassVar[tuple[int, ...]]
    """The shape of one task; () for a number."""
    task_kind: ClassVar[TaskKind | None] = None
    """The way in which pictures show a task: as a `goal` on the plane, where observations are positions, as a
    `direction` along a track, or as a `speed` along it in m/s; None where there is no picture of tasks."""
    task_names: ClassVar[tuple[str, ...]] = ()
    """The names of a task's numbers, for tasks that have a kind."""
    task_axis: ClassVar[str] = ""
    """The label, with its unit, of an axis along which tasks lie, for directions and speeds."""
    caption: ClassVar[str] = ""
    """The caption of a report's picture of episodes, for tasks that have a kind."""

    def __post_init__(self) -> None:
        check_count("horizon", self.horizon, "steps")

    @property
    def random_start(self) -> bool:
        """Whether the starts of episodes are drawn at random."""
        return True

    @property
    def task_bounds(self) -> tuple[float, float]:
        """The smallest and the largest number of tasks in training, for tasks that have a kind."""
        raise NotImplementedError

    @property
    def speed_column(self) -> int:
        """The column of the observation that holds the forward speed in m/s, for directions and speeds."""
        raise NotImplementedError

    @abstractmethod
    def observation_space(self) -> spaces.Box:
        """Return the observation space of one environment."""

    @abstractmethod
    def action_space(self) -> spaces.Box:
        """Return the action space of one environment."""

    @abstractmethod
    def sample_tasks(self, num_tasks: int, generator: np.random.Generator) -> np.ndarray:
        """Draw tasks: (num_tasks, *task_shape)."""

    @abstractmethod
    def start(self, generator: np.random.Generator | None) -> np.ndarray:
        """Return the state in which an episode begins, (S,).

        Args:
            generator: the source of random numbers; None where starts are not random.
        """

    def checked_tasks(self, tasks: Any, leading: tuple[int, ...] = ()) -> np.ndarray:
        """Copy tasks into an array (*leading, *task_shape).

        Args:
            tasks: one task for each index of the leading shape, or a single task for all.
            leading: the leading shape.
        Raises:
            ValueError: the tasks have another shape, or are not finite.
        """
        accepted = dict.fromkeys([(*leading, *self.task_shape), self.task_shape])
        try:
            checked = np.array(tasks, dtype=self.dtype)
        except (TypeError, ValueError):
            raise ValueError(f"task must be {self.task_meaning}, got {tasks!r}; sample_tasks() draws tasks") from None
        if checked.shape not in accepted:
            shapes = " or ".join(str(shape) for shape in accepted)
            raise ValueError(
                f"task must be {self.task_meaning} of shape {shapes}, got shape {checked.shape}; sample_tasks() draws "
                "tasks"
            )
        if not np.isfinite(checked).all():
            raise ValueError(f"task must be finite, got {checked.tolist()}; check where it comes from")
        return np.broadcast_to(checked, (*leading, *self.task_shape)).copy()

    def checked_action(self, action: Any, shape: tuple[int, ...]) -> np.ndarray:
        """Convert an action (A,), or one per environment (N, A), to the domain's dtype.

        Args:
            action: the action.
            shape: the accepted shape.
        Raises:
            ValueError: the action has another shape, or is not finite.
        """
        # One memory layout for all: numpy sums in an order that depends on the layout.
        action = np.asarray(action, dtype=self.dtype, order="C")
        if action.shape != shape:
            raise ValueError(f"action must have shape {shape}, got {action.shape}")
        if not np.isfinite(action).all():
            bad = np.flatnonzero(~np.isfinite(action).all(axis=-1))
            where = f" in environments {bad.tolist()}" if action.ndim > 1 else f", {action.tolist()}"
            raise ValueError(
                f"action must be finite, got NaN or infinity{where}; check the policy's parameters and inputs"
            )
        return action


def domain_class(address: type[Domain] | str) -> type[Any]:
    """Return a domain's class, given as such or by its address, such as `ant:Velocity` for that class in ant.py."""
    if isinstance(address, type):
        return address
    module, _, name = address.partition(":")
    found: type[Domain] = getattr(importlib.import_module(f".{module}", __package__), name)
    return found


def check_count(name: str, value: Any, unit: str) -> None:
    """Refuse anything but a positive whole number.

    Args:
        name: the name that the error uses.
        value: the number.
        unit: the counted things, in the plural.
    Raises:
        ValueError: the value is no such number.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of {unit}, 1 or more, got {value!r}")


class TaskEnv(gymnasium.Env):
    """An environment that runs one episode at a time.

    `reset(options={"task": task})` sets the task, which stays until a later reset sets another one. An environment
    without a given task draws one from its own random numbers at the first reset and at every reset with a seed.

    Args:
        domain: the family of tasks.
    """

    metadata = {"render_modes": []}

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.observation_space, self.action_space = domain.observation_space(), domain.action_space()
        self._action_shape = domain.action_space().shape
        self.task = np.zeros(domain.task_shape, domain.dtype)
        self._has_task = self._task_given = False
        self._begun = False
        self._steps = 0
        self._terminated = self._truncated = False

    def sample_tasks(self, num_tasks: int, generator: np.random.Generator) -> np.ndarray:
        """Draw tasks from the environment's distribution: (num_tasks, *task_shape)."""
        return self.domain.sample_tasks(num_tasks, generator)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: the seed of the environment's own random numbers, which restart; None lets them go on.
            options: {"task": task} sets the task; without it the task stays.
        Returns:
            The first observation, (O,), and an empty info.
        Raises:
            ValueError: the task has the wrong shape, or is not finite.
        """
        super().reset(seed=seed)
        task = (options or {}).get("task")
        if task is not None:
            self.task = self.domain.checked_tasks(task)
            self._has_task = self._task_given = True
        start = self.domain.start(self.np_random if self.domain.random_start else None)
        # After the start, so that giving a task leaves the start of a seed as it was.
        if not self._task_given and (seed is not None or not self._has_task):
            self.task = self.domain.sample_tasks(1, self.np_random)[0]
            self._has_task = True
        self._place(start)
        self._steps = 0
        self._terminated = self._truncated = False
        self._begun = True
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one time step.

        Args:
            action: (A,), finite.
        Returns:
            Observation (O,), reward, terminated, truncated, and an info.
        Raises:
            ValueError: the action is not a finite array of shape (A,), or no episode was begun.
        """
        if not self._begun:
            raise ValueError(STEP_BEFORE_RESET)
        action = self.domain.checked_action(action, self._action_shape)
        if self._terminated or self._truncated:
            return self._observe(), 0.0, self._terminated, self._truncated, {}
        reward, self._terminated, info = self._advance(action)
        self._steps += 1
        self._truncated = self._steps >= self.domain.horizon
        return self._observe(), reward, self._terminated, self._truncated, info

    def _place(self, start: np.ndarray) -> None:
        """Put the environment into a start, under `self.task`."""
        raise NotImplementedError

    def _advance(self, action: np.ndarray) -> tuple[float, bool, dict[str, Any]]:
        """Take one time step of a running episode: reward, terminated, info."""
        raise NotImplementedError

    def _observe(self) -> np.ndarray:
        """Return the present observation, in a new array."""
        raise NotImplementedError


class TaskVectorEnv(VectorEnv):
    """`num_envs` episodes that step together, each with its own task.

    Sub-environment i does what the domain's `TaskEnv` does with the same settings, seed, task and actions.

    Args:
        num_envs: N, the number of episodes.
        domain: the family of tasks.
    Raises:
        ValueError: num_envs is not a positive whole number.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}

    def __init__(self, num_envs: int, domain: Domain) -> None:
        check_count("num_envs", num_envs, "environments")
        self.num_envs, self.domain = num_envs, domain
        self.single_observation_space, self.single_action_space = domain.observation_space(), domain.action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._action_shape = (num_envs, *domain.action_space().shape)
        self.tasks = np.zeros((num_envs, *domain.task_shape), domain.dtype)
        self._has_task = np.zeros(num_envs, dtype=bool)
        self._task_given = np.zeros(num_envs, dtype=bool)
        self._generators: dict[int, np.random.Generator] = {}  # Made when first needed.
        self._begun = False
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._terminated = np.zeros(num_envs, dtype=bool)
        self._truncated = np.zeros(num_envs, dtype=bool)

    def sample_tasks(self, num_tasks: int, generator: np.random.Generator) -> np.ndarray:
        """Draw tasks from the environment's distribution: (num_tasks, *task_shape)."""
        return self.domain.sample_tasks(num_tasks, generator)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every sub-environment, or in those that options["reset_mask"] selects.

        Args:
            seed: an integer s, which gives sub-environment i the seed s + i, or a sequence of one seed for each.
            options: {"task": tasks} with tasks (N, *task_shape), or one task for all, sets the tasks; without it they
                stay. {"reset_mask": mask} with mask (N,), bool, selects sub-environments; the others do not change,
                nor do their tasks and random numbers.
        Returns:
            Observations, (N, O), and an empty info.
        Raises:
            ValueError: a task, seed or mask has the wrong shape, a task is not finite, or the first mask has gaps.
            TypeError: the mask is not an array of bool.
        """
        options = options or {}
        mask = self._checked_mask(options.get("reset_mask"))
        seeds = self._spread_seeds(seed)
        if options.get("task") is not None:
            self.tasks[mask] = self.domain.checked_tasks(options["task"], (self.num_envs,))[mask]
            self._task_given |= mask
            self._has_task |= mask
        rows = np.flatnonzero(mask)
        self._place(rows, self._starts(rows, seeds))
        self._steps[mask] = 0
        self._terminated[mask] = False
        self._truncated[mask] = False
        self._begun = True
        return self._observe(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one time step in every unfinished episode.

        Args:
            actions: (N, A), finite.
        Returns:
            Observations (N, O) and rewards (N,); terminated (N,) and truncated (N,), bool; and an info.
        Raises:
            ValueError: the actions are not a finite array of shape (N, A), or no episodes were begun.
        """
        if not self._begun:
            raise ValueError(STEP_BEFORE_RESET)
        actions = self.domain.checked_action(actions, self._action_shape)
        running = ~(self._terminated | self._truncated)
        rewards, ended, info = self._advance(actions, running)
        self._steps += running
        self._terminated |= running & ended
        self._truncated |= running & (self._steps >= self.domain.horizon)
        rewards = np.where(running, rewards, self.domain.dtype(0.0))
        return self._observe(), rewards, self._terminated.copy(), self._truncated.copy(), info

    def _place(self, rows: np.ndarray, starts: np.ndarray) -> None:
        """Put some sub-environments, by number, into starts (n, S), under their `self.tasks`."""
        raise NotImplementedError

    def _advance(self, actions: np.ndarray, running: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one time step where `running`: rewards (N,), terminated (N,), info; other entries are ignored."""
        raise NotImplementedError

    def _observe(self) -> np.ndarray:
        """Return the present observations, (N, O), in a new array."""
        raise NotImplementedError

    def _starts(self, rows: np.ndarray, seeds: Sequence[int | None]) -> np.ndarray:
        """Draw as `TaskEnv.reset` does, in the same order, from each sub-environment's own generator.

        With a fixed start and a given task nothing is drawn, so the seed is not expanded either.
        """
        random_start = self.domain.random_start
        fixed = None if random_start else self.domain.start(None)
        starts = []
        for i in rows.tolist():
            task_missing = not self._task_given[i] and (seeds[i] is not None or not self._has_task[i])
            if (random_start or task_missing) and (seeds[i] is not None or i not in self._generators):
                self._generators[i], _ = seeding.np_random(seeds[i])
            starts.append(fixed if fixed is not None else self.domain.start(self._generators[i]))
            if task_missing:
                self.tasks[i] = self.domain.sample_tasks(1, self._generators[i])[0]
                self._has_task[i] = True
        return np.array(starts)

    def _spread_seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(
                f"seed must be one integer or one per environment ({self.num_envs}), got {len(seed)} of them; "
                "pass one integer s to use s, s + 1, …"
            )
        return [None if s is None else int(s) for s in seed]

    def _checked_mask(self, mask: np.ndarray | None) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, dtype=bool)
        if not isinstance(mask, np.ndarray) or mask.dtype != bool:
            kind = f"an array of {mask.dtype}" if isinstance(mask, np.ndarray) else f"a {type(mask).__name__}"
            raise TypeError(f"reset_mask must be a numpy array of bool, got {kind}; pass np.array(mask, bool)")
        if mask.shape != (self.num_envs,):
            raise ValueError(f"reset_mask must have shape ({self.num_envs},), one per environment, got {mask.shape}")
        if not self._begun and not mask.all():
            raise ValueError(
                f"reset_mask must choose every environment at the first reset, got {mask}; reset without a mask first"
            )
        return mask


STEP_BEFORE_RESET = "step needs a running episode, got none; call reset() first"
