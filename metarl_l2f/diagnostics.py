"""What the argument of L2F is about, measured: how much tasks disagree about the initialisation (Sec. 3.3)."""

import torch
from torch import Tensor

from .core import Params, layer_of


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
