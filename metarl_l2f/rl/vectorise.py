"""Many copies of any gymnasium environment as one vector environment: in this process or spread over worker processes.

`Copies` steps its environments one after another. `Workers` runs one `Copies` a process, for its share of the
environments, so what an environment returns does not depend on the number of workers.
"""

import copy
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import VectorEnv

from .copies import Copies
from .workers import Workers

EnvSource = str | Callable[..., gymnasium.Env]
"""A registered environment id, or what makes an environment when called: a class, a function, a partial."""


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
