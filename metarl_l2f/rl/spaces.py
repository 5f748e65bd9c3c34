"""Between an environment's spaces and a policy's tensors: what a policy reads, what the environment takes.

Training and adapted policies share these, so that a policy handed over does what its reported returns are of.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from .copies import flattened

BRIGHTEST = 255  # Of a picture's bytes; policies read them divided by this.

ActionSpace = spaces.Box | spaces.Discrete


def taken(space: ActionSpace, actions: np.ndarray) -> Any:
    """Actions of the action space, for what a policy drew.

    Discrete: the number of the chosen action. Box: clipped to its bounds; where its dtype is of integers, rounded to
    the nearest one.

    Args:
        space: a Box or Discrete.
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
    """Whether observations are pictures: bytes from 0 to 255 in two or more dimensions."""
    return (
        isinstance(space, spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) >= 2
        and bool((space.low == 0).all() and (space.high == BRIGHTEST).all())
    )


@dataclass(frozen=True)
class Reader:
    """Turns observations of an environment into what policies read: flat arrays, pictures scaled to [0, 1]."""

    space: spaces.Space
    """The environment's own observation space."""

    @cached_property
    def flat(self) -> spaces.Box:
        """The space of flattened observations; a Box stays as it is."""
        flat = self.space if isinstance(self.space, spaces.Box) else spaces.flatten_space(self.space)
        assert isinstance(flat, spaces.Box)  # `vectorise` refuses all others.
        return flat

    @cached_property
    def divisors(self) -> np.ndarray | None:
        """What each of the O numbers is divided by, (O,); None where nothing is scaled."""
        divisors = _divisors(self.space)
        return divisors if (divisors != 1).any() else None

    def scaled(self, observations: np.ndarray) -> np.ndarray:
        """Flat observations (..., O) with those numbers that belong to pictures divided by 255."""
        return observations if self.divisors is None else observations / self.divisors.astype(observations.dtype)

    def __call__(self, observation: Any, dtype: Any = np.float32) -> np.ndarray:
        """One observation, (O,).

        Args:
            observation: as the environment gives it, or flattened; what training takes is taken here too.
            dtype: of the result.
        Raises:
            ValueError: it has another shape, or parts of it are missing.
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
    """A space as names, numbers and tensors, which a checkpoint holds.

    Raises:
        ValueError: it is neither Box, Discrete, MultiDiscrete nor MultiBinary, nor a Dict or Tuple of such.
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
    """The inverse of `to_plain`; a KeyError, TypeError or ValueError where the data are of no space."""
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
