"""Linear feature baseline (Duan et al. 2016): a ridge regression of returns on simple features, one fit per task.

Of observations with more than LARGEST_OBSERVATION numbers, pictures for example, it reads the time alone: the system of
equations would take O² numbers, and with more features than samples the fit would repeat every return, so that no
advantage were left to learn from.
"""

import torch
from torch import Tensor

RIDGE = 1e-9
"""Weight of the ridge term relative to each feature's own scale."""

LARGEST_OBSERVATION = 1000
"""Numbers O of an observation up to which the baseline reads it."""


def features(observations: Tensor, mask: Tensor) -> Tensor:
    """[o, o², τ, τ², τ³, 1] with τ = t / 100, in float64, 0 where no step happened: (..., T, 2O + 4).

    Of large observations (O > LARGEST_OBSERVATION) only [τ, τ², τ³, 1]: (..., T, 4).
    """
    *leading, length, size = observations.shape
    steps = torch.arange(length, dtype=torch.float64, device=observations.device) / 100.0
    clock = torch.stack([steps, steps**2, steps**3, torch.ones_like(steps)], -1).expand(*leading, length, 4)
    if size > LARGEST_OBSERVATION:
        return clock * mask.unsqueeze(-1)
    o = observations.double()
    return torch.cat([o, o.square(), clock], -1) * mask.unsqueeze(-1)


def fit_values(observations: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """The baseline's prediction of every return, V = X w with w = argmin ‖X w − G‖² + ridge, per task.

    The features are scaled to unit length first, so the ridge treats all alike and no unit of measure can make the
    system singular.

    Args:
        observations: (N, B, T, O).
        returns: (N, B, T).
        mask: (N, B, T).
    Returns:
        (N, B, T) in the dtype of `returns`, 0 where no step happened.
    """
    x = features(observations, mask).flatten(1, 2)
    y = (returns * mask).flatten(1, 2).double().unsqueeze(-1)
    length = x.square().sum(1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    x = x / length
    gram = x.mT @ x + RIDGE * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    weights = torch.linalg.solve(gram, x.mT @ y)
    return (x @ weights).squeeze(-1).reshape(returns.shape).to(returns.dtype)
