"""Episodes, their returns and generalised advantages, and the batches that losses are computed on."""

from typing import NamedTuple

import torch
from torch import Tensor


class Episodes(NamedTuple):
    """Rollouts of N tasks × B episodes × T steps; entries after an episode's end are 0."""

    observations: Tensor
    """(N, B, T, O), the input of the policy; pictures are bytes, which it scales."""
    actions: Tensor
    """(N, B, T, A), as drawn by the policy, before they are clipped to the action space."""
    rewards: Tensor
    """(N, B, T), rewards."""
    mask: Tensor
    """(N, B, T), 1 where the step happened, 0 after the episode's end."""

    def returns(self) -> Tensor:
        """Compute the undiscounted return of every episode, (N, B)."""
        return self.rewards.sum(-1)

    def steps(self) -> int:
        """Count the environment steps that were simulated."""
        return int(self.mask.sum())


class Batch(NamedTuple):
    """The S = B·T samples of one task's episodes that losses are computed on; stacked over tasks outside of `vmap`."""

    observations: Tensor
    """(S, O), observations; pictures are bytes."""
    actions: Tensor
    """(S, A), actions."""
    advantages: Tensor
    """(S,), advantages."""
    weights: Tensor
    """(S,), 1 / (number of steps that happened) where the step happened, else 0; they sum to 1 for each task."""


def discounted_returns(rewards: Tensor, discount: float) -> Tensor:
    """Compute the return from every step on, G_t = r_t + discount · G_{t+1}.

    Args:
        rewards: (..., T).
        discount: the discount factor, in [0, 1].
    Returns:
        (..., T).
    """
    returns, later = torch.empty_like(rewards), torch.zeros_like(rewards[..., 0])
    for t in reversed(range(rewards.shape[-1])):
        later = rewards[..., t] + discount * later
        returns[..., t] = later
    return returns


def explained_variance(returns: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Return 1 − Σ(G − V)² / Σ(G − Ḡ)² of each task: 1 where its baseline predicts all returns, 0 for their mean alone.

    Args:
        returns: G, (N, B, T).
        values: V, (N, B, T).
        mask: (N, B, T), 1 where the step happened, else 0.
    Returns:
        (N,), at most 1.
    """
    count = mask.sum((-2, -1), keepdim=True)
    mean = (returns * mask).sum((-2, -1), keepdim=True) / count
    left = ((returns - values).square() * mask).sum((-2, -1))
    whole = ((returns - mean).square() * mask).sum((-2, -1))
    return 1 - left / whole.clamp_min(torch.finfo(whole.dtype).tiny)


def generalised_advantages(rewards: Tensor, values: Tensor, discount: float, gae_lambda: float) -> Tensor:
    """Compute generalised advantages (Schulman et al. 2016, Eq. 16).

    They are Σ_l (discount · λ)^l δ_{t+l}, with δ_t = r_t + discount · V_{t+1} − V_t. The value after an episode's last
    step is 0.

    Args:
        rewards: (..., T), 0 after the episode's end.
        values: (..., T), the baseline's predictions, 0 after the episode's end.
        discount: the discount factor, in [0, 1].
        gae_lambda: λ in [0, 1]; 1 gives returns minus values.
    Returns:
        (..., T).
    """
    following = torch.cat([values[..., 1:], torch.zeros_like(values[..., :1])], -1)
    return discounted_returns(rewards + discount * following - values, discount * gae_lambda)


def standardise(values: Tensor, mask: Tensor) -> Tensor:
    """Scale values to mean 0 and standard deviation 1 over each task's steps that happened.

    Args:
        values: (N, B, T).
        mask: (N, B, T), 1 where the step happened, else 0.
    Returns:
        (N, B, T), 0 where no step happened.
    """
    count = mask.sum((-2, -1), keepdim=True)
    centred = (values - (values * mask).sum((-2, -1), keepdim=True) / count) * mask
    deviation = (centred.square().sum((-2, -1), keepdim=True) / count).sqrt()
    return centred / (deviation + 1e-8)


def to_batch(episodes: Episodes, advantages: Tensor) -> Batch:
    """Turn episodes (N, B, T, ·) into samples (N, S, ·), with weights that average over the steps that happened.

    Args:
        episodes: the episodes.
        advantages: (N, B, T).
    """
    weights = episodes.mask / episodes.mask.sum((-2, -1), keepdim=True)
    return Batch(
        episodes.observations.flatten(1, 2),
        episodes.actions.flatten(1, 2),
        advantages.flatten(1, 2),
        weights.flatten(1, 2),
    )
