"""The outer update by a trust-region step (TRPO, Schulman et al. 2015), as MAML has it in reinforcement learning.

Above, the step on flat float64 vectors, which knows neither policy nor task. Below, what it is taken on: the surrogate
of a meta-batch as a function of (θ, φ, α), differentiated through the adaptation (MAML, Finn et al. 2017, Sec. 5.3).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ..checks import check_counts, check_numbers
from ..networks.policies import Distribution, alike, detached
from ..parallel.shards import Share
from ..parallel.trees import joined
from .adaptation import Adaptation, MetaData, Rollouts
from .episodes import Batch
from .outer import Updated, flat, mean_over_tasks

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TrustRegion:
    """The constants of the step; the defaults are those of the released MAML code.

    Raises:
        ValueError: a constant is out of range.
    """

    max_kl: float = 0.01
    """Bound on the mean KL between the policies before and after the step, nats."""
    cg_iterations: int = 10
    """Conjugate gradient iterations."""
    damping: float = 1e-5
    """Number added to the curvature's diagonal."""
    backtracks: int = 15
    """Steps that the line search tries at most."""
    backtrack_ratio: float = 0.8
    """Length of each tried step relative to the one before."""
    fisher_fraction: float = 0.1
    """Fraction of each task's episodes, before and after adaptation alike, that the curvature is estimated on: it is
    the curvature of policies that adapted to these episodes alone. Gradient and line search use all episodes."""

    def __post_init__(self) -> None:
        check_numbers(self, "(0, inf)", "max_kl")
        check_numbers(self, "(0, 1]", "fisher_fraction")
        check_numbers(self, "(0, 1)", "backtrack_ratio")
        check_numbers(self, "[0, inf)", "damping")
        check_counts(self, 1, "cg_iterations", "backtracks")


@dataclass(frozen=True)
class StepLog:
    """The log of a trust-region step."""

    surrogate_before: float
    surrogate_after: float
    kl: float
    cg_residual: float
    backtracks: int
    accepted: bool
    reason: str
    """The reason why no step was accepted; empty if one was."""
    gradient_norm: float = math.nan
    """The norm of the surrogate's gradient."""


def conjugate_gradient(product: Product, b: Tensor, iterations: int, tolerance: float = 1e-10) -> tuple[Tensor, Tensor]:
    """Solve A x = b for a symmetric positive definite A known by its products.

    Args:
        product: v (P,) → A v (P,).
        b: (P,) float64.
        iterations: at most this many products.
        tolerance: stop when the squared residual norm falls below it.
    Returns:
        x (P,), and the residual b − A x (P,).
    """
    x, residual = torch.zeros_like(b), b.clone()
    direction, squared = residual.clone(), residual @ residual
    for _ in range(iterations):
        if squared < tolerance:
            break
        image = product(direction)
        length = squared / (direction @ image)
        x = x + length * direction
        residual = residual - length * image
        following = residual @ residual
        direction = residual + (following / squared) * direction
        squared = following
    return x, residual


def trust_region_step(
    gradient: Tensor,
    product: Product,
    evaluate: Callable[[Tensor], tuple[float, float]],
    surrogate_before: float,
    region: TrustRegion,
) -> tuple[Tensor, StepLog]:
    """Minimise a surrogate within a KL bound: x = F⁻¹g, scaled to the bound, then a backtracking line search.

    Args:
        gradient: (P,) float64, of the surrogate.
        product: v → F v without damping.
        evaluate: step (P,) → (surrogate, KL) at the parameters plus that step.
        surrogate_before: at the zero step.
        region: bound and constants.
    Returns:
        The accepted step (zeros when none is), and the log. A number that is not finite rejects the step; nothing
        raises.
    """

    norm = float(gradient.norm())

    def rejected(reason: str, residual: float = math.nan, tried: int = 0) -> tuple[Tensor, StepLog]:
        log = StepLog(surrogate_before, surrogate_before, 0.0, residual, tried, False, reason, norm)
        return torch.zeros_like(gradient), log

    if not (gradient.isfinite().all() and math.isfinite(surrogate_before)):
        return rejected("the surrogate or its gradient is not finite")
    if not gradient.any():
        return rejected("the gradient is zero")

    def damped(v: Tensor) -> Tensor:
        return product(v) + region.damping * v

    direction, remainder = conjugate_gradient(damped, gradient, region.cg_iterations)
    residual = float(remainder.norm() / gradient.norm())
    curvature = float(direction @ (gradient - remainder))  # xᵀFx without a further product, for F x = g − remainder.
    if not (direction.isfinite().all() and math.isfinite(curvature) and curvature > 0):
        return rejected("conjugate gradient broke down: a curvature product is not finite or not positive", residual)
    full = -math.sqrt(2 * region.max_kl / curvature) * direction
    for tried in range(region.backtracks):
        step = region.backtrack_ratio**tried * full
        surrogate, kl = evaluate(step)
        if math.isfinite(surrogate) and math.isfinite(kl) and surrogate < surrogate_before and kl <= region.max_kl:
            return step, StepLog(surrogate_before, surrogate, kl, residual, tried, True, "", norm)
    return rejected("no step of the line search lowered the surrogate within the KL bound", residual, region.backtracks)


# ---- The surrogate of a meta-batch --------------------------------------------------------------------------------


class MetaSurrogate:
    """The surrogate of a meta-batch, with its gradient, its KL divergence and that one's curvature.

    Args:
        adaptation: gives the adapted policies as a differentiable function of (θ, φ, α).
        data: the data of this process's tasks, stacked.
        share: which of the meta-batch's tasks these are; means are over all.
    """

    def __init__(self, adaptation: Adaptation, data: MetaData, share: Share) -> None:
        self.adaptation, self.data, self.share = adaptation, data, share
        self.parameters = adaptation.learner.meta_parameters()

    def gradient(self) -> tuple[float, Tensor, list[Distribution]]:
        """The surrogate's mean over tasks, its exact gradient through the adaptation, and the policies as they are.

        Returns:
            The mean; the gradient with respect to (θ, φ, α), (P,) float64; the current policies, stacked over tasks.
        """
        shards = self.adaptation.shards.repeated(gradient_of_shard, self.adaptation, self.data)
        sums, old = zip(*shards, strict=True)
        mean = self._mean(list(sums))
        return float(mean[0]), mean[1:], joined(old)

    def value_and_kl(self, old: list[Distribution]) -> tuple[float, float]:
        """Means over tasks of the surrogate and of KL(old ‖ current), at the current parameters."""
        shards = self.adaptation.shards
        sums = shards.repeated(values_of_shard, self.adaptation, self.data, old, derivatives=False)
        loss, kl = self._mean(sums).tolist()
        return loss, kl

    def curvature(self) -> Callable[[Tensor], Tensor]:
        """Gauss-Newton products of the KL, v → Σᵢ JᵢᵀMᵢJᵢ v / N, J = ∂(policy outputs)/∂(θ, φ, α) through adaptation.

        The graph of Jᵀu is built once, at u = 0; its derivative with respect to u along v is J v, and a second pass
        gives Jᵀ(M J v).
        """
        example = [torch.zeros_like(parameter) for parameter in self.parameters]
        products = self.adaptation.shards.staged(
            graph_of_shard, product_of_shard, self.adaptation, [self.data], example
        )

        def product(vector: Tensor) -> Tensor:
            pieces = vector.split([p.numel() for p in self.parameters])
            direction = [piece.view_as(p).to(p.dtype) for piece, p in zip(pieces, self.parameters, strict=True)]
            return self._mean(products(direction))

        return product

    def _mean(self, parts: list[Tensor]) -> Tensor:
        return mean_over_tasks(parts, self.share, self.parameters[0].dtype)


def gradient_of_shard(adaptation: Adaptation, data: MetaData) -> tuple[Tensor, list[Distribution]]:
    """Sums over a shard's tasks of the surrogate and its gradient, (1 + P,) float64; and the policies as they are."""
    policies = vmap(adaptation.policies)(data)
    old = [detached(policy) for policy in policies]
    losses = vmap(adaptation.objective)(policies, old, data)
    gradient = torch.autograd.grad(losses.sum(), adaptation.learner.meta_parameters())
    return torch.cat([losses.detach().double().sum().unsqueeze(0), flat(gradient)]), old


def values_of_shard(adaptation: Adaptation, data: MetaData, old: list[Distribution]) -> Tensor:
    """Sums over a shard's tasks of the surrogate and of KL(old ‖ current), (2,) float64."""

    def task(data: MetaData, old: list[Distribution]) -> tuple[Tensor, Tensor]:
        policies = adaptation.policies(data)
        terms = zip(old, policies, (data.post, data.first), strict=False)
        kls = [(batch.weights * before.kl(policy)).sum() for before, policy, batch in terms]
        return adaptation.objective(policies, old, data), torch.stack(kls).sum()

    return torch.stack(vmap(task)(data, old)).double().sum(1)


class Graph(NamedTuple):
    """One shard's graph of Jᵀu, ready for curvature products."""

    weights: list[Tensor]
    """Per policy, (n, S): each sample's share of its task's mean."""
    policies: list[Distribution]
    """The outputs J differentiates: each policy's own tensors, stacked over the shard's tasks."""
    tangents: Sequence[Tensor]
    """u, zeros shaped as the outputs."""
    pulled: Sequence[Tensor]
    """Jᵀu, shaped as the parameters."""


def graph_of_shard(adaptation: Adaptation, data: MetaData) -> Graph:
    """The graph of Jᵀu of a shard's tasks, at u = 0."""
    policies = vmap(adaptation.policies)(data)
    outputs = [output.requires_grad_() for output in _outputs(policies)]  # A frozen σ is a constant.
    tangents = [torch.zeros_like(output, requires_grad=True) for output in outputs]
    pulled = torch.autograd.grad(outputs, adaptation.learner.meta_parameters(), tangents, create_graph=True)
    return Graph([data.post.weights, data.first.weights], policies, tangents, pulled)


def product_of_shard(adaptation: Adaptation, graph: Graph, direction: list[Tensor]) -> Tensor:
    """Σ JᵀMJ v over a shard's tasks, (P,) float64."""
    pushed = torch.autograd.grad(graph.pulled, graph.tangents, direction, retain_graph=True, materialize_grads=True)
    tangents = _regrouped(pushed, graph.policies)
    curved = [
        vmap(type(policy).fisher)(detached(policy), tangent, weights)
        for policy, tangent, weights in zip(graph.policies, tangents, graph.weights, strict=False)
    ]
    parameters = adaptation.learner.meta_parameters()
    return flat(torch.autograd.grad(_outputs(graph.policies), parameters, _outputs(curved), retain_graph=True))


def _outputs(policies: Sequence[Distribution]) -> list[Tensor]:
    return [output for policy in policies for output in policy]


def _regrouped(outputs: Sequence[Tensor], like: Sequence[Distribution]) -> list[Distribution]:
    """The inverse of `_outputs`: distributions of the same kinds as `like`."""
    remaining = iter(outputs)
    return [alike(policy, itertools.islice(remaining, len(policy))) for policy in like]


def first_episodes(data: MetaData, fraction: float, episodes: int) -> MetaData:
    """The data of each task's first episodes, with weights that sum to 1 again.

    Args:
        data: stacked over tasks, (N, B·T, ·).
        fraction: how many of them are kept, as a fraction of B in (0, 1], rounded up.
        episodes: B.
    """

    def kept(batch: Batch) -> Batch:
        samples = math.ceil(fraction * episodes) * (batch.weights.shape[1] // episodes)
        first = Batch(*(values[:, :samples] for values in batch))
        return first._replace(weights=first.weights / first.weights.sum(1, keepdim=True).clamp_min(1e-12))

    return data._replace(first=kept(data.first), inner=tuple(map(kept, data.inner)), post=kept(data.post))


# ---- The update ---------------------------------------------------------------------------------------------------


class TrustRegionUpdate:
    """Moves (θ, φ, α) by one trust-region step on the surrogate of a meta-batch; keeps no state between updates.

    Args:
        region: the constants of the step.
    """

    def __init__(self, region: TrustRegion) -> None:
        self.region = region

    def update(self, adaptation: Adaptation, rollouts: Rollouts) -> Updated:
        """Move the learner's meta-parameters in place, if a step lowers the surrogate within the KL bound."""
        log = self.step(adaptation, rollouts)
        metrics = {
            "surrogate/change": log.surrogate_after - log.surrogate_before,
            "kl": log.kl,
            "gradient_norm": log.gradient_norm,
            "cg_residual": log.cg_residual,
            "line_search/backtracks": log.backtracks,
            "line_search/accepted": float(log.accepted),
        }
        return Updated(metrics, log.reason)

    def step(self, adaptation: Adaptation, rollouts: Rollouts) -> StepLog:
        """The same, with the log of the step."""
        surrogate = MetaSurrogate(adaptation, rollouts.data, rollouts.share)
        parameters = surrogate.parameters
        origin = parameters_to_vector(parameters).detach().clone()
        before, gradient, old = surrogate.gradient()

        @torch.no_grad()
        def move(step: Tensor) -> Tensor:
            point = (origin.double() + step).to(origin.dtype)
            vector_to_parameters(point, parameters)
            return point

        def evaluate(step: Tensor) -> tuple[float, float]:
            # Neither number need depend on a parameter that float32 cannot hold.
            return surrogate.value_and_kl(old) if move(step).isfinite().all() else (math.inf, math.inf)

        accepted = torch.zeros_like(gradient)
        try:
            product = self.curvature(adaptation, rollouts)
            accepted, log = trust_region_step(gradient, product, evaluate, before, self.region)
        finally:
            move(accepted)
        return log

    def curvature(self, adaptation: Adaptation, rollouts: Rollouts) -> Product:
        """Products of the KL's curvature, estimated on `fisher_fraction` of each task's episodes."""
        episodes = rollouts.episodes[0].mask.shape[1]
        data = first_episodes(rollouts.data, self.region.fisher_fraction, episodes)
        return MetaSurrogate(adaptation, data, rollouts.share).curvature()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a trust-region step depends on the parameters and the episodes alone."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to continue from."""
