"""Networks as functions of their parameters, and the distributions' formulas by hand and against torch's own."""

import math
from functools import partial

import pytest
import torch
from torch.distributions import Independent, Normal, OneHotCategorical, kl_divergence
from torch.func import vmap

from metarl_l2f.networks.mlp import ACTIVATIONS, MLP, VECTOR, tanh
from metarl_l2f.networks.policies import (
    Categorical,
    CategoricalPolicy,
    Gaussian,
    GaussianPolicy,
    detached,
    policy_from_layout,
)

dependent = partial(GaussianPolicy, state_dependent_std=True)
POLICIES = [GaussianPolicy, dependent, CategoricalPolicy]
KINDS = ["one σ", "σ of each observation", "categorical"]


def draw(kind, seed=0):
    """Two distributions over three actions at five observations, and a noise for each, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def one():
        if kind == "categorical":
            return Categorical(normal(5, 3))
        return Gaussian(normal(5, 3), 0.5 * (normal(3) if kind == "one σ" else normal(5, 3)))

    return one(), one(), normal(5, 3)


def oracle(ours):
    if isinstance(ours, Gaussian):
        return Independent(Normal(ours.mean, ours.log_std.exp()), 1)
    return OneHotCategorical(logits=ours.logits)


def softmax_of(*probabilities):
    return Categorical(torch.log(torch.tensor(probabilities)))


@pytest.mark.parametrize("kind", KINDS)
def test_log_prob_agrees_with_torch(kind):
    ours, _, noise = draw(kind)
    actions = ours.sample(noise)
    torch.testing.assert_close(ours.log_prob(actions), oracle(ours).log_prob(actions))


@pytest.mark.parametrize("kind", KINDS)
def test_kl_agrees_with_torch_and_is_zero_with_itself(kind):
    ours, other, _ = draw(kind)
    torch.testing.assert_close(ours.kl(other), kl_divergence(oracle(ours), oracle(other)))
    assert ours.kl(ours).abs().max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_mode_agrees_with_torch(kind):
    ours, _, _ = draw(kind)
    assert torch.equal(ours.mode(), oracle(ours).mode)


@pytest.mark.parametrize("kind", KINDS)
def test_fisher_is_the_second_derivative_of_the_weighted_kl(kind):
    ours, tangent, noise = draw(kind)
    weights = noise[:, 0].softmax(0)

    def weighted_kl(*fields):
        return (weights * ours.kl(type(ours)(*fields))).sum()

    # an hvp of the KL with respect to the distribution's own fields, where both arguments are the same
    _, expected = torch.autograd.functional.hvp(weighted_kl, tuple(ours), tuple(tangent))
    torch.testing.assert_close(tuple(ours.fisher(tangent, weights)), expected)


def test_sample_scales_and_shifts_noise():
    gaussian = Gaussian(torch.tensor([1.0]), torch.log(torch.tensor([0.5])))
    torch.testing.assert_close(gaussian.sample(torch.tensor([2.0])), torch.tensor([2.0]))  # 1 + 0.5·2


def test_actions_are_chosen_as_often_as_the_softmax_says():
    probabilities, count = torch.tensor([0.2, 0.5, 0.299, 0.001]), 200_000
    # shifted logits: only their differences mean anything
    categorical = Categorical(torch.log(probabilities) + 3)
    actions = categorical.sample(torch.randn(count, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(actions.sum(-1), torch.ones(count))
    assert set(actions.unique().tolist()) == {0.0, 1.0}
    error = (probabilities * (1 - probabilities) / count).sqrt()  # of a frequency
    assert ((actions.mean(0) - probabilities).abs() < 4 * error).all()


def test_the_largest_noise_wins_among_equal_logits_however_far_out():
    noise = torch.tensor([[-40.0, -41.0, 0.0], [9.0, 9.5, 8.0], [0.0, 5.6, 5.5]])
    assert Categorical(torch.zeros(3, 3)).sample(noise).argmax(-1).tolist() == [2, 1, 1]


@pytest.mark.parametrize("noise", [-40.0, 40.0])
def test_noise_beyond_what_a_float_resolves_leaves_the_choice_to_the_logits(noise):
    actions = Categorical(torch.tensor([0.0, 2.0, 1.0])).sample(torch.full((3,), noise))
    assert actions.tolist() == [0, 1, 0]


def test_log_prob_of_a_softmax_by_hand():
    # p = (½, ¼, ¼), the third action: log ¼
    assert softmax_of(0.5, 0.25, 0.25).log_prob(torch.tensor([0.0, 0.0, 1.0])).exp().item() == pytest.approx(0.25)


def test_kl_of_two_softmaxes_by_hand():
    # p = (½, ¼, ¼), p′ = (¼, ¼, ½):  ½ log 2 + ¼ log 1 + ¼ log ½ = ¼ log 2
    kl = softmax_of(0.5, 0.25, 0.25).kl(softmax_of(0.25, 0.25, 0.5))
    assert (4 * kl).exp().item() == pytest.approx(2)


def test_fisher_of_a_softmax_by_hand():
    # p = (½, ¼, ¼), u = (1, 0, 2):  pᵀu = 1,  p u − p (pᵀu) = (½, 0, ½) − (½, ¼, ¼) = (0, −¼, ¼);  times w = 2
    (logits,) = softmax_of(0.5, 0.25, 0.25).fisher(Categorical(torch.tensor([1.0, 0.0, 2.0])), torch.tensor(2.0))
    torch.testing.assert_close(logits, torch.tensor([0.0, -0.5, 0.5]))


def test_fisher_of_a_sigma_of_each_observation_by_hand():
    # σ = 1/2 and 1, weights ¼ and ¾:  mean: w·u/σ²;  log σ: 2·w·u
    gaussian = Gaussian(torch.zeros(2, 1), torch.log(torch.tensor([[0.5], [1.0]])))
    tangent = Gaussian(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]]))
    mean, log_std = gaussian.fisher(tangent, torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(mean, torch.tensor([[1.0], [1.5]]))
    torch.testing.assert_close(log_std, torch.tensor([[1.5], [6.0]]))


def test_fisher_by_hand():
    # σ = 1/2, weights ¼ and ¾:  mean: w·u/σ² = w·4u;  log σ: 2·u
    gaussian = Gaussian(torch.zeros(2, 1), torch.log(torch.tensor([0.5])))
    tangent = Gaussian(torch.tensor([[1.0], [2.0]]), torch.tensor([3.0]))
    mean, log_std = gaussian.fisher(tangent, torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(mean, torch.tensor([[1.0], [6.0]]))
    torch.testing.assert_close(log_std, torch.tensor([6.0]))


TORCHS = {
    "tanh": torch.nn.Tanh,
    "relu": torch.nn.ReLU,
    "leaky_relu": torch.nn.LeakyReLU,
    "elu": torch.nn.ELU,
    "silu": torch.nn.SiLU,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_equals_torchs_sequential(activation):
    network = MLP([2, 5, 4, 3], activation, torch.Generator().manual_seed(0))
    layer = TORCHS[activation]
    a, b, c = network.layers
    reference = torch.nn.Sequential(a, layer(), b, layer(), c)
    inputs = torch.randn(7, 2)
    torch.testing.assert_close(network(dict(network.named_parameters()), inputs), reference(inputs))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_two_derivatives_are_torchs_from_minus_infinity_to_infinity(activation):
    numbers = torch.tensor([-1e30, -100, -20, -1, -0.1, 0.1, 1, 20, 100, 1e30], dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        found, expected = [], []
        for function, values in ((ACTIVATIONS[activation], found), (TORCHS[activation](), expected)):
            x = numbers.to(dtype).requires_grad_()
            values.append(function(x))
            values += torch.autograd.grad(values[0].sum(), x, create_graph=True)
            second = values[1].sum()  # Where it is linear, there is no graph of the second derivative.
            values += (
                torch.autograd.grad(second, x, allow_unused=True, materialize_grads=True) if second.grad_fn else ()
            )
        torch.testing.assert_close(found, expected[: len(found)], rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", POLICIES)
def test_what_one_task_gets_does_not_depend_on_how_many_there_are(kind, activation):
    random = torch.Generator().manual_seed(0)
    # Rows of 35 numbers and rows of 64: with a rest beyond the processor's vectors, and without.
    for hidden, rows in ((7, 5), (16, 4)):
        policy = kind(3, 3, (hidden, hidden), activation, generator=random)
        params = {name: torch.randn(7, *p.shape, generator=random) for name, p in policy.named_parameters()}
        observations, noise = (torch.randn(7, rows, 3, generator=random) for _ in range(2))
        together = policy(params, observations).sample(noise)
        for task in range(7):
            own = slice(task, task + 1)
            alone = policy({name: p[own].clone() for name, p in params.items()}, observations[own].clone())
            assert torch.equal(alone.sample(noise[own])[0], together[task])


@pytest.mark.parametrize("kind", POLICIES)
def test_policy_with_a_batch_of_parameters_equals_a_loop(kind):
    policy = kind(2, 2, (8,), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    params = {n: torch.randn(4, *p.shape, generator=generator) for n, p in policy.named_parameters()}
    observations = torch.randn(4, 6, 2, generator=generator)
    batched = vmap(policy)(params, observations)
    for task in range(4):
        single = policy({n: p[task] for n, p in params.items()}, observations[task])
        torch.testing.assert_close([field[task] for field in batched], list(single))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_a_batch_of_tasks_equal_a_loop(kind):
    ours, other, noise = draw(kind)
    stacked = type(ours)(*(torch.stack(fields) for fields in zip(ours, other, strict=True)))
    batched = vmap(type(ours).sample)(stacked, torch.stack([noise, -noise]))
    torch.testing.assert_close(batched, torch.stack([ours.sample(noise), other.sample(-noise)]))


def test_initial_std_is_the_policys():
    policy = GaussianPolicy(2, 3, initial_std=0.25)
    assert policy.log_std.exp().tolist() == pytest.approx([0.25] * 3)
    policy = dependent(2, 3, initial_std=0.25, generator=torch.Generator().manual_seed(0))
    std = policy(dict(policy.named_parameters()), torch.randn(50, 2)).log_std.exp()
    assert std.shape == (50, 3) and ((std / 0.25 - 1).abs() < 0.05).all() and std.std() > 0


def test_log_sigma_of_a_state_is_the_parameter_plus_the_second_half_of_the_outputs():
    policy = dependent(1, 2, ())
    weight, bias = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([0.0, 0.0, 0.0, -1.0])
    params = {"log_std": torch.tensor([10.0, 20.0]), "mean.layers.0.weight": weight, "mean.layers.0.bias": bias}
    mean, log_std = policy(params, torch.tensor([[1.0], [-5.0]]))
    assert mean.tolist() == [[1, 2], [-5, -10]]
    # 10 + 3 o,  20 + 4 o − 1; at o = −5 that is −5 and −1.
    assert log_std.tolist() == [[13, 23], [-5, -1]]
    assert policy(params, torch.tensor([[-50.0]])).log_std[0, 0].exp() == pytest.approx(1e-6)  # At least a millionth.


@pytest.mark.parametrize("kind", POLICIES)
def test_a_new_policy_hardly_prefers_any_action(kind):
    policy = kind(2, 3, generator=torch.Generator().manual_seed(0))
    output = policy(dict(policy.named_parameters()), torch.randn(50, 2))[0]  # mean, or logits
    assert 0 < output.abs().max() < 0.05


def test_biases_start_at_0_and_weights_within_xaviers_bounds():
    hidden, last = MLP([2, 100, 3], generator=torch.Generator().manual_seed(0)).layers
    assert not hidden.bias.any() and not last.bias.any()
    for layer, units in ((hidden, 2 + 100), (last, 100 + 3)):
        assert 0.95 < layer.weight.abs().max().item() / (6 / units) ** 0.5 <= 1


@torch.no_grad()
@pytest.mark.parametrize(("size", "exact"), [(2 * VECTOR, False), (VECTOR + 1, True)])
def test_tanh_without_derivatives_takes_the_detour_only_where_every_row_is_rounded_alike(size, exact):
    inputs = torch.randn(1, size, generator=torch.Generator().manual_seed(0))
    expected = torch.tanh(inputs)
    ours = tanh(inputs.clone())
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours, expected) is exact


def test_sigma_is_a_millionth_at_least():
    policy = GaussianPolicy(1, 2)
    gaussian = policy(dict(policy.named_parameters()) | {"log_std": torch.tensor([-100.0, 0.5])}, torch.zeros(1))
    assert gaussian.log_std.exp().tolist() == pytest.approx([1e-6, math.exp(0.5)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_detached_distribution_is_the_same_constant(kind):
    ours, _, _ = draw(kind)
    constant = detached(type(ours)(*(field.requires_grad_() for field in ours)))
    assert type(constant) is type(ours)
    for one, other in zip(constant, ours, strict=True):
        assert torch.equal(one, other) and not one.requires_grad


@pytest.mark.parametrize("kind", POLICIES)
def test_a_policy_is_built_anew_from_its_layout(kind):
    policy = kind(5, 2, (3, 4), "relu")
    twin = policy_from_layout(policy.layout())
    assert type(twin) is type(policy) and twin.layout() == policy.layout()
    twin.load_state_dict(policy.state_dict())
    seen = torch.randn(7, 5)
    ours, theirs = (each(dict(each.named_parameters()), seen) for each in (policy, twin))
    torch.testing.assert_close(tuple(ours), tuple(theirs), rtol=0, atol=0)


@pytest.mark.parametrize("kind", POLICIES)
def test_the_same_generator_state_gives_the_same_network(kind):
    one, other = (kind(2, 2, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianPolicy(2, 2, initial_std=0.0), "initial_std must be positive and finite, got 0.0"),
        (lambda: MLP([2, 0, 1]), "every layer size must be a whole number, 1 or more, got 0"),
        (lambda: MLP([2, 1], "sine"), "activation must be one of .*, got 'sine'"),
    ],
)
def test_bad_networks_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("kind", POLICIES)
def test_stacked_parameters_do_what_vmap_does(kind):
    # As many tasks as observations, so that swapping the two axes would go unnoticed by shapes alone.
    policy = kind(4, 2, (5, 6), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    params = {name: torch.randn(3, *p.shape, generator=generator) for name, p in policy.named_parameters()}
    observations, noise = torch.randn(3, 3, 4, generator=generator), torch.randn(3, 3, 2, generator=generator)
    expected = torch.func.vmap(lambda params, seen, noise: policy(params, seen).sample(noise))
    actions = policy(params, observations).sample(noise)
    torch.testing.assert_close(actions, expected(params, observations, noise))


def test_entropies_by_hand_and_by_torch():
    policy = dependent(2, 3, (4,), generator=torch.Generator().manual_seed(0))
    params = {name: torch.randn_like(p) for name, p in policy.named_parameters()}
    seen = torch.randn(7, 2)
    torch.testing.assert_close(policy.entropy(params, seen), oracle(policy(params, seen)).entropy())
    gaussian = GaussianPolicy(2, 3, (4,), initial_std=0.5)
    normal = torch.distributions.Normal(torch.zeros(3), 0.5)
    params = dict(gaussian.named_parameters())
    expected = normal.entropy().sum().expand(7)
    torch.testing.assert_close(gaussian.entropy(params, torch.randn(7, 2)).detach(), expected)
    categorical = CategoricalPolicy(2, 3, (4,), generator=torch.Generator().manual_seed(0))
    params, observations = dict(categorical.named_parameters()), torch.randn(7, 2)
    chosen = torch.distributions.Categorical(logits=categorical(params, observations).logits)
    torch.testing.assert_close(categorical.entropy(params, observations), chosen.entropy())
    even = {name: torch.zeros_like(p) for name, p in params.items()}
    torch.testing.assert_close(categorical.entropy(even, observations), torch.full((7,), math.log(3)))
