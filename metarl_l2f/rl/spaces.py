"""Conversions between an environment's spaces and a policy's tensors.

Training and adapted policies share these, so that an adapted policy achieves the returns that were reported for it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from ..networks.pictures import BRIGHTEST
from .copies import flattened

ActionSpace = spaces.Box | spaces.Discrete


def taken(space: ActionSpace, actions: np.ndarray) -> Any:
    """Convert the actions that a policy drew into actions of the action space.

    For Discrete the result is the number of the chosen action. For Box actions are clipped to the bounds, and rounded
    to the nearest integer where the dtype is an integer type.

    Args:
        space: the action space, a Box or Discrete.
        actions: (..., A), one-hot where the space is Discrete.
    Returns:
        (..., *space.shape) in the space's dtype.
    """
    if isinstance(space, spaces.Discrete):
        return actions.argmax(-1) + space.start
    shaped = actions.reshape((*actions.shape[:-1], *space.shape))
    if np.issubdtype(space.dtype, np.integer):
        shaped = np.rint(shaped)
    return np.clip(shaped, space.low, space.high).astype(space.dtype, copy=False)


def is_picture(space: spaces.Space) -> bool:
    """Tell whether observations are pictures: bytes from 0 to 255 in two or more dimensions."""
    return (
        isinstance(space, spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) >= 2
        and bool((space.low == 0).all() and (space.high == BRIGHTEST).all())
    )


@dataclass(frozen=True)
class Reader:
    """Converts observations into the input of policies: flat arrays, in which pictures are scaled to [0, 1]."""

    space: spaces.Space
    """The environment's own observation space."""

    @cached_property
    def flat(self) -> spaces.Box:
        """The space of flattened observations; a Box is not flattened."""
        flat = self.space if isinstance(self.space, spaces.Box) else spaces.flatten_space(self.space)
        assert isinstance(flat, spaces.Box)  # `vectorise` refuses all others.
        return flat

    @property
    def keeps_bytes(self) -> bool:
        """Whether observations are held as bytes, a quarter of the memory, which policies convert as they read."""
        return is_picture(self.space)

    @cached_property
    def divisors(self) -> np.ndarray | None:
        """The divisor of each of the O numbers, (O,); None where nothing is scaled."""
        divisors = _divisors(self.space)
        return divisors if (divisors != 1).any() else None

    def scaled(self, observations: np.ndarray) -> np.ndarray:
        """Divide the numbers of flat observations (..., O), in floating point, that belong to pictures by 255."""
        return observations if self.divisors is None else observations / self.divisors.astype(observations.dtype)

    def __call__(self, observation: Any, dtype: Any = np.float32) -> np.ndarray:
        """Convert one observation into the input of a policy, (O,).

        Args:
            observation: one observation, as the environment returns it, or flattened.
            dtype: the dtype of the result.
        Raises:
            ValueError: the observation has another shape, or parts of it are missing.
        """
        known = isinstance(self.space, spaces.Box) or self._is_flat(observation)
        array = np.asarray(observation) if known else flattened(self.space, observation)
        if array.shape != self.flat.shape or not np.can_cast(array.dtype, self.flat.dtype, "same_kind"):
            raise ValueError(
                f"observation must be one of {self.space}, as an array of shape {self.flat.shape} or as the "
                f"environment gives it, got shape {array.shape} and dtype {array.dtype}; give one observation at a time"
            )
        with np.errstate(over="ignore"):
            return self.scaled(array.astype(self.flat.dtype).astype(dtype).ravel())

    def _is_flat(self, observation: Any) -> bool:
        if not isinstance(observation, np.ndarray | list | torch.Tensor):
            return False
        return np.shape(observation) == self.flat.shape != self.space.shape


def _divisors(space: spaces.Space) -> np.ndarray:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return np.concatenate([np.ones(0), *map(_divisors, parts)])
    return np.full(spaces.flatdim(space), float(BRIGHTEST) if is_picture(space) else 1.0)


# --- As plain data ---


def to_plain(space: spaces.Space) -> dict[str, Any]:
    """Describe a space by names, numbers and tensors, which a checkpoint can hold.

    Args:
        space: a Box, Discrete, MultiDiscrete or MultiBinary, or a Dict or Tuple of such spaces.
    Raises:
        ValueError: the space is of another kind.
    """
    match space:
        case spaces.Box():
            low, high = (torch.from_numpy(bound.copy()) for bound in (space.low, space.high))
            return {"kind": "Box", "low": low, "high": high, "dtype": str(space.dtype)}
        case spaces.Discrete():
            return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
        case spaces.MultiDiscrete():
            return {
                "kind": "MultiDiscrete",
                "nvec": torch.from_numpy(space.nvec.copy()),
                "start": torch.from_numpy(space.start.copy()),
            }
        case spaces.MultiBinary():
            return {"kind": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
        case spaces.Dict():
            return {"kind": "Dict", "parts": [[key, to_plain(part)] for key, part in space.spaces.items()]}
        case spaces.Tuple():
            return {"kind": "Tuple", "parts": [to_plain(part) for part in space.spaces]}
    raise ValueError(
        f"observations of {space} cannot be saved as plain data, only Box, Discrete, MultiDiscrete, MultiBinary, and "
        "Dict and Tuple of these; use torch.save or pickle"
    )


def from_plain(plain: Any) -> spaces.Space:
    """Build a space from its description; the inverse of `to_plain`.

    Args:
        plain: the description.
    Raises:
        KeyError, TypeError, ValueError: the data describe no space.
    """
    match plain["kind"]:
        case "Box":
            return spaces.Box(plain["low"].numpy(), plain["high"].numpy(), dtype=np.dtype(plain["dtype"]).type)
        case "Discrete":
            return spaces.Discrete(plain["n"], start=plain["start"])
        case "MultiDiscrete":
            return spaces.MultiDiscrete(plain["nvec"].numpy(), start=plain["start"].numpy())
        case "MultiBinary":
            return spaces.MultiBinary(plain["n"])
        case "Dict":
            return spaces.Dict([(key, from_plain(part)) for key, part in plain["parts"]])
        case "Tuple":
            return spaces.Tuple([from_plain(part) for part in plain["parts"]])
    raise ValueError(f"unknown kind of space {plain['kind']!r}")
