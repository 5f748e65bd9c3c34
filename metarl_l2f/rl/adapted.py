"""Policies adapted to one task, which act outside of the library and can be saved to a file."""

import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces

from ..core.parameters import Params, initialisation
from ..networks.policies import Policy, policy_from_layout
from ..training.checkpoint import CheckpointError, load, save
from .spaces import ActionSpace, Reader, from_plain, taken, to_plain


@dataclass(frozen=True)
class AdaptedPolicy:
    """A policy adapted to one task: `action = policy(observation)`.

    `policy.save(path)` writes a file that holds data alone, and `load_policy(path)` reads it; pickle and torch.save
    work too.
    """

    network: Policy
    """The network that computes actions from `params`; the values stored in the module itself are not used."""
    params: Params
    """The adapted parameters, by name; a copy, which further training does not change."""
    reader: Reader
    """The conversion of observations into the network's input."""
    action_space: ActionSpace
    """The environment's own action space, a gymnasium Box or Discrete."""

    def __repr__(self) -> str:
        return f"AdaptedPolicy({type(self.network).__name__} for {self.action_space})"

    def __call__(self, observation: Any, generator: np.random.Generator | None = None) -> Any:
        """Choose an action of the action space, clipped to a Box's bounds, as in training.

        Args:
            observation: one observation, as the environment returns it, or flattened.
            generator: the source of the action's noise, as in training; with None the likeliest action is chosen.
        Returns:
            An integer for a Discrete space; otherwise an array of the Box's shape and dtype, rounded where the dtype is
            an integer type.
        Raises:
            ValueError: the observation has another shape.
        """
        dtype = next(iter(self.params.values())).dtype
        seen = torch.from_numpy(self.reader(observation, str(dtype).removeprefix("torch.")))
        with torch.no_grad():
            actions = self.network(self.params, seen)
            if generator is None:
                action = actions.mode()
            else:
                noise = generator.standard_normal(actions.mode().shape, dtype=np.float32)
                action = actions.sample(torch.from_numpy(noise).to(dtype))
        chosen = taken(self.action_space, action.numpy())
        return int(chosen) if isinstance(self.action_space, spaces.Discrete) else chosen

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy, with its spaces, to a file that `load_policy` reads.

        Args:
            path: the file's path; an existing file is replaced.
        Raises:
            ValueError: the observation space cannot be written as plain data.
            CheckpointError: the file could not be written.
        """
        read, acted = to_plain(self.reader.space), to_plain(self.action_space)
        content = {"policy": self.network.layout(), "params": dict(self.params)}
        content["buffers"] = {name: value for name, value in self.network.named_buffers() if name not in self.params}
        save(path, content | {"observations": read, "actions": acted})


def load_policy(path: str | os.PathLike[str]) -> AdaptedPolicy:
    """Read a policy that `AdaptedPolicy.save` wrote; no code runs from the file.

    Args:
        path: the file's path.
    Raises:
        CheckpointError: the file is missing, damaged, or holds no adapted policy.
    """
    content = load(path)
    try:
        network = policy_from_layout(content["policy"])
        theta, buffers = initialisation(network), dict(network.named_buffers())
        stored = {**content.get("buffers", {}), **content["params"]}
        differing = [name for name, tensor in {**theta, **buffers}.items() if stored[name].shape != tensor.shape]
        if differing:
            raise ValueError(f"{', '.join(differing)} of another shape than the network's")
        for name in buffers.keys() - theta.keys():
            buffers[name].copy_(stored[name])
        reader, acted = Reader(from_plain(content["observations"])), from_plain(content["actions"])
        if not isinstance(acted, ActionSpace):
            raise ValueError(f"actions of {acted}")
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise CheckpointError(
            f"{path} holds no adapted policy ({type(error).__name__}: {error}); give a file that policy.save wrote"
        ) from error
    return AdaptedPolicy(network, {name: stored[name] for name in theta}, reader, acted)


class Adapted(NamedTuple):
    """The result of adaptation to one task."""

    policies: list[AdaptedPolicy]
    """The policies before adaptation and after 1 … k inner steps."""
    returns: list[float]
    """The mean return of each policy, with exploration noise."""
    gammas: dict[str, float]
    """The mean γ of each attenuated tensor, by name; empty for MAML."""

    @property
    def policy(self) -> AdaptedPolicy:
        """The policy after the last inner step."""
        return self.policies[-1]
