"""The quantities of L2F's argument: how much tasks disagree, and how smooth the inner loop is.

Pure functions of gradients and losses; whoever trains or evaluates calls them. Sections and figures are L2F's.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, grad_and_value

from .core.attenuation import attenuate
from .core.learner import MetaLearner
from .core.parameters import Loss, Params, layer_of


def conflict_by_task(gradients: Params, distribution: Params | None = None) -> dict[str, Tensor]:
    """Angle between each task's descent direction and the sum of all tasks', |arccos(ûᵢ · v̂)| (Sec. 3.3).

    uᵢ = −∇_θ L_Dᵢ and v = Σᵢ uᵢ, per layer and for the whole network.

    Args:
        gradients: at θ, by parameter name, stacked over tasks: (N, *shape).
        distribution: the gradients of the tasks that v sums, where they are other ones; by default the same.
    Returns:
        Radians in [0, π] by layer, and under "network" for all parameters together: (N,) each. A gradient of 0 has no
        direction: π/2.
    """
    ours = _by_layer(gradients)
    others = ours if distribution is None else _by_layer(distribution)
    return {layer: _angles(u, others[layer].sum(0)) for layer, u in ours.items()}


def degree_of_conflict(gradients: Params, summed: Callable[[Any], Any] = lambda here: here) -> dict[str, float]:
    """The degree to which tasks disagree about the initialisation: conflict = mean_i |arccos(ûᵢ · v̂)| (Sec. 3.3).

    Equal gradients give 0, two orthogonal ones of equal length π/4; many unrelated ones approach π/2.

    Args:
        gradients: as in `conflict_by_task`.
        summed: adds to sums over these tasks those over tasks that are elsewhere; by default there are none.
    Returns:
        Radians in [0, π] by layer, and under "network".
    """
    angles = conflict_by_task(gradients, summed(summed_over_tasks(gradients)))
    number = torch.tensor(float(len(angles["network"])))
    sums, number = summed(({layer: tasks.sum() for layer, tasks in angles.items()}, number))
    return {layer: float(total / number) for layer, total in sums.items()}


def summed_over_tasks(gradients: Params) -> Params:
    """v of `conflict_by_task`, as the gradients of a distribution of one task: (1, *shape) by name, float64."""
    return {name: gradient.detach().double().sum(0, keepdim=True) for name, gradient in gradients.items()}


def _by_layer(gradients: Params) -> Params:
    """Gradients stacked over tasks (N, *shape) → one row per task for each layer, and for the "network"; float64."""
    layers: dict[str, list[Tensor]] = {}
    for name, gradient in gradients.items():
        layers.setdefault(layer_of(name), []).append(gradient.detach().flatten(1).double())
    flat = {layer: torch.cat(parts, 1) for layer, parts in layers.items()}
    return flat | {"network": torch.cat(list(flat.values()), 1)}


def _angles(directions: Tensor, other: Tensor) -> Tensor:
    units, unit = F.normalize(directions, dim=-1), F.normalize(other, dim=-1)
    return torch.arccos((units * unit).sum(-1).clamp(-1.0, 1.0))


def gradient_cosines(before: Params, after: Params) -> dict[str, Tensor]:
    """Cosine between each task's gradients before and after its adaptation, per layer and for the network.

    1 means that the direction of descent is still the same, 0 that nothing more can be gained along the first one.
    Below 0: it went too far.

    Args:
        before: gradients at the initialisation, by name, stacked over tasks: (N, *shape).
        after: at the adapted parameters, the same names.
    Returns:
        In [−1, 1], (N,) by layer, and under "network".
    """
    first, last = _by_layer(before), _by_layer(after)
    return {layer: F.cosine_similarity(first[layer], last[layer], dim=-1) for layer in first}


class Landscape(NamedTuple):
    """The loss around one inner step (Figure 2; Santurkar et al. 2018); over tasks, stacked: (N, ...).

    Measured at the points θ − η d of a grid of S distances η, d the inner step itself: η = 1 is where it goes.
    """

    losses: Tensor
    """(S,), L(θ − η d)."""
    gradient_changes: Tensor
    """(S,), ‖∇L(θ − η d) − ∇L(θ)‖₂: how badly the gradient at θ predicts the one further on."""
    smoothness: Tensor
    """(), the largest ‖∇L(θ − η d) − ∇L(θ)‖₂ / ‖η d‖₂: an estimate, from below, of the Lipschitz constant of ∇L."""

    def loss_range(self) -> Tensor:
        """The range of the loss over the grid."""
        return self.losses.amax(-1) - self.losses.amin(-1)

    def gradient_change_range(self) -> Tensor:
        """The range of the gradient's change over the grid."""
        return self.gradient_changes.amax(-1) - self.gradient_changes.amin(-1)


STEP_GRID = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
"""From half to four times an inner step, as Santurkar et al. look ahead."""


def landscape(loss: Loss, params: Params, direction: Params, distances: Sequence[float] = STEP_GRID) -> Landscape:
    """Loss and gradient along a gradient step: at θ − η d for every distance η, for one task (Figure 2).

    Args:
        loss: the loss of the task.
        params: θ, where the step starts.
        direction: d, by name, such as α ∇L; parameters without one stay, and the gradient leaves them out.
        distances: η, S positive numbers.
    """

    def along(moved: Params) -> Tensor:
        return loss(params | moved)

    begin = {name: params[name] for name in direction}
    here = grad(along)(begin)
    length = torch.cat([d.flatten() for d in direction.values()]).norm()
    losses, changes = [], []
    for distance in distances:
        there = {name: p - distance * direction[name] for name, p in begin.items()}
        gradients, value = grad_and_value(along)(there)
        losses.append(value)
        changes.append(torch.cat([(gradients[name] - here[name]).flatten() for name in begin]).norm())
    change = torch.stack(changes)
    walked = length * torch.tensor(distances, dtype=length.dtype, device=length.device)
    tiny = torch.finfo(change.dtype).tiny  # a direction of 0 goes nowhere: smoothness 0, not NaN
    return Landscape(torch.stack(losses), change, (change / walked.clamp_min(tiny)).amax())


def manual_attenuation(
    learner: MetaLearner, factors: Sequence[float], score: Callable[[], float]
) -> dict[str, list[float]]:
    """The effect of shrinking one layer of a trained initialisation at a time (Figure 3b).

    Args:
        learner: the learner whose θ is shrunk, and given back as it was.
        factors: a layer's parameters are multiplied by each of them in turn, where they are logarithms their
            exponentials: what γ does (Eq. 3).
        score: measures the learner as it is, adaptation included.
    Returns:
        By layer that the inner loop moves, the score for every factor.
    """
    theta = learner.theta
    kept = {name: value.detach().clone() for name, value in theta.items()}
    logarithmic = getattr(learner.network, "logarithmic", ())

    @torch.no_grad()
    def shrink(layer: str | None, factor: float) -> None:
        gamma = {name: torch.tensor(factor) for name in learner.rule.names if layer_of(name) == layer}
        for name, value in attenuate(kept, gamma, logarithmic=logarithmic).items():
            theta[name].copy_(value)

    results: dict[str, list[float]] = {}
    try:
        for layer in dict.fromkeys(map(layer_of, learner.rule.names)):
            results[layer] = []
            for factor in factors:
                shrink(layer, factor)
                results[layer].append(score())
    finally:
        shrink(None, 1.0)
    return results
