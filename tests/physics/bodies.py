"""The simulated bodies: what is known of each without looking at its code, and how tests make one or many."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest

import metarl_l2f.envs  # noqa: F401  (registers the environments)
from metarl_l2f.envs.mujoco_batch import MuJoCoEnv, MuJoCoVectorEnv


@dataclass(frozen=True)
class Facts:
    """What is known of one environment without looking at its code."""

    original: str
    """gymnasium's environment of the same body."""
    observation: int
    """Numbers observed."""
    action: int
    """Actuators."""
    task: Any
    """One of its tasks; under this one its reward is gymnasium's, where `same_reward` says so."""
    another_task: Any
    height: int
    """Place of the torso's vertical velocity in qvel."""
    ends: bool = True
    """Whether a fall ends the episode."""
    same_reward: bool = True
    original_arguments: dict[str, Any] = field(default_factory=dict)
    """That make gymnasium's reward this one."""


CHEETAH = partial(Facts, "HalfCheetah-v5", 20, 6, height=1, ends=False, original_arguments={"ctrl_cost_weight": 0.05})
ANT = partial(Facts, "Ant-v5", height=2, original_arguments={"ctrl_cost_weight": 0.005})
FACTS = {
    "HalfCheetahDir": CHEETAH(task=1.0, another_task=-1.0),
    "HalfCheetahVel": CHEETAH(task=0.5, another_task=1.7, same_reward=False),
    "AntDir": ANT(27, 8, task=1.0, another_task=-1.0),
    "AntVel": ANT(27, 8, task=0.5, another_task=2.5, same_reward=False),
    "HopperRandParams": Facts("Hopper-v5", 11, 3, np.zeros(8), np.linspace(-1, 1, 8), height=1),
    "Walker2dRandParams": Facts("Walker2d-v5", 17, 6, np.zeros(14), np.linspace(-1, 1, 14), height=1),
}
every_environment = pytest.mark.parametrize("name", FACTS)


def single(name: str, **arguments) -> MuJoCoEnv:
    return gymnasium.make(f"metarl_l2f/{name}-v0", disable_env_checker=True, **arguments).unwrapped


def batch(name: str, num_envs: int, **arguments) -> MuJoCoVectorEnv:
    return gymnasium.make_vec(f"metarl_l2f/{name}-v0", num_envs=num_envs, **arguments)


def random_actions(name: str, *leading: int, scale: float = 1.0) -> np.ndarray:
    """Some of them beyond the actuators' range."""
    return np.random.default_rng(0).normal(scale=scale, size=(*leading, FACTS[name].action))


rand_params_environments = pytest.mark.parametrize("name", ["HopperRandParams", "Walker2dRandParams"])
