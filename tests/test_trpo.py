"""The trust-region step on quadratics, where every answer is known."""

import math

import pytest
import torch

from metarl_l2f.rl.trpo import TrustRegion, conjugate_gradient, trust_region_step


def spd(size=6, seed=0):
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a @ a.T + torch.eye(size, dtype=torch.float64)


def test_conjugate_gradient_solves_in_as_many_steps_as_dimensions():
    a, b = spd(), torch.arange(1.0, 7.0, dtype=torch.float64)
    x, residual = conjugate_gradient(lambda v: a @ v, b, iterations=6, tolerance=0.0)
    torch.testing.assert_close(x, torch.linalg.solve(a, b), rtol=1e-8, atol=1e-8)
    assert residual.norm() < 1e-8


def test_first_conjugate_gradient_step_by_hand():
    # A = diag(1, 2), b = (1, 1): step length b·b / b·Ab = 2/3
    x, residual = conjugate_gradient(lambda v: torch.tensor([1.0, 2.0]) * v, torch.ones(2), iterations=1)
    torch.testing.assert_close(x, torch.tensor([2 / 3, 2 / 3]))
    torch.testing.assert_close(residual, torch.tensor([1 / 3, -1 / 3]))  # r = b − 2/3 A b


def quadratic_problem(scale=1.0):
    """Surrogate g·s with KL ½ sᵀFs: the natural step to the bound has KL = max_kl exactly."""
    fisher, gradient = spd(), torch.arange(1.0, 7.0, dtype=torch.float64)

    def evaluate(step):
        return float(gradient @ step), scale * float(0.5 * step @ fisher @ step)

    return fisher, gradient, evaluate


def test_step_reaches_the_kl_bound_along_the_natural_gradient():
    fisher, gradient, evaluate = quadratic_problem()
    region = TrustRegion(max_kl=0.02, damping=0.0)
    step, log = trust_region_step(gradient, lambda v: fisher @ v, evaluate, 0.0, region)
    natural = torch.linalg.solve(fisher, gradient)
    expected = -math.sqrt(2 * 0.02 / (gradient @ natural)) * natural
    torch.testing.assert_close(step, expected, rtol=1e-6, atol=1e-9)
    assert log.kl == pytest.approx(0.02, rel=1e-6)
    assert log.surrogate_after < log.surrogate_before


def test_the_log_says_how_much_of_the_gradient_conjugate_gradient_left():
    # One iteration on F = diag(1, 2) and g = (1, 1) leaves (1/3, −1/3): |r| / |g| = (√2/3) / √2.
    region = TrustRegion(cg_iterations=1, damping=0.0)
    fisher = torch.tensor([1.0, 2.0], dtype=torch.float64)
    _, log = trust_region_step(torch.ones(2).double(), lambda v: fisher * v, lambda step: (-1.0, 0.0), 0.0, region)
    assert log.cg_residual == pytest.approx(1 / 3)


def test_line_search_backtracks_until_the_kl_fits():
    fisher, gradient, evaluate = quadratic_problem(scale=1.5)
    # the true KL is 1.5 × the model: ratio² · 1.5 ≤ 1 needs ratio ≤ 0.816: one backtrack of 0.8
    step, log = trust_region_step(gradient, lambda v: fisher @ v, evaluate, 0.0, TrustRegion(damping=0.0))
    assert (log.accepted, log.backtracks) == (True, 1)
    assert log.kl == pytest.approx(0.01 * 1.5 * 0.64, rel=1e-6)
    assert step.any()


def test_a_step_that_does_not_lower_the_surrogate_is_refused():
    fisher, gradient, _ = quadratic_problem()
    step, log = trust_region_step(gradient, lambda v: fisher @ v, lambda s: (1.0, 0.0), 0.0, TrustRegion())
    assert not step.any()
    assert not log.accepted
    assert log.backtracks == 15
    assert "line search" in log.reason


@pytest.mark.parametrize(
    ("gradient", "product", "evaluate", "before", "reason"),
    [
        ([math.nan, 1.0], lambda v: v, lambda s: (-1.0, 0.0), 0.0, "gradient is not finite"),
        ([1.0, 1.0], lambda v: v, lambda s: (-1.0, 0.0), math.inf, "surrogate or its gradient is not finite"),
        ([0.0, 0.0], lambda v: v, lambda s: (-1.0, 0.0), 0.0, "gradient is zero"),
        ([1.0, 1.0], lambda v: v * math.nan, lambda s: (-1.0, 0.0), 0.0, "curvature product is not finite"),
        ([1.0, 1.0], lambda v: -v, lambda s: (-1.0, 0.0), 0.0, "not positive"),
        ([1.0, 1.0], lambda v: v, lambda s: (math.nan, 0.0), 0.0, "line search"),
        ([1.0, 1.0], lambda v: v, lambda s: (-1.0, math.nan), 0.0, "line search"),
        ([1.0, 1.0], lambda v: v, lambda s: (-math.inf, 0.0), 0.0, "line search"),
        ([1.0, 1.0], lambda v: v, lambda s: (-1.0, -math.inf), 0.0, "line search"),
    ],
)
def test_numbers_that_are_not_finite_reject_the_step_and_say_why(gradient, product, evaluate, before, reason):
    gradient = torch.tensor(gradient, dtype=torch.float64)
    step, log = trust_region_step(gradient, product, evaluate, before, TrustRegion())
    assert not step.any()
    assert not log.accepted
    assert reason in log.reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_kl": 0.0}, "max_kl must be positive"),
        ({"fisher_fraction": 1.5}, r"fisher_fraction must lie in \(0, 1\], got 1.5"),
        ({"backtrack_ratio": 1.0}, r"backtrack_ratio must lie in \(0, 1\), got 1.0"),
        ({"cg_iterations": 0}, "cg_iterations must be a whole number, 1 or more, got 0"),
        ({"damping": math.nan}, "damping must be finite and not negative, got nan"),
    ],
)
def test_bad_constants_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrustRegion(**options)


def test_damping_is_added_to_the_curvature_and_counts_towards_the_bound():
    # F = 1 and damping 1: x = g / 2, xᵀ(F + 1)x = |g|² / 2, so the step is −√(2δ · 2 / |g|²) g / 2 = −√δ g / |g|.
    gradient = torch.tensor([3.0, 4.0], dtype=torch.float64)
    region = TrustRegion(max_kl=0.01, damping=1.0)
    step, log = trust_region_step(gradient, lambda v: v, lambda step: (-1.0, 0.0), 0.0, region)
    assert log.accepted and log.gradient_norm == 5.0
    torch.testing.assert_close(step, -0.1 * gradient / 5.0)
