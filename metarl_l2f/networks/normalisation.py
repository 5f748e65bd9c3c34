"""Normalisation of observations by their running mean and variance (Welford 1962; Chan, Golub, LeVeque 1983)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .pictures import as_numbers

SMALLEST_VARIANCE = 1e-8
"""Number added to the variance, so that constant components do not divide by 0."""
LARGEST = 10.0
"""Normalised observations are clipped to ± this many standard deviations."""


class Moments(NamedTuple):
    """The moments of some observations, in float64; stacks of them have further leading axes."""

    number: Tensor
    """(), the number n of observations."""
    mean: Tensor
    """(O,), their mean; 0 where there are none."""
    deviations: Tensor
    """(O,), Σ (o − mean)²."""


def moments(observations: Tensor, mask: Tensor) -> Moments:
    """Compute the moments of the observations of the steps that happened.

    Args:
        observations: (..., O); bytes are those of pictures.
        mask: (...,), 1 where the step happened, else 0.
    """
    happened = as_numbers(observations[mask > 0], mask.dtype).double()
    number = torch.tensor(len(happened), dtype=torch.float64, device=happened.device)
    mean = happened.sum(0) / number.clamp_min(1)
    return Moments(number, mean, (happened - mean).square().sum(0))


def merged(one: Moments, other: Moments) -> Moments:
    """Compute the moments of two disjoint sets of observations together (Chan, Golub, LeVeque 1983, Eq. 1.5).

    n = n₁ + n₂, mean = mean₁ + δ n₂ / n, Σ (o − mean)² = S₁ + S₂ + δ² n₁ n₂ / n, with δ = mean₂ − mean₁.
    """
    number, difference = one.number + other.number, other.mean - one.mean
    share = other.number / number.clamp_min(1)
    deviations = one.deviations + other.deviations + difference.square() * one.number * share
    return Moments(number, one.mean + difference * share, deviations)


class Normalisation(nn.Module):
    """(o − mean) / √(variance + 10⁻⁸), clipped to ±10, by the moments of all observations so far.

    The moments are buffers, so that checkpoints hold them and nothing adapts or meta-learns them. They are the identity
    before the first observation. They do not move by themselves: `absorb` moves them.

    Args:
        size: O, the length of an observation.
    """

    number: Tensor
    mean: Tensor
    deviations: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("number", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("deviations", torch.zeros(size, dtype=torch.float64))

    def forward(self, observations: Tensor) -> Tensor:
        """Normalise observations (..., O)."""
        variance = torch.where(self.number > 0, self.deviations / self.number.clamp_min(1), 1)
        mean, scale = (x.to(observations.dtype) for x in (self.mean, (variance + SMALLEST_VARIANCE).sqrt()))
        return ((observations - mean) / scale).clamp(-LARGEST, LARGEST)

    def absorb(self, found: Moments) -> None:
        """Add further observations, given by their moments, to those so far."""
        so_far = Moments(self.number, self.mean, self.deviations)
        together = merged(so_far, Moments(*(values.to(self.mean.device) for values in found)))
        for buffer, values in zip(so_far, together, strict=True):
            buffer.copy_(values)
