"""The linear baseline, against arithmetic by hand and least squares of NumPy."""

import numpy as np
import pytest
import torch

from metarl_l2f.rl.baseline import LARGEST_OBSERVATION, features, fit_values


def test_features_by_hand():
    # o = 2 at t = 1:  o, o², τ, τ², τ³, 1 with τ = 0.01
    row = features(torch.tensor([[0.0], [2.0]]), torch.ones(2))[1]
    assert row.tolist() == pytest.approx([2.0, 4.0, 0.01, 1e-4, 1e-6, 1.0])


def some_episodes(seed=0, tasks=3):
    generator = torch.Generator().manual_seed(seed)
    observations = torch.randn(tasks, 4, 10, 2, generator=generator)
    mask = torch.ones(tasks, 4, 10)
    mask[:, 1, 6:] = 0
    return observations, mask


def test_baseline_recovers_returns_that_are_linear_in_its_features():
    observations, mask = some_episodes()
    weights = torch.tensor([1.0, -2.0, 0.5, 0.3, 4.0, 0.0, 0.0, 7.0], dtype=torch.float64)
    returns = features(observations, mask) @ weights
    torch.testing.assert_close(fit_values(observations, returns, mask), returns, rtol=0, atol=2e-3)


def test_baseline_equals_least_squares_of_numpy_task_by_task():
    observations, mask = some_episodes()
    returns = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1)).double() * mask
    values = fit_values(observations, returns, mask)
    for task in range(3):
        x = features(observations[task], mask[task]).flatten(0, 1).numpy()
        w, *_ = np.linalg.lstsq(x, returns[task].flatten().numpy(), rcond=None)
        assert values[task].flatten().numpy() == pytest.approx(x @ w, abs=2e-3)


def test_baseline_survives_constant_huge_and_zero_observations():
    mask = torch.ones(1, 3, 5)
    for value in (0.0, 1.0, 1e12):
        values = fit_values(torch.full((1, 3, 5, 2), value), torch.ones(1, 3, 5), mask)
        torch.testing.assert_close(values, torch.ones(1, 3, 5), rtol=0, atol=1e-3)


def test_baseline_is_zero_where_no_step_happened():
    observations, mask = some_episodes()
    assert fit_values(observations, torch.ones_like(mask), mask)[:, 1, 6:].abs().max() == 0


def test_the_baseline_reads_the_time_alone_where_observations_are_large():
    observations = torch.randn(1, 3, 6, LARGEST_OBSERVATION + 1, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 3, 6)
    assert features(observations, mask).shape == (1, 3, 6, 4)
    assert features(observations[..., 1:], mask).shape == (1, 3, 6, 2 * LARGEST_OBSERVATION + 4)
    assert not features(observations, torch.zeros(1, 3, 6)).any()  # 0 where no step happened
    # Three episodes that differ: their mean at every step is a cubic of the time, and that is what is predicted.
    clock = torch.arange(6.0)
    returns = torch.stack([clock**3 + 1, clock**3, clock**3 - 1]).unsqueeze(0)
    torch.testing.assert_close(fit_values(observations, returns, mask)[0], (clock**3).expand(3, 6), rtol=0, atol=1e-2)
