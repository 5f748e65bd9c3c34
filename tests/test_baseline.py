"""The linear baseline, against arithmetic by hand and least squares of NumPy."""

import numpy as np
import pytest
import torch

from metarl_l2f.rl.baseline import LARGEST_OBSERVATION, features, fit_values, projection


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


def test_large_observations_are_features_through_a_fixed_random_projection():
    size = LARGEST_OBSERVATION + 1
    observations, mask = torch.randn(2, 8, 10, size, generator=torch.Generator().manual_seed(0)), torch.ones(2, 8, 10)
    found = features(observations, mask)
    # 16 numbers, their squares, and four of the time: 80 samples are more than 4 · 16.
    assert found.shape == (2, 8, 10, 36)
    p = projection(size)
    assert np.array_equal(projection.__wrapped__(size), p)  # The same in another run.
    read = observations.numpy().astype(float) @ p
    np.testing.assert_allclose(found[..., :16], read, atol=1e-12)
    np.testing.assert_allclose(found[..., 16:32], read**2, atol=1e-12)
    assert found[0, 0, 1, 32:].tolist() == pytest.approx([0.01, 1e-4, 1e-6, 1.0])
    # Length is kept on average: the mean of |P o|² over 16 rows is |o|² / O, here 1.
    assert np.square(p).sum() == pytest.approx(16, rel=0.02) and np.square(read).mean() == pytest.approx(1, rel=0.1)
    assert features(observations[..., 1:], mask).shape == (2, 8, 10, 2 * LARGEST_OBSERVATION + 4)
    assert not features(observations, torch.zeros(2, 8, 10)).any()  # 0 where no step happened
    # Of one task among two, and of few samples: 4 · 2 + 1 samples, two numbers, their squares, and the time.
    assert torch.equal(features(observations[1], mask[1]), found[1])
    assert features(observations[:, :1, :9], mask[:, :1, :9]).shape == (2, 1, 9, 2 * 2 + 4)


def test_bytes_are_features_as_numbers_from_0_to_1():
    for size in (4, LARGEST_OBSERVATION + 1):  # Below and above a quarter of the 16 samples.
        shown = torch.randint(256, (1, 4, 4, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        mask = torch.ones(1, 4, 4)
        assert torch.equal(features(shown, mask), features(shown.float() / 255, mask))


def test_small_pictures_do_not_explain_more_returns_than_there_are_samples():
    shown = torch.randint(256, (1, 8, 10, 21), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 8, 10)
    assert features(shown, mask).shape[-1] == 2 * 16 + 4  # 21 numbers are more than 80 / 4.
    assert features(shown[..., 1:], mask).shape[-1] == 2 * 20 + 4
    assert features(shown.float(), mask).shape[-1] == 2 * 21 + 4  # Other observations stay as they are.


def test_the_baseline_tells_pictures_apart():
    # A bright square moves over a dark picture; the return is its place, which time does not tell.
    places = torch.randint(40, (1, 20, 10), generator=torch.Generator().manual_seed(0))
    pictures = torch.zeros(1, 20, 10, 44, 44, dtype=torch.uint8)
    for episode in range(20):
        for step in range(10):
            at = int(places[0, episode, step])
            pictures[0, episode, step, 20:24, at : at + 4] = 255
    returns, mask = places.float() / 40, torch.ones(1, 20, 10)
    values = fit_values(pictures.flatten(3), returns, mask)
    assert (returns - values).var() < 0.2 * returns.var()
    assert (returns - fit_values(pictures.flatten(3) * 0, returns, mask)).var() > 0.9 * returns.var()
