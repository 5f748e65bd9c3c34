"""Linear feature baseline (Duan et al. 2016): a ridge regression of returns on simple features, one fit per task.

Observations with more than LARGEST_OBSERVATION numbers, and pictures with more than a quarter as many numbers as a task
has samples, are read through a fixed random projection to a few numbers: otherwise the system of equations would take
O² numbers, and with more features than samples the fit would equal every return, so that all advantages were 0.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..networks.pictures import as_numbers

RIDGE = 1e-9
"""The weight of the ridge term, relative to each feature's own scale."""

LARGEST_OBSERVATION = 1000
"""The largest length O of observations that are used as features."""

PROJECTED = 16
"""The length that longer observations are projected to, where a task has four times as many samples or more."""


def features(observations: Tensor, mask: Tensor) -> Tensor:
    """Compute the features [o, o², τ, τ², τ³, 1], with τ = t / 100.

    Large observations (O > LARGEST_OBSERVATION, or for bytes O > B·T / 4) are replaced by P o, with `projection`'s P,
    which has min(PROJECTED, B·T / 4) rows.

    Args:
        observations: (..., B, T, O), or (T, O) for one episode; bytes are those of pictures, divided by 255.
        mask: (..., B, T), 1 where the step happened, else 0.
    Returns:
        (..., B, T, 2·O + 4) in float64, 0 where no step happened; with the length of P o in place of O where o is
        large.
    """
    *leading, length, size = observations.shape
    steps = torch.arange(length, dtype=torch.float64, device=observations.device) / 100.0
    clock = torch.stack([steps, steps**2, steps**3, torch.ones_like(steps)], -1).expand(*leading, length, 4)
    supported = math.prod(mask.shape[-2:]) // 4
    if size > LARGEST_OBSERVATION or (observations.dtype == torch.uint8 and size > supported):
        o = projected(observations, mask, min(PROJECTED, supported))
    else:
        o = as_numbers(observations, mask.dtype).double()
    return torch.cat([o, o.square(), clock], -1) * mask.unsqueeze(-1)


def projected(observations: Tensor, mask: Tensor, length: int) -> Tensor:
    """Compute P o of every observation in float64, episode by episode, since float64 pictures would fill gigabytes.

    Args:
        observations: (..., T, O).
        mask: (..., T); bytes are converted to its dtype.
        length: the number of rows of P.
    Returns:
        (..., T, length).
    """
    p = torch.from_numpy(projection(observations.shape[-1])[:, :length]).to(observations.device)
    found = [
        as_numbers(episode, mask.dtype).double() @ p for episode in observations.reshape(-1, *observations.shape[-2:])
    ]
    return torch.stack(found).reshape(*mask.shape, length)


@lru_cache(maxsize=4)
def projection(size: int) -> np.ndarray:
    """Draw the transposed projection Pᵀ, normal numbers of variance 1 / O, the same in every run.

    Args:
        size: O, the length of observations.
    Returns:
        (O, PROJECTED), float64.
    """
    drawn = np.random.Generator(np.random.Philox(0)).standard_normal((size, PROJECTED))
    return drawn / math.sqrt(size)


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
