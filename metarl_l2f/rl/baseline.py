"""Linear feature baseline (Duan et al. 2016): a ridge regression of returns on simple features, one fit per task.

For observations with more than LARGEST_OBSERVATION numbers, such as pictures, time is the only feature: otherwise the
system of equations would take O² numbers, and with more features than samples the fit would equal every return, so that
all advantages were 0.
"""

import torch
from torch import Tensor

RIDGE = 1e-9
"""The weight of the ridge term, relative to each feature's own scale."""

LARGEST_OBSERVATION = 1000
"""The largest length O of observations that are used as features."""


def features(observations: Tensor, mask: Tensor) -> Tensor:
    """Compute the features [o, o², τ, τ², τ³, 1], with τ = t / 100.

    For large observations (O > LARGEST_OBSERVATION) they are [τ, τ², τ³, 1] only.

    Args:
        observations: (..., T, O).
        mask: (..., T), 1 where the step happened, else 0.
    Returns:
        (..., T, 2O + 4) or (..., T, 4) in float64, 0 where no step happened.
    """
    *leading, length, size = observations.shape
    steps = torch.arange(length, dtype=torch.float64, device=observations.device) / 100.0
    clock = torch.stack([steps, steps**2, steps**3, torch.ones_like(steps)], -1).expand(*leading, length, 4)
    if size > LARGEST_OBSERVATION:
        return clock * mask.unsqueeze(-1)
    o = observations.double()
    return torch.cat([o, o.square(), clock], -1) * mask.unsqueeze(-1)


def fit_values(observations: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Predict every return by V = X w with w = argmin ‖X w − G‖² + ridge, fitted for each task.

    Features are scaled to unit length first, so that the ridge has the same effect on all of them and no unit of
    measure can make the system singular.

    Args:
        observations: (N, B, T, O).
        returns: (N, B, T).
        mask: (N, B, T), 1 where the step happened, else 0.
    Returns:
        The predictions, (N, B, T) in the dtype of `returns`, 0 where no step happened.
    """
    x = features(observations, mask).flatten(1, 2)
    y = (returns * mask).flatten(1, 2).double().unsqueeze(-1)
    length = x.square().sum(1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    x = x / length
    gram = x.mT @ x + RIDGE * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    weights = torch.linalg.solve(gram, x.mT @ y)
    return (x @ weights).squeeze(-1).reshape(returns.shape).to(returns.dtype)
