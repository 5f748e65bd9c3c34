"""What the argument of L2F is about, measured: how much tasks disagree about the initialisation (Sec. 3.3)."""

import torch
from torch import Tensor

from .core import L2F, Params, layer_of


def degree_of_conflict(gradients: Params) -> dict[str, float]:
    """Mean angle between each task's descent direction and the sum of all tasks', per layer and for the network.

    conflict = mean_i |arccos(ûᵢ · v̂)|, uᵢ = −∇_θ L_Dᵢ, v = Σᵢ uᵢ (Sec. 3.3). Equal gradients give 0, two orthogonal
    ones of equal length π/4; many unrelated ones approach π/2.

    Args:
        gradients: by parameter name, stacked over tasks: (N, *shape).
    Returns:
        Radians in [0, π] by layer, and under "network" for all parameters together.
    """
    layers: dict[str, list[Tensor]] = {}
    for name, gradient in gradients.items():
        layers.setdefault(layer_of(name), []).append(gradient.flatten(1).double())
    flat = {layer: torch.cat(parts, 1) for layer, parts in layers.items()}
    flat["network"] = torch.cat(list(flat.values()), 1)
    return {layer: float(_mean_angle_to_sum(u)) for layer, u in flat.items()}


def _mean_angle_to_sum(directions: Tensor) -> Tensor:
    units = torch.nn.functional.normalize(directions, dim=1)
    total = torch.nn.functional.normalize(directions.sum(0), dim=0)
    return torch.arccos((units @ total).clamp(-1.0, 1.0)).mean()


def gamma_statistics(learner: L2F, gamma: Tensor) -> dict[str, float]:
    """How much of each tensor is kept, and how much that differs between tasks.

    Args:
        learner: whose γ it is.
        gamma: (N, L), one row per task; nothing is known of MAML's (N, 0).
    Returns:
        By tensor, the mean over tasks (and over the tensor's entries of γ), and the mean standard deviation over tasks.
    """
    statistics = {}
    for name, columns in ({} if learner.attenuation is None else learner.gammas_by_tensor(gamma)).items():
        statistics[f"gamma/{name}/mean"] = float(columns.mean())
        statistics[f"gamma/{name}/std"] = float(columns.std(0, unbiased=False).mean())
    return statistics


def learned_step_sizes(learner: L2F) -> dict[str, float]:
    """The inner step sizes α by tensor and step, where they are learned (the mean over a tensor's, if they differ)."""
    steps = range(learner.inner.inner_steps if learner.inner.learn_inner_lr else 0)
    return {
        f"step_size/{name}/{step}": float(size.detach().mean())
        for step in steps
        for name, size in learner.alpha(step).items()
    }
