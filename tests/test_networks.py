"""Networks as functions of their parameters, and the Gaussian's formulas against torch.distributions."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence
from torch.func import vmap

from metarl_l2f.networks import MLP, Gaussian, GaussianPolicy


def gaussians(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def one():
        return Gaussian(torch.randn(5, 3, generator=generator), 0.5 * torch.randn(3, generator=generator))

    return one(), one(), torch.randn(5, 3, generator=generator)


def oracle(gaussian):
    return Independent(Normal(gaussian.mean, gaussian.log_std.exp()), 1)


def test_log_prob_agrees_with_torch():
    ours, _, actions = gaussians()
    torch.testing.assert_close(ours.log_prob(actions), oracle(ours).log_prob(actions))


def test_kl_agrees_with_torch_and_is_zero_with_itself():
    ours, other, _ = gaussians()
    torch.testing.assert_close(ours.kl(other), kl_divergence(oracle(ours), oracle(other)))
    assert ours.kl(ours).abs().max() < 1e-6


def test_sample_scales_and_shifts_noise():
    gaussian = Gaussian(torch.tensor([1.0]), torch.log(torch.tensor([0.5])))
    torch.testing.assert_close(gaussian.sample(torch.tensor([2.0])), torch.tensor([2.0]))  # 1 + 0.5·2


def test_fisher_by_hand():
    # σ = 1/2, weights ¼ and ¾:  mean: w·u/σ² = w·4u;  log σ: 2·u
    gaussian = Gaussian(torch.zeros(2, 1), torch.log(torch.tensor([0.5])))
    tangent = Gaussian(torch.tensor([[1.0], [2.0]]), torch.tensor([3.0]))
    mean, log_std = gaussian.fisher(tangent, torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(mean, torch.tensor([[1.0], [6.0]]))
    torch.testing.assert_close(log_std, torch.tensor([6.0]))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_mlp_equals_torchs_sequential(activation):
    network = MLP([2, 5, 4, 3], activation, torch.Generator().manual_seed(0))
    layer = torch.nn.Tanh if activation == "tanh" else torch.nn.ReLU
    a, b, c = network.layers
    reference = torch.nn.Sequential(a, layer(), b, layer(), c)
    inputs = torch.randn(7, 2)
    torch.testing.assert_close(network(dict(network.named_parameters()), inputs), reference(inputs))


def test_policy_with_a_batch_of_parameters_equals_a_loop():
    policy = GaussianPolicy(2, 2, (8,), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    params = {n: torch.randn(4, *p.shape, generator=generator) for n, p in policy.named_parameters()}
    observations = torch.randn(4, 6, 2, generator=generator)
    batched = vmap(policy)(params, observations)
    for task in range(4):
        single = policy({n: p[task] for n, p in params.items()}, observations[task])
        torch.testing.assert_close(batched.mean[task], single.mean)
        torch.testing.assert_close(batched.log_std[task], single.log_std)


def test_initial_std_is_the_policys():
    policy = GaussianPolicy(2, 3, initial_std=0.25)
    assert policy.log_std.exp().tolist() == pytest.approx([0.25] * 3)


def test_a_new_policy_hardly_moves_anywhere():
    policy = GaussianPolicy(2, 2, generator=torch.Generator().manual_seed(0))
    mean = policy(dict(policy.named_parameters()), torch.randn(50, 2)).mean
    assert 0 < mean.abs().max() < 0.05


def test_the_same_generator_state_gives_the_same_network():
    one, other = (GaussianPolicy(2, 2, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianPolicy(2, 2, initial_std=0.0), "initial_std must be positive and finite, got 0.0"),
        (lambda: MLP([2, 0, 1]), r"layer sizes must be positive, got \(2, 0, 1\)"),
        (lambda: MLP([2, 1], "sine"), "activation must be one of .*, got 'sine'"),
    ],
)
def test_bad_networks_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
