"""A trust-region step (Schulman et al. 2015) on flat float64 vectors; knows neither policy nor task."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_numbers

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TrustRegion:
    """Constants of the step, as in the released MAML code."""

    max_kl: float = 0.01
    """Bound on the mean KL between the policies before and after the step, nats."""
    cg_iterations: int = 10
    """Conjugate gradient iterations."""
    damping: float = 1e-5
    """Added to the curvature's diagonal."""
    backtracks: int = 15
    """Steps tried by the line search."""
    backtrack_ratio: float = 0.8
    """Each tried step's length relative to the one before."""
    fisher_fraction: float = 0.1
    """Share of each task's episodes that the curvature is estimated on; gradient and line search use all."""

    def __post_init__(self) -> None:
        check_numbers(self, "(0, inf)", "max_kl")
        check_numbers(self, "(0, 1]", "fisher_fraction")
        check_numbers(self, "(0, 1)", "backtrack_ratio")
        check_numbers(self, "[0, inf)", "damping")
        if self.cg_iterations < 1 or self.backtracks < 1:
            raise ValueError(
                f"cg_iterations and backtracks must be positive, got {self.cg_iterations} and {self.backtracks}"
            )


@dataclass(frozen=True)
class StepLog:
    """What a trust-region step did."""

    surrogate_before: float
    surrogate_after: float
    kl: float
    cg_residual: float
    backtracks: int
    accepted: bool
    reason: str
    """Why not accepted; empty when accepted."""


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

    def rejected(reason: str, residual: float = math.nan, tried: int = 0) -> tuple[Tensor, StepLog]:
        log = StepLog(surrogate_before, surrogate_before, 0.0, residual, tried, False, reason)
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
            return step, StepLog(surrogate_before, surrogate, kl, residual, tried, True, "")
    return rejected("no step of the line search lowered the surrogate within the KL bound", residual, region.backtracks)
