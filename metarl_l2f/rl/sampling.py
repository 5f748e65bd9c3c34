"""Rollouts: the only code that steps environments.

One policy call per time step for all N·B environments. A finished episode is masked, not replaced. Policy noise is
drawn before the rollout from generators keyed by task, so the same episodes come out whatever the number of workers.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from .episodes import Episodes

EnvSource = str | Callable[..., gymnasium.Env]
"""A registered environment id, or a factory."""
Act = Callable[[Tensor, Tensor], Tensor]
"""(observations (N, B, O), noise (N, B, A)) → actions (N, B, A)."""


class TaskRow(gymnasium.Wrapper):
    """Gives sub-environment `row` of a vector its own task out of `reset(options={"task": tasks})`.

    It also refuses observations of the wrong shape here, where task and step are known: gymnasium's vectors would only
    fail to stack them.
    """

    def __init__(self, env: gymnasium.Env, row: int) -> None:
        super().__init__(env)
        self.row, self.task, self.steps = row, None, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if options and "task" in options:
            self.task = options["task"][self.row]
            options = {**options, "task": self.task}
        self.steps = 0
        observation, info = self.env.reset(seed=seed, options=options)
        return self._checked(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.steps += 1
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._checked(observation), reward, terminated, truncated, info

    def _checked(self, observation: Any) -> Any:
        expected = self.observation_space.shape
        if expected is not None and np.shape(observation) != expected:
            raise ValueError(
                f"{type(self.unwrapped).__name__}: the observation at step {self.steps} of task {self.task} has shape "
                f"{np.shape(observation)}, expected {expected}, that of its observation_space"
            )
        return observation


def vectorise(env: EnvSource, num_envs: int, **kwargs: Any) -> gymnasium.vector.VectorEnv:
    """`num_envs` copies of an environment that step together.

    Args:
        env: a registered id, whose own batched version is used where it has one, or a factory.
        num_envs: copies.
        kwargs: passed to the environment.
    Returns:
        A vector environment whose `reset(options={"task": tasks})` takes one task per copy.
    """
    if isinstance(env, str) and gymnasium.spec(env).vector_entry_point is not None:
        return gymnasium.make_vec(env, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs)
    make = partial(gymnasium.make, env) if isinstance(env, str) else env

    def factory(row: int) -> Callable[[], gymnasium.Env]:
        return lambda: TaskRow(make(**kwargs), row)

    return gymnasium.vector.SyncVectorEnv([factory(row) for row in range(num_envs)])


class Sampler:
    """Collects episodes of N tasks × B episodes from one vector environment.

    Args:
        envs: N·B environments; numbers n·B … n·B + B − 1 belong to task n.
        num_tasks: N.
        episodes_per_task: B.
        horizon: T, steps at which every episode is cut.
    """

    def __init__(self, envs: gymnasium.vector.VectorEnv, num_tasks: int, episodes_per_task: int, horizon: int) -> None:
        self.envs, self.horizon = envs, horizon
        self.name = _name(envs)
        if horizon < 1:
            raise ValueError(f"horizon must be a positive number of steps, got {horizon}")
        if envs.num_envs != num_tasks * episodes_per_task:
            raise ValueError(
                f"{self.name}: {num_tasks} tasks × {episodes_per_task} episodes need {num_tasks * episodes_per_task} "
                f"environments, got {envs.num_envs}"
            )
        self.shape = (num_tasks, episodes_per_task)
        self.observation_shape = self._box_shape("observation", envs.single_observation_space)
        self.action_shape = self._box_shape("action", envs.single_action_space)
        self.observation_size, self.action_size = math.prod(self.observation_shape), math.prod(self.action_shape)

    def sample_tasks(self, number: int, generator: np.random.Generator) -> Any:
        """Draw tasks from the environment's own distribution, `env.sample_tasks(number, generator)`."""
        owner = self.envs if hasattr(self.envs, "sample_tasks") else _first(self.envs)
        if not hasattr(owner, "sample_tasks"):
            raise ValueError(
                f"{self.name} has no sample_tasks(number, generator), which draws that many of its tasks; add it"
            )
        return owner.sample_tasks(number, generator)

    def sample(self, act: Act, tasks: Sequence[Any], generators: Sequence[np.random.Generator]) -> Episodes:
        """One episode in every environment.

        Args:
            act: the policy.
            tasks: N tasks, as the environment's `sample_tasks` gives them.
            generators: one per task, for its policy noise and its environments' seeds.
        Returns:
            Episodes with T = horizon.
        Raises:
            ValueError: an observation or reward is not finite or has the wrong shape; names task and step.
        """
        n, b = self.shape
        t_max, o_size = self.horizon, self.observation_size
        seeds = np.concatenate([g.integers(2**31, size=b) for g in generators])
        noise = torch.from_numpy(
            np.stack([g.standard_normal((t_max, b, self.action_size), dtype=np.float32) for g in generators], 1)
        )
        observations = np.zeros((n, b, t_max, o_size), np.float32)
        actions = np.zeros((n, b, t_max, self.action_size), np.float32)
        rewards, mask = np.zeros((n, b, t_max), np.float32), np.zeros((n, b, t_max), np.float32)
        per_env = np.repeat(np.asarray(tasks), b, axis=0)
        seen, _ = self.envs.reset(seed=seeds.tolist(), options={"task": per_env})
        alive = np.ones(n * b, bool)
        for t in range(t_max):
            seen = self._checked("observation", seen, (n * b, *self.observation_shape), tasks, t)
            current = seen.reshape(n, b, o_size).astype(np.float32, copy=False)
            with torch.no_grad():
                action = act(torch.from_numpy(current), noise[t]).numpy()
            taken = action.reshape(n * b, *self.action_shape)
            seen, reward, terminated, truncated, _ = self.envs.step(taken)
            reward = self._checked("reward", reward, (n * b,), tasks, t)
            living = alive.reshape(n, b)
            observations[:, :, t] = current * living[..., None]
            actions[:, :, t] = action * living[..., None]
            rewards[:, :, t] = (reward * alive).reshape(n, b)
            mask[:, :, t] = living
            alive &= ~(terminated | truncated)
            if not alive.any():
                break
        return Episodes(*(torch.from_numpy(a) for a in (observations, actions, rewards, mask)))

    def _box_shape(self, role: str, space: gymnasium.Space) -> tuple[int, ...]:
        if not isinstance(space, gymnasium.spaces.Box):
            raise ValueError(f"{self.name}: the {role} space must be a Box, got {space}; wrap the environment")
        return space.shape

    def _checked(self, what: str, values: Any, shape: tuple[int, ...], tasks: Sequence[Any], step: int) -> np.ndarray:
        values = np.asarray(values)
        if values.shape != shape:
            raise ValueError(f"{self.name}: {what}s at step {step} have shape {values.shape}, expected {shape}")
        if not np.isfinite(values).all():
            index = int(np.argwhere(~np.isfinite(values))[0, 0])
            task = index // self.shape[1]
            raise ValueError(
                f"{self.name}: {what} {values[index]} at step {step} of task {task} ({tasks[task]}), episode "
                f"{index % self.shape[1]}; environments must return finite numbers"
            )
        return values

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()


def _first(envs: gymnasium.vector.VectorEnv) -> Any:
    """One environment of a vector, or the vector itself where it is one piece."""
    return envs.envs[0].unwrapped if isinstance(envs, gymnasium.vector.SyncVectorEnv) else envs.unwrapped


def _name(envs: gymnasium.vector.VectorEnv) -> str:
    """What errors call the environment: its registered id, or its class."""
    return envs.spec.id if envs.spec is not None else type(_first(envs)).__name__
