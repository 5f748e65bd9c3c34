"""Returns, advantages and batches, against arithmetic by hand."""

import torch

from metarl_l2f.rl.episodes import (
    Episodes,
    discounted_returns,
    explained_variance,
    generalised_advantages,
    standardise,
    to_batch,
)


def test_return_discounts_later_rewards():
    rewards = torch.tensor([[1.0, 2.0]])  # (B=1, T=2)
    # G₁ = 2;  G₀ = 1 + 0.5·2 = 2
    torch.testing.assert_close(discounted_returns(rewards, 0.5), torch.tensor([[2.0, 2.0]]))


def test_advantage_by_hand():
    rewards, values = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0])
    # discount 0.5: δ₂ = 3 − 2 = 1;  δ₁ = 2 + 0.5·2 − 1 = 2;  δ₀ = 1 + 0.5·1 − 0.5 = 1
    # λ 0.5: A₂ = 1;  A₁ = 2 + 0.25·1 = 2.25;  A₀ = 1 + 0.25·2.25 = 1.5625
    expected = torch.tensor([1.5625, 2.25, 1.0])
    torch.testing.assert_close(generalised_advantages(rewards, values, 0.5, 0.5), expected)


def test_advantage_with_lambda_one_is_return_minus_value():
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(3, 7, generator=generator), torch.randn(3, 7, generator=generator)
    expected = discounted_returns(rewards, 0.9) - values
    torch.testing.assert_close(generalised_advantages(rewards, values, 0.9, 1.0), expected)


def test_standardised_advantages_ignore_steps_after_the_end():
    values = torch.tensor([[[1.0, 3.0, 99.0]]])  # (N=1, B=1, T=3), the last step did not happen
    mask = torch.tensor([[[1.0, 1.0, 0.0]]])
    # mean 2, standard deviation 1
    torch.testing.assert_close(standardise(values, mask), torch.tensor([[[-1.0, 1.0, 0.0]]]), atol=1e-6, rtol=0)


def test_standardising_equal_advantages_gives_zeros():
    assert standardise(torch.full((1, 2, 2), 3.0), torch.ones(1, 2, 2)).abs().max() == 0


def test_standardising_is_per_task():
    values = torch.stack([torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 200.0]])])
    torch.testing.assert_close(standardise(values, torch.ones(2, 1, 2)), torch.tensor([[[-1.0, 1.0]]] * 2))


def test_batch_weights_sum_to_one_in_every_task():
    mask = torch.tensor([[[1.0, 1.0]], [[1.0, 0.0]]])
    episodes = Episodes(torch.zeros(2, 1, 2, 1), torch.zeros(2, 1, 2, 1), torch.zeros(2, 1, 2), mask)
    assert to_batch(episodes, torch.zeros(2, 1, 2)).weights.tolist() == [[0.5, 0.5], [1.0, 0.0]]


def test_batch_weights_average_over_steps_that_happened():
    mask = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])  # 3 of 4 steps
    episodes = Episodes(torch.zeros(1, 2, 2, 5), torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2), mask)
    batch = to_batch(episodes, torch.arange(4.0).reshape(1, 2, 2))
    torch.testing.assert_close(batch.weights, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0]]))
    assert batch.advantages.tolist() == [[0.0, 1.0, 2.0, 3.0]]
    assert batch.observations.shape == (1, 4, 5)


def test_steps_and_returns_of_episodes():
    mask = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    rewards = torch.tensor([[[1.0, 2.0], [4.0, 0.0]]])
    episodes = Episodes(torch.zeros(1, 2, 2, 1), torch.zeros(1, 2, 2, 1), rewards, mask)
    assert episodes.steps() == 3
    assert episodes.returns().tolist() == [[3.0, 4.0]]


def test_explained_variance_by_hand():
    # Returns 1, 3, 5 that happened, mean 3, Σ(G − Ḡ)² = 8; values 1, 3, 3: Σ(G − V)² = 4. The last step did not happen.
    returns = torch.tensor([[[1.0, 3.0], [5.0, 99.0]]])
    values = torch.tensor([[[1.0, 3.0], [3.0, -7.0]]])
    mask = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    assert explained_variance(returns, values, mask).tolist() == [0.5]
    assert explained_variance(returns, returns, mask).tolist() == [1.0]
    assert explained_variance(torch.ones(1, 1, 2), torch.ones(1, 1, 2), torch.ones(1, 1, 2)).tolist() == [1.0]
