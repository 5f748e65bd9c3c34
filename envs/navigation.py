"""2D navigation: a point walks on a plane towards a goal that it cannot see. A task is a goal.

The RL benchmark of MAML (Finn et al. 2017, Sec. 5.3) that L2F repeats (Baik et al. 2020, Figure 5). The equations stand
once, at the top, for any leading batch shape; `Navigation2D` (one episode) and `Navigation2DVector` (many) only keep
state around them. All arithmetic is float32 and elementwise, so the two agree bit for bit.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

MAX_STEP = 0.1  # Largest move per time step along x and along y; longer actions are clipped.
ARRIVAL_RADIUS = 0.01  # The episode ends nearer to the goal than this along x and along y.


# --- The equations ---


def move(position: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Walk one time step: xₜ₊₁ = xₜ + clip(aₜ, ±MAX_STEP).

    Args:
        position: (..., 2), float32.
        action: (..., 2), float32, a velocity per time step; any size.

    Returns:
        (..., 2), the new position.
    """
    return position + np.clip(action, -MAX_STEP, MAX_STEP)


def distance_reward(position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Reward of the released MAML code: r = −|x − g|, at the position after the move.

    Args:
        position: (..., 2).
        goal: (..., 2).

    Returns:
        (...), at most 0.
    """
    return -np.sqrt(_squared_distance(position, goal))


def squared_distance_reward(position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Reward of the papers' text: r = −|x − g|². Arguments and result as in `distance_reward`."""
    return -_squared_distance(position, goal)


def arrived(position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Say whether the goal is reached: |x − g| < ARRIVAL_RADIUS along x and along y.

    Args:
        position: (..., 2).
        goal: (..., 2).

    Returns:
        (...), bool.
    """
    near = np.abs(position - goal) < ARRIVAL_RADIUS
    return near[..., 0] & near[..., 1]


def _squared_distance(position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    # Spelled out: numpy may add up an axis in another order for another batch shape.
    offset = position - goal
    return np.square(offset[..., 0]) + np.square(offset[..., 1])


def sample_goals(num_tasks: int, generator: np.random.Generator, goal_range: float) -> np.ndarray:
    """Draw goals uniformly from the square [−goal_range, goal_range]².

    Args:
        num_tasks: number of goals, N.
        generator: source of randomness.
        goal_range: half the side of the square, positive.

    Returns:
        (N, 2), float32.
    """
    return generator.uniform(-goal_range, goal_range, size=(num_tasks, 2)).astype(np.float32)


# --- One episode ---


class Navigation2D(gymnasium.Env):
    """2D navigation, one episode at a time.

    Observation: the position, (2,). Action: the velocity, (2,), clipped to ±MAX_STEP. The episode terminates on arrival
    and is truncated after `horizon` steps; then it is frozen: a further step changes nothing and gives reward 0.

    `reset(options={"task": goal})` sets the goal, which stays until a later reset brings another one. An environment
    that was never given a task draws one from its own random numbers, at the first reset and at every seeded one.

    Args:
        varying_start: start anywhere in the square of the goals (Meta-SGD's second setting) instead of at the origin.
        squared: reward −|x − g|² instead of −|x − g|.
        goal_range: half the side of the square that goals and varying starts come from.
        horizon: number of time steps, T, after which an episode is truncated.

    Raises:
        ValueError: goal_range or horizon is not positive and finite.
    """

    metadata = {"render_modes": []}

    def __init__(
        self, *, varying_start: bool = False, squared: bool = False, goal_range: float = 0.5, horizon: int = 100
    ) -> None:
        _check_settings(goal_range, horizon)
        self.varying_start = varying_start
        self.goal_range = goal_range
        self.horizon = int(horizon)
        self.observation_space = _observation_space()
        self.action_space = _action_space()
        self._reward = squared_distance_reward if squared else distance_reward
        self._task_given = False
        self._goal = np.full(2, np.nan, dtype=np.float32)  # NaN: no task yet.
        self._position = np.zeros(2, dtype=np.float32)
        self._begun = False
        self._steps = 0
        self._terminated = self._truncated = False

    def sample_tasks(self, num_tasks: int, generator: np.random.Generator) -> np.ndarray:
        """Draw tasks from the environment's distribution: (num_tasks, 2), float32, one goal per row."""
        return sample_goals(num_tasks, generator, self.goal_range)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: restarts the environment's own random numbers.
            options: {"task": goal} with goal (2,) sets the task; without it the task stays.

        Returns:
            The start, (2,), and an empty info.

        Raises:
            ValueError: the task is not a finite array of shape (2,).
        """
        super().reset(seed=seed)
        task = (options or {}).get("task")
        if task is not None:
            self._goal = _checked_task(task, accepted_shapes=((2,),))
            self._task_given = True
        self._position = _start(self.np_random, self.goal_range) if self.varying_start else np.zeros(2, np.float32)
        # After the start, so that giving a task leaves the start of a seed as it was.
        if not self._task_given and (seed is not None or np.isnan(self._goal).any()):
            self._goal = sample_goals(1, self.np_random, self.goal_range)[0]
        self._steps = 0
        self._terminated = self._truncated = False
        self._begun = True
        return self._position.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Walk one time step.

        Args:
            action: (2,), any finite size; clipped to ±MAX_STEP.

        Returns:
            Position (2,), reward, terminated, truncated, and an empty info.

        Raises:
            ValueError: the action is not a finite array of shape (2,), or no episode was begun.
        """
        if not self._begun:
            raise ValueError(_STEP_BEFORE_RESET)
        action = _checked_action(action, shape=(2,))
        if self._terminated or self._truncated:
            return self._position.copy(), 0.0, self._terminated, self._truncated, {}
        self._position = move(self._position, action)
        self._steps += 1
        self._terminated = bool(arrived(self._position, self._goal))
        self._truncated = self._steps >= self.horizon
        reward = float(self._reward(self._position, self._goal))
        return self._position.copy(), reward, self._terminated, self._truncated, {}


# --- Many episodes ---


class Navigation2DVector(VectorEnv):
    """2D navigation, `num_envs` episodes in step with each other, each with its own goal.

    Sub-environment i does bit for bit what `Navigation2D` does with the same settings, seed, task and actions. Finished
    episodes are not reset but frozen: a further step changes nothing and gives them reward 0. Tasks work as there.

    Args:
        num_envs: number of episodes, N.
        varying_start: as in `Navigation2D`.
        squared: as in `Navigation2D`.
        goal_range: as in `Navigation2D`.
        horizon: as in `Navigation2D`.

    Raises:
        ValueError: num_envs, goal_range or horizon is not positive and finite.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}

    def __init__(
        self,
        num_envs: int = 1,
        *,
        varying_start: bool = False,
        squared: bool = False,
        goal_range: float = 0.5,
        horizon: int = 100,
    ) -> None:
        _check_settings(goal_range, horizon)
        if not _is_positive_integer(num_envs):
            raise ValueError(f"num_envs must be a positive number of environments, got {num_envs!r}")
        self.num_envs = num_envs
        self.varying_start = varying_start
        self.goal_range = goal_range
        self.horizon = int(horizon)
        self.single_observation_space = _observation_space()
        self.single_action_space = _action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._reward = squared_distance_reward if squared else distance_reward
        self._generators: dict[int, np.random.Generator] = {}  # Made when first needed.
        self._task_given = np.zeros(num_envs, dtype=bool)
        self._goal = np.full((num_envs, 2), np.nan, dtype=np.float32)  # NaN: no task yet.
        self._position = np.zeros((num_envs, 2), dtype=np.float32)
        self._begun = False
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._terminated = np.zeros(num_envs, dtype=bool)
        self._truncated = np.zeros(num_envs, dtype=bool)

    def sample_tasks(self, num_tasks: int, generator: np.random.Generator) -> np.ndarray:
        """Draw tasks from the environment's distribution: (num_tasks, 2), float32, one goal per row."""
        return sample_goals(num_tasks, generator, self.goal_range)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin episodes, everywhere or where options["reset_mask"] says so.

        Args:
            seed: s gives sub-environment i the seed s + i; a sequence names each one's seed.
            options: {"task": goals} with goals (N, 2), or one goal (2,) for all, sets the tasks; without it they stay.
                {"reset_mask": mask} with mask (N,), bool, leaves the others, tasks and random numbers included, alone.

        Returns:
            Positions, (N, 2), and an empty info.

        Raises:
            ValueError: a task, seed or mask has the wrong shape, a task is not finite, or the first mask has gaps.
            TypeError: the mask is not an array of bool.
        """
        options = options or {}
        mask = self._checked_mask(options.get("reset_mask"))
        seeds = self._spread_seeds(seed)
        if options.get("task") is not None:
            tasks = _checked_task(options["task"], accepted_shapes=((self.num_envs, 2), (2,)))
            self._goal[mask] = np.broadcast_to(tasks, (self.num_envs, 2))[mask]
            self._task_given |= mask
        self._position[mask] = 0.0
        self._draw(mask, seeds)
        self._steps[mask] = 0
        self._terminated[mask] = False
        self._truncated[mask] = False
        self._begun = True
        return self._position.copy(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Walk one time step in every unfinished episode.

        Args:
            actions: (N, 2), any finite size; clipped to ±MAX_STEP.

        Returns:
            Positions (N, 2) and rewards (N,), float32; terminated (N,) and truncated (N,), bool; and an empty info.

        Raises:
            ValueError: the actions are not a finite array of shape (N, 2), or no episodes were begun.
        """
        if not self._begun:
            raise ValueError(_STEP_BEFORE_RESET)
        actions = _checked_action(actions, shape=(self.num_envs, 2))
        running = ~(self._terminated | self._truncated)
        self._position = np.where(running[:, None], move(self._position, actions), self._position)
        self._steps += running
        self._terminated |= running & arrived(self._position, self._goal)
        self._truncated |= running & (self._steps >= self.horizon)
        rewards = np.where(running, self._reward(self._position, self._goal), np.float32(0.0))
        return self._position.copy(), rewards, self._terminated.copy(), self._truncated.copy(), {}

    def _draw(self, mask: np.ndarray, seeds: Sequence[int | None]) -> None:
        """Draw what `Navigation2D.reset` draws, in its order, from each sub-environment's own generator.

        With a fixed start, an environment that was given its task never draws again: its seed is not even expanded.
        """
        seeded = np.array([seed is not None for seed in seeds])
        task_missing = ~self._task_given & (seeded | np.isnan(self._goal[:, 0]))
        for i in np.flatnonzero(mask & (self.varying_start | task_missing)).tolist():
            if seeded[i] or i not in self._generators:
                self._generators[i], _ = seeding.np_random(seeds[i])
            if self.varying_start:
                self._position[i] = _start(self._generators[i], self.goal_range)
            if task_missing[i]:
                self._goal[i] = sample_goals(1, self._generators[i], self.goal_range)[0]

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


# --- What both share at the boundary ---

_STEP_BEFORE_RESET = "step needs a running episode, got none; call reset() first"


def _observation_space() -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (2,), np.float32)


def _action_space() -> spaces.Box:
    return spaces.Box(-MAX_STEP, MAX_STEP, (2,), np.float32)


def _start(generator: np.random.Generator, goal_range: float) -> np.ndarray:
    """Draw a start, (2,): Meta-SGD's second setting takes it from the square of the goals."""
    return sample_goals(1, generator, goal_range)[0]


def _is_positive_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) > 0


def _check_settings(goal_range: float, horizon: int) -> None:
    if not (np.isfinite(goal_range) and goal_range > 0):
        raise ValueError(f"goal_range must be positive and finite, got {goal_range}; the papers use 0.5")
    if not _is_positive_integer(horizon):
        raise ValueError(f"horizon must be a positive number of steps, got {horizon}")


def _checked_task(task: np.ndarray, accepted_shapes: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Copy the task as float32, or explain why it cannot be one."""
    goal = np.array(task, dtype=np.float32)
    if goal.shape not in accepted_shapes:
        accepted = " or ".join(str(shape) for shape in accepted_shapes)
        raise ValueError(f"task must be a goal of shape {accepted}, got shape {goal.shape}; sample_tasks() draws goals")
    if not np.isfinite(goal).all():
        raise ValueError(f"task must be finite, got {goal.tolist()}; check where the goal comes from")
    return goal


def _checked_action(action: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the action as float32, or explain why it cannot be one."""
    action = np.asarray(action, dtype=np.float32)
    if action.shape != shape:
        raise ValueError(f"action must have shape {shape}, got {action.shape}, one velocity (x, y) per environment")
    if not np.isfinite(action).all():
        bad = np.flatnonzero(~np.isfinite(action).all(axis=-1))
        where = f" in environments {bad.tolist()}" if action.ndim > 1 else f", {action.tolist()}"
        raise ValueError(f"action must be finite, got NaN or infinity{where}; check the policy's parameters and inputs")
    return action
