"""Many copies of any gymnasium environment as one vector environment, in this process or in worker processes.

`Copies` steps its environments one after another. `Workers` runs one `Copies` per process, for a share of the
environments, so no result depends on the number of workers.
"""

import copy
import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import VectorEnv

from ..checks import check_count, check_number
from .copies import Copies
from .workers import Workers

EnvSource = str | EnvSpec | Callable[..., gymnasium.Env]
"""A registered id, its specification, or a callable that makes an environment: a class, a function, a partial."""

VECTOR_OPTIONS = {"num_envs", "vectorization_mode", "vector_kwargs", "wrappers"}  # Options of gymnasium.make_vec.
WRAPPING_OPTIONS = {"max_episode_steps", "disable_env_checker"}  # Options of gymnasium.make that add wrappers.


def vectorise(
    env: EnvSource, num_envs: int, *, workers: int = 0, timeout: float = 60.0, threads: int = 1, **kwargs: Any
) -> VectorEnv:
    """Make `num_envs` copies of an environment that step together.

    The batched version that an id is registered with (its vector_entry_point) is used if it is a class with
    `sample_tasks`, that is, if it supports tasks; `workers` and `timeout` then have no effect. All other environments
    are copied. Observation spaces other than Box are flattened. A finished episode is frozen: its environment is not
    stepped. Infos are dropped.

    Args:
        env: a registered id, its specification (`gymnasium.spec(id)`), a class, or any function that returns a new
            environment; `functools.partial(gymnasium.make, id)` is equivalent to the id.
        num_envs: the number of copies.
        workers: the number of processes that share the copies; with 0 they are stepped in this process. It changes no
            result.
        timeout: the longest time, in seconds, that a worker may take to build, reset or step its share once.
        threads: the number of threads of a batched version that has an attribute of this name. It changes no result.
        kwargs: the environment's own arguments.
    Returns:
        A vector environment whose `reset(options={"task": tasks})` takes one task per copy.
    Raises:
        ValueError: a number is out of range, or the environment's spaces or its reset cannot be used here.
        TypeError: `env` makes no environments, or cannot be sent to worker processes.
        WorkerError: the environment could not be built in a worker.
    """
    check_count("num_envs", num_envs)
    check_count("workers", workers, least=0)
    check_count("threads", threads)
    check_number("timeout", timeout, "(0, inf)", "seconds")
    env, kwargs = _named(env, kwargs)
    if isinstance(env, gymnasium.Env) or not (isinstance(env, str | EnvSpec) or callable(env)):
        raise TypeError(
            f"env must be a registered id, a class, or a function that returns an environment, got {env!r}; several "
            "copies are needed, so pass its class or a function"
        )
    if isinstance(env, str | EnvSpec):
        specification = _specification(env)
        if _knows_tasks(specification, kwargs):
            mode = "vector_entry_point"
            batched = gymnasium.make_vec(specification, num_envs=num_envs, vectorization_mode=mode, **kwargs)
            if hasattr(batched.unwrapped, "threads"):
                batched.unwrapped.threads = threads
            return batched
        make = partial(gymnasium.make, specification, **kwargs)
    else:
        make = partial(env, **kwargs)
    if workers == 0:
        return Copies(make, range(num_envs))
    return Workers(make, num_envs, min(workers, num_envs), timeout)


def name_of(envs: VectorEnv) -> str:
    """Return the environment's name for errors: its registered id, or its class."""
    vector = envs.unwrapped
    if isinstance(vector, Copies | Workers):
        return vector.name
    return vector.spec.id if vector.spec is not None else type(vector).__name__


# --- Sources ---


def id_of(env: EnvSource) -> str:
    """Return the registered id that a source names, without the module to import, or "" where it names none."""
    named, _ = _named(env, {})
    if isinstance(named, EnvSpec):
        return named.id
    return named.rpartition(":")[2] if isinstance(named, str) else ""


def _named(env: EnvSource, kwargs: dict[str, Any]) -> tuple[EnvSource, dict[str, Any]]:
    """Split a partial call of gymnasium.make or make_vec into its id or specification and its other arguments."""
    maker, args, given = (env.func, env.args, env.keywords) if isinstance(env, partial) else (env, (), {})
    if maker not in (gymnasium.make, gymnasium.make_vec):
        return env, kwargs
    try:
        arguments = inspect.signature(maker).bind(*args, **(given | kwargs)).arguments
    except TypeError as error:
        raise TypeError(f"{env!r} makes no environment: {error}; give the id itself") from None
    found = arguments.pop("id")
    arguments |= arguments.pop("kwargs", {})
    if taken := sorted(VECTOR_OPTIONS & arguments.keys()):
        raise ValueError(
            f"{', '.join(taken)} of {env!r} cannot be used here, for the library decides; give the id alone"
        )
    return found, arguments


def _specification(env: str | EnvSpec) -> EnvSpec:
    """The specification of an id; unlike the id, it is valid in a process that did not register it."""
    if isinstance(env, str):
        module, _, name = env.rpartition(":")
        if module:
            importlib.import_module(module)
        env = gymnasium.spec(name)
    found = copy.deepcopy(env)
    for option in ("num_envs", "vectorization_mode"):  # Set where the specification is that of a vector environment.
        found.kwargs.pop(option, None)
    if isinstance(found.entry_point, str) and found.entry_point.startswith("__main__:"):
        found.entry_point = cast(Any, load_env_creator(found.entry_point))
    return found


def _knows_tasks(specification: EnvSpec, kwargs: dict[str, Any]) -> bool:
    """Whether a vector entry point is a class that draws tasks; gymnasium's own, such as CartPole's, do not.

    A vector entry point has no wrappers, nor the time limit and the checker that gymnasium.make would add as wrappers.
    """
    if specification.additional_wrappers or kwargs.keys() & WRAPPING_OPTIONS:
        return False
    entry_point = specification.vector_entry_point
    return hasattr(load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point, "sample_tasks")
