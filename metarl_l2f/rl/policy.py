"""The policy of an environment: what its settings and spaces make of it, and warnings about pictures."""

import logging
import math
from typing import Any

import numpy as np
import torch

from ..networks.normalisation import LARGEST
from ..networks.pictures import SMALLEST_SIDE, seems_channels_first
from ..networks.policies import CategoricalPolicy, GaussianPolicy, Policy
from .sampling import Sampler
from .settings import PolicyNetwork

logger = logging.getLogger(__name__)


def policy_for(network: PolicyNetwork, sampler: Sampler, generator: torch.Generator) -> Policy:
    """Build a policy with new parameters for a sampler's spaces.

    Args:
        network: the settings of the policy.
        sampler: the sampler whose observations it reads and whose actions it draws.
        generator: the source of the initial weights.
    Raises:
        ValueError: the settings do not fit the spaces.
    """
    sizes = (sampler.observation_size, sampler.action_size, network.hidden_sizes, network.activation)
    common: dict[str, Any] = {
        "generator": generator,
        "context_size": network.context_size,
        "normalise_observations": network.normalise_observations,
        "picture": _picture(network, sampler.observation_shape),
        "filters": network.filters,
    }
    if sampler.discrete and network.state_dependent_std:
        raise ValueError(
            f"state_dependent_std concerns the noise σ of Box actions; {sampler.name} has Discrete actions: leave "
            "it False"
        )
    try:
        if sampler.discrete:
            return CategoricalPolicy(*sizes, **common)
        dependent = network.state_dependent_std
        return GaussianPolicy(*sizes, initial_std=network.initial_std, state_dependent_std=dependent, **common)
    except ValueError as error:
        raise ValueError(f"{sampler.name}: {error}") from error


def _picture(network: PolicyNetwork, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of observations that a convolutional trunk reads; None for an MLP alone."""
    fits = len(shape) == 3 and min(shape[:2]) >= SMALLEST_SIDE
    return shape if network.trunk == "conv" or (network.trunk == "auto" and fits) else None


def warn_of_pictures(policy: Policy, sampler: Sampler) -> None:
    """Log a warning where pictures are flattened, have channels first, or are far from [0, 1]."""
    if policy.trunk is not None:
        _warn_of_scale(policy, sampler)
    elif sampler.reader.divisors is not None or seems_channels_first(sampler.observation_shape):
        numbers = math.prod(sampler.shape) * sampler.horizon * sampler.observation_size
        logger.warning(
            "%s: observations are pictures, which the policy reads as %d numbers in a row%s: it does not know which of "
            "them are neighbours; %s. The episodes of one meta-batch take %.1f "
            "GB before adaptation, and as much again after every inner step; smaller or grey pictures "
            "(gymnasium.wrappers.ResizeObservation, GrayscaleObservation) take less",
            sampler.name,
            sampler.observation_size,
            "" if sampler.reader.divisors is None else ", scaled to [0, 1]",
            _remedy(sampler.observation_shape),
            numbers * sampler.observed_dtype.itemsize / 1e9,
        )


def _remedy(shape: tuple[int, ...]) -> str:
    if seems_channels_first(shape):
        return (
            f"their shape {shape} looks like (channels, height, width), and convolutions could read them with channels "
            "last (np.moveaxis(picture, 0, -1), gymnasium.wrappers.TransformObservation)"
        )
    side = f"{SMALLEST_SIDE}×{SMALLEST_SIDE}"
    return f"convolutions (trunk='conv') read pictures of shape (height, width, channels) of {side} pixels or more"


def _warn_of_scale(policy: Policy, sampler: Sampler) -> None:
    space = sampler.reader.flat
    low, high = space.low.min(), space.high.max()
    scaled = sampler.reader.keeps_bytes or policy.normalisation is not None
    if not scaled and LARGEST < max(abs(low), abs(high)) < np.inf:
        logger.warning(
            "%s: pictures of %s from %g to %g are read as they are, far from [0, 1], where learning works best; return "
            "bytes (uint8, 0 to 255), which are scaled, or scale the numbers by gymnasium.wrappers.RescaleObservation, "
            "or set normalise_observations",
            sampler.name,
            space.dtype,
            low,
            high,
        )
