"""What adaptation to one task hands over: policies that act outside of the library, and can be kept in a file."""

import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces

from ..core import Params
from ..networks.policies import Policy, policy_from_layout, policy_layout
from ..training.checkpoint import CheckpointError, load, save
from .spaces import ActionSpace, Reader, from_plain, taken, to_plain


@dataclass(frozen=True)
class AdaptedPolicy:
    """A policy adapted to one task: `action = policy(observation)`.

    `policy.save(path)` and `load_policy(path)` keep it in a file that holds data alone; pickle and torch.save take it
    too.
    """

    network: Policy
    """Computes the policy from its parameters; its own are not used."""
    params: Params
    """The adapted parameters, by name; a copy, which further training leaves alone."""
    reader: Reader
    """Turns an observation into what the network reads."""
    action_space: ActionSpace
    """The environment's own, a gymnasium Box or Discrete."""

    def __call__(self, observation: Any, generator: np.random.Generator | None = None) -> Any:
        """An action of the action space, as training hands it to the environment: clipped to a Box's bounds.

        Args:
            observation: one, as the environment gives it, or flattened.
            generator: draws the action, as in training; without it the likeliest action is chosen.
        Returns:
            An integer for a Discrete space; else an array of the Box's shape and dtype, of rounded numbers where the
            dtype is of integers.
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
            path: where to; an existing file is replaced.
        Raises:
            ValueError: the observation space is of a kind that is not plain data.
            CheckpointError: the file could not be written.
        """
        read, acted = to_plain(self.reader.space), to_plain(self.action_space)
        content = {"policy": policy_layout(self.network), "params": dict(self.params)}
        save(path, content | {"observations": read, "actions": acted})


def load_policy(path: str | os.PathLike[str]) -> AdaptedPolicy:
    """Read a policy that `AdaptedPolicy.save` has written; no code runs from the file.

    Args:
        path: the file.
    Raises:
        CheckpointError: the file is missing, damaged, or holds no adapted policy.
    """
    content = load(path)
    try:
        network = policy_from_layout(content["policy"])
        params = {name: content["params"][name] for name, _ in network.named_parameters()}
        differing = [n for n, p in network.named_parameters() if p.shape != params[n].shape]
        if differing:
            raise ValueError(f"{', '.join(differing)} of another shape than the network's")
        reader, acted = Reader(from_plain(content["observations"])), from_plain(content["actions"])
        if not isinstance(acted, ActionSpace):
            raise ValueError(f"actions of {acted}")
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise CheckpointError(
            f"{path} holds no adapted policy ({type(error).__name__}: {error}); give a file that policy.save wrote"
        ) from error
    return AdaptedPolicy(network, params, reader, acted)


class Adapted(NamedTuple):
    """What adaptation to one task gave."""

    policies: list[AdaptedPolicy]
    """Before adaptation and after 1 … k inner steps."""
    returns: list[float]
    """Their mean returns, as they explore, with noise."""
    gammas: dict[str, float]
    """How much of each attenuated tensor was kept: its mean γ, by name; empty for MAML."""

    @property
    def policy(self) -> AdaptedPolicy:
        """After the last inner step."""
        return self.policies[-1]
