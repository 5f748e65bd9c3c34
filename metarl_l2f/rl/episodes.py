"""Episodes and what is computed from their rewards: returns, generalised advantages, and the batches losses read."""

from typing import NamedTuple

import torch
from torch import Tensor


class Episodes(NamedTuple):
    """Rollouts of N tasks × B episodes × T steps; entries after an episode's end are 0."""

    observations: Tensor
    """(N, B, T, O), as the policy reads them."""
    actions: Tensor
    """(N, B, T, A), as the policy drew them, before they are clipped to the action space."""
    rewards: Tensor
    """(N, B, T)"""
    mask: Tensor
    """(N, B, T), 1 where the step happened, 0 after the episode's end."""

    def returns(self) -> Tensor:
        """Undiscounted return of every episode: (N, B)."""
        return self.rewards.sum(-1)

    def steps(self) -> int:
        """Environment steps that were simulated."""
        return int(self.mask.sum())


class Batch(NamedTuple):
    """What the losses read of one task's episodes (under vmap; stacked over tasks outside): S = B·T samples."""

    observations: Tensor
    """(S, O)"""
    actions: Tensor
    """(S, A)"""
    advantages: Tensor
    """(S,)"""
    weights: Tensor
    """(S,), 1 / (number of steps that happened) where the step happened, else 0: each task's weights sum to 1."""


def discounted_returns(rewards: Tensor, discount: float) -> Tensor:
    """Return from every step on, G_t = r_t + discount · G_{t+1}.

    Args:
        rewards: (..., T).
        discount: in [0, 1].
    Returns:
        (..., T).
    """
    returns, later = torch.empty_like(rewards), torch.zeros_like(rewards[..., 0])
    for t in reversed(range(rewards.shape[-1])):
        later = rewards[..., t] + discount * later
        returns[..., t] = later
    return returns


def generalised_advantages(rewards: Tensor, values: Tensor, discount: float, gae_lambda: float) -> Tensor:
    """GAE (Schulman et al. 2016, Eq. 16): Σ_l (discount · λ)^l δ_{t+l}, δ_t = r_t + discount · V_{t+1} − V_t.

    Episodes end at their horizon or before, with value 0 behind the last step.

    Args:
        rewards: (..., T), 0 after the episode's end.
        values: (..., T), the baseline's prediction, 0 after the episode's end.
        discount: in [0, 1].
        gae_lambda: λ in [0, 1]; 1 gives returns minus values.
    Returns:
        (..., T).
    """
    following = torch.cat([values[..., 1:], torch.zeros_like(values[..., :1])], -1)
    return discounted_returns(rewards + discount * following - values, discount * gae_lambda)


def standardise(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over each task's steps that happened; (N, B, T), 0 elsewhere."""
    count = mask.sum((-2, -1), keepdim=True)
    centred = (values - (values * mask).sum((-2, -1), keepdim=True) / count) * mask
    deviation = (centred.square().sum((-2, -1), keepdim=True) / count).sqrt()
    return centred / (deviation + 1e-8)


def to_batch(episodes: Episodes, advantages: Tensor) -> Batch:
    """Lay episodes (N, B, T, ·) out as samples (N, S, ·) with weights that average over steps that happened."""
    weights = episodes.mask / episodes.mask.sum((-2, -1), keepdim=True)
    return Batch(
        episodes.observations.flatten(1, 2),
        episodes.actions.flatten(1, 2),
        advantages.flatten(1, 2),
        weights.flatten(1, 2),
    )
