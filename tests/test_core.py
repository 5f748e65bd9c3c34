"""The equations of L2F, against arithmetic by hand, limits, and finite differences."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.func import vmap

from metarl_l2f.core.attenuation import Attenuation, attenuate, embed, share_gammas
from metarl_l2f.core.learner import meta_learner, renamed_since_0_1
from metarl_l2f.core.parameters import Watched, layer_of
from metarl_l2f.core.update_rules import InnerLoop, descend
from metarl_l2f.networks.mlp import MLP

SHAPES = {"a.weight": torch.Size([2, 3]), "a.bias": torch.Size([2]), "b.weight": torch.Size([1, 2])}


def quadratic(target):
    """Half the squared distance of all parameters to the target: the gradient is params − target."""
    return lambda params: 0.5 * sum((p - target).square().sum() for p in params.values())


def adapt(learner, losses):
    """One task: the parameters after a step along each loss, and where they started."""
    path, start = learner.trajectory(
        lambda loss, step: loss, losses[0], lambda number, params: losses[number], len(losses)
    )
    return path[-1], start


class Two(nn.Module):
    """Two scalar tensors of known values."""

    def __init__(self, first=2.0, second=4.0):
        super().__init__()
        self.first = nn.Parameter(torch.tensor([first], dtype=torch.float64))
        self.second = nn.Parameter(torch.tensor([second], dtype=torch.float64))


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("network", [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("layer", [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]),
        ("tensor", [0, 0, 0, 0, 0, 0, 1, 1, 2, 2]),
        ("filter", [0, 0, 0, 1, 1, 1, 2, 3, 4, 4]),
        ("weight", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_scope_says_which_scalars_share_a_gamma(scope, expected):
    owners = share_gammas(SHAPES, scope)
    every = torch.cat([o.expand(shape).flatten() for o, shape in zip(owners, SHAPES.values(), strict=True)])
    assert every.tolist() == expected


@pytest.mark.parametrize("scale", ["raw", "normalised", "standardised"])
@pytest.mark.parametrize("scope", ["network", "layer", "tensor", "filter", "weight"])
def test_embedding_is_a_mean_over_whatever_shares_a_gamma(scope, scale):
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES.values()]
    owners = share_gammas(SHAPES, scope)
    scaled = [g if scale == "raw" else g / g.square().mean().sqrt() for g in gradients]
    shared = {}
    for values, owner in zip(scaled, owners, strict=True):
        for value, entry in zip(values.flatten().tolist(), owner.expand(values.shape).flatten().tolist(), strict=True):
            shared.setdefault(entry, []).append(value)
    root = 0.5 if scale == "standardised" else 1.0
    expected = [sum(values) / len(values) ** root for _, values in sorted(shared.items())]
    assert embed(gradients, owners, scale).tolist() == pytest.approx(expected)


def test_raw_embedding_is_the_mean_gradient_of_each_tensor():
    gradients = [torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]]), torch.tensor([-1.0, 2.0])]
    owners = [torch.tensor([[0]]), torch.tensor([1])]
    # (1+2+3+4+5+9)/6 = 4;  (−1+2)/2 = 0.5
    torch.testing.assert_close(embed(gradients, owners, "raw"), torch.tensor([4.0, 0.5]))


def test_normalised_embedding_divides_each_tensor_by_its_root_mean_square():
    gradients = [torch.tensor([3.0, -1.0, 1.0, 1.0])]
    # mean 1, rms √(12/4) = √3
    torch.testing.assert_close(embed(gradients, [torch.tensor([0])], "normalised"), torch.tensor([3**-0.5]))


def test_standardised_embedding_is_the_mean_in_units_of_its_standard_error():
    gradients = [torch.tensor([3.0, -1.0, 1.0, 1.0])]
    # normalised 1/√3, times √4
    torch.testing.assert_close(embed(gradients, [torch.tensor([0])], "standardised"), torch.tensor([2 * 3**-0.5]))


def test_normalised_embedding_does_not_blow_up_what_is_zero_but_for_rounding():
    # The second gradient is 1e-6 of the first, as that of a bias before a normalisation: 1e-6 / √ε = 0.0029.
    gradients, owners = [torch.ones(4), torch.full((4,), 1e-6)], [torch.tensor([0]), torch.tensor([1])]
    noise = 1e-6 / math.sqrt(torch.finfo(torch.float32).eps)
    assert embed(gradients, owners, "normalised").tolist() == pytest.approx([1.0, noise], rel=1e-5)
    # A hundredth, though, is a gradient like any other.
    gradients[1] = torch.full((4,), 0.01)
    assert embed(gradients, owners, "normalised").tolist() == pytest.approx([1.0, 1.0], rel=1e-3)


def test_normalised_embedding_ignores_the_gradients_scale_and_survives_zero():
    gradient = torch.randn(8, generator=torch.Generator().manual_seed(0))
    owners = [torch.tensor([0])]
    torch.testing.assert_close(embed([gradient], owners, "normalised"), embed([1e-4 * gradient], owners, "normalised"))
    assert embed([torch.zeros(8)], owners, "normalised").tolist() == [0.0]


def test_embedding_is_data_not_a_path_for_gradients():
    gradient = torch.ones(3, requires_grad=True)
    assert not embed([gradient], [torch.tensor([0])], "raw").requires_grad


def test_attenuation_multiplies_and_keeps_unnamed_tensors():
    theta = {"a": torch.tensor([2.0, 4.0]), "b": torch.tensor([3.0])}
    forgotten = attenuate(theta, {"a": torch.tensor([0.5, 0.25])})
    assert forgotten["a"].tolist() == [1.0, 1.0]
    assert forgotten["b"] is theta["b"]


def test_affine_attenuation_adds_its_shift():
    forgotten = attenuate({"a": torch.tensor([2.0])}, {"a": torch.tensor([0.5])}, {"a": torch.tensor([3.0])})
    assert forgotten["a"].tolist() == [4.0]  # 0.5·2 + 3


def test_a_logarithm_is_attenuated_inside():
    log_std = torch.log(torch.tensor([2.0]))
    forgotten = attenuate({"log_std": log_std}, {"log_std": torch.tensor([0.25])}, logarithmic=["log_std"])
    torch.testing.assert_close(forgotten["log_std"].exp(), torch.tensor([0.5]))  # 0.25 · 2


def test_a_gamma_that_underflows_leaves_the_logarithm_finite():
    forgotten = attenuate({"log_std": torch.zeros(1)}, {"log_std": torch.zeros(1)}, logarithmic=["log_std"])
    assert forgotten["log_std"].item() == pytest.approx(math.log(torch.finfo(torch.float32).tiny))


def test_descend_moves_only_what_has_a_gradient():
    params = {"a": torch.tensor([1.0]), "b": torch.tensor([1.0])}
    moved = descend(params, {"a": torch.tensor([2.0])}, {"a": torch.tensor(0.1)})
    assert moved["a"].tolist() == pytest.approx([0.8])
    assert moved["b"] is params["b"]


def test_two_inner_steps_of_maml_by_hand():
    learner = meta_learner(Two(), inner=InnerLoop(inner_steps=2, inner_lr=0.5)).double()
    params, start = adapt(learner, [quadratic(0.0)] * 2)
    # each step halves the distance to 0:  2 → 1 → 0.5,  4 → 2 → 1
    assert params["first"].item() == pytest.approx(0.5)
    assert params["second"].item() == pytest.approx(1.0)
    assert start.gamma.numel() == 0


def hand_made(**options):
    """An L2F whose γ is 0.5 for every tensor whatever the task."""
    attenuation = Attenuation(initial_gamma=0.5, embedding="raw")
    learner = meta_learner(Two(), attenuation, InnerLoop(inner_lr=0.5), **options).double()
    with torch.no_grad():
        learner.attenuator.mlp[2].weight.zero_()
        learner.attenuator.mlp[2].bias.zero_()
    return learner


def test_first_step_at_the_attenuated_parameters_by_hand():
    params, start = adapt(hand_made(), [quadratic(0.0)])
    assert start.gamma.tolist() == [0.5, 0.5]
    assert params["first"].item() == pytest.approx(0.5)  # θ̄ = 1, ∇ = 1: 1 − 0.5·1
    assert params["second"].item() == pytest.approx(1.0)


def test_first_step_with_the_gradient_at_the_initialisation_by_hand():
    params, _ = adapt(hand_made(gradient_at_init=True), [quadratic(0.0)])
    assert params["first"].item() == pytest.approx(0.0)  # θ̄ = 1, ∇L(θ) = 2: 1 − 0.5·2
    assert params["second"].item() == pytest.approx(0.0)


def test_steps_beyond_the_trained_ones_shrink_the_last_step_size():
    learner = meta_learner(Two(), inner=InnerLoop(inner_steps=2, inner_lr=0.4, later_lr_factor=0.5))
    assert [learner.rule.alpha(step)["first"].item() for step in range(4)] == pytest.approx([0.4, 0.4, 0.2, 0.2])


def regression(seed=0, tasks=3, **options):
    """A tiny network in float64 with N regression tasks, as (learner, inputs, targets)."""
    generator = torch.Generator().manual_seed(seed)
    network = MLP([2, 3, 1], "tanh", generator)
    learner = meta_learner(network, generator=generator, **options).double()
    inputs = torch.randn(tasks, 5, 2, generator=generator, dtype=torch.float64)
    targets = torch.randn(tasks, 5, 1, generator=generator, dtype=torch.float64)
    return learner, inputs, targets


def test_first_order_drops_the_second_derivative_by_hand():
    # L = θ²/2 at every step, α = 0.5, one step: θ₁ = θ − 0.5 θ = θ/2; L(θ₁) = θ²/8.
    # second order: dL/dθ = θ/4 = 0.5 at θ = 2;  first order: θ₁ · 1 = 1
    for first_order, expected in ((False, 0.5), (True, 1.0)):
        network = Two(first=2.0)
        learner = meta_learner(network, inner=InnerLoop(inner_lr=0.5, first_order=first_order)).double()
        params, _ = adapt(learner, [quadratic(0.0)])
        (gradient,) = torch.autograd.grad(quadratic(0.0)(params), [network.first])
        assert gradient.item() == pytest.approx(expected)


@pytest.mark.parametrize("transform", ["attenuate", "scale", "affine"])
def test_initial_gamma_is_where_gamma_starts_and_the_shift_starts_at_0(transform):
    learner, _, _ = regression(attenuation=Attenuation(initial_gamma=0.9, transform=transform))
    with torch.no_grad():
        learner.attenuator.mlp[2].weight.zero_()
    gamma, delta = learner.attenuator.factors({name: torch.randn_like(p) for name, p in learner.theta.items()})
    torch.testing.assert_close(gamma, torch.full_like(gamma, 0.9))
    assert (delta is None) == (transform != "affine")
    assert delta is None or delta.tolist() == [0.0] * 4


def test_only_attenuation_squashes_gamma():
    for transform, expected in (("attenuate", 1 / (1 + math.exp(-3))), ("scale", 3.0)):
        learner = meta_learner(Two(), Attenuation(transform=transform))
        with torch.no_grad():
            learner.attenuator.mlp[2].weight.zero_()
            learner.attenuator.mlp[2].bias.fill_(3.0)
        gamma, _ = learner.attenuator.factors({name: torch.ones(1) for name in ("first", "second")})
        assert gamma.tolist() == pytest.approx([expected] * 2)


def test_single_tensors_may_start_from_their_own_gamma():
    network = MLP([2, 3, 1], "tanh")
    learner = meta_learner(network, Attenuation(initial_gamma=0.9), initial_gammas={"layers.0.bias": 0.2})
    with torch.no_grad():
        learner.attenuator.mlp[2].weight.zero_()
    gamma, _ = learner.attenuator.factors({name: torch.randn_like(p) for name, p in learner.theta.items()})
    torch.testing.assert_close(gamma, torch.tensor([0.9, 0.2, 0.9, 0.9]))
    free = meta_learner(network, Attenuation(conditioning="none"), initial_gammas={"layers.0.bias": 0.2})
    assert free.attenuator.factors({})[0].tolist() == pytest.approx([1.0, 0.2, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"initial_gammas names no attenuated parameter.*bias"):
        meta_learner(network, Attenuation(), attenuated=lambda n: "weight" in n, initial_gammas={"layers.0.bias": 0.2})


def test_tasks_get_different_gammas_when_conditioned_and_the_same_when_not():
    for conditioning, differs in (("gradient", True), ("none", False)):
        learner, x, y = regression(attenuation=Attenuation(conditioning=conditioning))

        def gamma(x, y, learner=learner):
            return learner.start(lambda p: (learner.network(p, x) - y).square().mean()).gamma

        assert (vmap(gamma)(x, y).std(0).max() > 1e-4).item() is differs


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Attenuation(scope="everything"), "scope must be one of 'network'"),
        (lambda: Attenuation(initial_gamma=1.0), r"initial γ must lie in \(0, 1\), got 1.0"),
        (lambda: InnerLoop(inner_steps=0), "inner_steps must be a whole number of gradient steps, 1 or more, got 0"),
        (lambda: InnerLoop(inner_lr=float("nan")), "inner_lr must be positive and finite, got nan"),
        (lambda: meta_learner(Two(), adapted=lambda n: False), "adapted selects none of the network's parameters"),
        (lambda: meta_learner(Two(), logarithmic=["third"]), "logarithmic names no parameter.*third"),
    ],
)
def test_bad_options_are_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_every_step_takes_its_own_step_sizes_and_later_ones_shrink_the_last():
    for scope, shared in (("tensor", True), ("weight", False)):
        inner = InnerLoop(2, 0.1, learn_inner_lr=True, inner_lr_scope=scope, later_lr_factor=0.5)
        learner = meta_learner(MLP([1, 2]), None, inner)
        columns = 2 if shared else 4  # weight (2, 1) and bias (2,)
        assert learner.rule.step_sizes.shape == (2, columns)
        with torch.no_grad():
            learner.rule.step_sizes.copy_(torch.arange(2.0 * columns).reshape(2, columns))
        alphas = [learner.rule.alpha(step)["layers.0.bias"].flatten().tolist() for step in range(3)]
        assert alphas == ([[1.0], [3.0], [1.5]] if shared else [[2.0, 3.0], [6.0, 7.0], [3.0, 3.5]])


def test_step_sizes_are_parameters_and_metrics_only_where_they_are_learned():
    fixed = meta_learner(Two(), inner=InnerLoop(2, 0.3)).rule
    assert list(fixed.parameters()) == [] and fixed.learned() == {} and "step_sizes" in fixed.state_dict()
    learned = meta_learner(MLP([1, 2]), None, InnerLoop(2, 0.3, learn_inner_lr=True, inner_lr_scope="weight")).rule
    with torch.no_grad():
        learned.step_sizes.copy_(torch.tensor([[1.0, 2.0, 3.0, 5.0], [0.0, 4.0, 6.0, 6.0]]))
    assert learned.learned() == {
        "step_size/layers.0.weight/0": 1.5,
        "step_size/layers.0.bias/0": 4.0,
        "step_size/layers.0.weight/1": 2.0,
        "step_size/layers.0.bias/1": 6.0,
    }


def test_a_layer_is_a_name_up_to_its_last_dot():
    assert [layer_of(name) for name in ("mean.layers.0.weight", "a.bias", "log_std")] == [
        "mean.layers.0",
        "a",
        "log_std",
    ]


def test_the_attenuator_is_as_wide_as_gamma_but_no_wider_than_64():
    small, large = (meta_learner(MLP([1, units, 1]), Attenuation(scope="weight")) for units in (5, 40))
    assert (small.attenuator.mlp[0].in_features, small.attenuator.mlp[0].out_features) == (16, 16)
    assert (large.attenuator.mlp[0].in_features, large.attenuator.mlp[0].out_features) == (121, 64)


def test_what_is_not_adapted_stays_though_its_gradient_is_known():
    learner = meta_learner(
        Two(), Attenuation(), InnerLoop(inner_lr=0.5), adapted=lambda name: name == "second"
    ).double()
    start = learner.start(quadratic(0.0))
    assert set(start.gradients) == {"first", "second"}
    moved = learner.rule(start.params, start.gradients, 0)
    # second: 4 γ − 0.5 · 4, its gradient at θ; first: 2 γ, as it was.
    assert float(moved["second"].detach()) == pytest.approx(float(start.params["second"].detach()) - 2.0)
    assert torch.equal(moved["first"], start.params["first"])


def test_an_affine_transform_scales_and_shifts_by_hand():
    learner = meta_learner(Two(), Attenuation(conditioning="none", transform="affine"))
    gamma, delta = learner.attenuator.factors({})
    assert gamma.tolist() == [1.0, 1.0] and delta.tolist() == [0.0, 0.0]
    with torch.no_grad():
        learner.attenuator.free.copy_(torch.tensor([0.5, 0.25, 3.0, -1.0]))
    # 0.5 · 2 + 3 = 4;  0.25 · 4 − 1 = 0
    params, gamma = learner.attenuator(learner.theta, {})
    assert [value.item() for value in params.values()] == [4.0, 0.0] and gamma.tolist() == [0.5, 0.25]


def test_a_learner_attenuates_the_exponential_of_what_it_is_told_is_a_logarithm():
    learner = meta_learner(
        Two(), Attenuation(conditioning="none"), logarithmic=["first"], initial_gammas={"first": 0.5, "second": 0.25}
    )
    params = learner.start(quadratic(0.0)).params
    assert params["first"].item() == pytest.approx(2 + math.log(0.5)) and params["second"].item() == pytest.approx(1.0)


def test_a_gamma_that_is_learned_freely_is_handed_out_as_a_copy():
    learner = meta_learner(Two(), Attenuation(conditioning="none"))
    gamma = learner.start(quadratic(0.0)).gamma
    with torch.no_grad():
        learner.attenuator.free.fill_(7.0)
    assert gamma.tolist() == [1.0, 1.0]


def test_gammas_of_each_tensor_are_found_by_its_name():
    learner = meta_learner(MLP([1, 2]), Attenuation(scope="filter"))
    gamma = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    found = {name: values.tolist() for name, values in learner.gammas_by_tensor(gamma).items()}
    assert found == {"layers.0.weight": [[1.0, 2.0], [5.0, 6.0]], "layers.0.bias": [[3.0, 4.0], [7.0, 8.0]]}


def test_the_attenuators_weights_are_drawn_within_one_over_the_root_of_the_layers_inputs():
    attenuation = Attenuation(scope="weight", conditioning="prototype")
    one, other = (
        meta_learner(
            MLP([1, 40, 1]), attenuation, embedding_size=400, generator=torch.Generator().manual_seed(0)
        ).attenuator.mlp
        for _ in range(2)
    )
    for number, inputs in ((0, 400), (2, 64)):
        weight = one[number].weight
        assert torch.equal(weight, other[number].weight)
        assert 0.99 < weight.abs().max().item() * inputs**0.5 <= 1


def test_gamma_is_read_off_the_prototype_where_it_is_conditioned_on_one():
    attenuation = Attenuation(conditioning="prototype")
    learner = meta_learner(Two(), attenuation, embedding_size=3, generator=torch.Generator().manual_seed(0)).double()
    gammas = []
    for prototype in torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, -1.0]], dtype=torch.float64):
        gamma, _ = learner.attenuator.factors({}, prototype)
        torch.testing.assert_close(gamma, learner.attenuator.mlp(prototype).sigmoid())
        gammas.append(gamma)
    assert not torch.allclose(*gammas)


# ---- frozen parameters --------------------------------------------------------------------------------------------


def with_frozen_first():
    network = Two()
    network.first.requires_grad_(False)
    return network


@pytest.mark.parametrize("inner_lr_scope", ["tensor", "weight"])
@pytest.mark.parametrize("attenuation", [None, Attenuation()], ids=["maml", "l2f"])
def test_a_frozen_parameter_is_neither_attenuated_nor_adapted_nor_updated(attenuation, inner_lr_scope):
    inner = InnerLoop(inner_lr=0.1, learn_inner_lr=True, inner_lr_scope=inner_lr_scope)
    learner = meta_learner(with_frozen_first(), attenuation, inner).double()
    path, start = learner.trajectory(lambda data, step: quadratic(1.0), None, lambda number, params: None, 1)
    gamma = 1.0 if attenuation is None else start.gamma.item()
    # θ̄ = γ · 4;  one step: θ̄ − 0.1 (θ̄ − 1). The frozen one stays 2 throughout.
    assert path[-1]["second"].item() == pytest.approx(4 * gamma - 0.1 * (4 * gamma - 1))
    assert [params["first"].item() for params in path] == [2.0, 2.0]
    assert learner.rule.names == ["second"] and learner.rule.step_sizes.shape == (1, 1)
    assert attenuation is None or learner.attenuator.names == ["second"]
    assert learner.network.first not in set(learner.meta_parameters()) and "network.first" in learner.state_dict()
    assert len(learner.meta_parameters()) == len(list(learner.parameters())) - 1


def test_a_network_that_is_frozen_altogether_is_refused():
    network = Two().requires_grad_(False)
    with pytest.raises(ValueError, match=r"adapted selects only parameters that are frozen.*'second'.*unfreeze"):
        meta_learner(network)
    with pytest.raises(ValueError, match="attenuated selects only parameters that are frozen"):
        meta_learner(with_frozen_first(), Attenuation(), attenuated=lambda name: name == "first")


# ---- the inner loop -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attenuation", "at_init", "asked"),
    [(None, False, [1, 2]), (Attenuation(), False, [0, 1, 2]), (Attenuation(), True, [1, 2])],
    ids=["maml", "l2f", "l2f, gradient at θ"],
)
def test_data_of_a_step_is_collected_with_the_parameters_before_it_unless_its_gradient_is_known(
    attenuation, at_init, asked
):
    learner = meta_learner(Two(), attenuation, InnerLoop(3, 0.1), gradient_at_init=at_init).double()
    seen = []

    def later(number, params):
        seen.append((number, params))
        return number

    path, _ = learner.trajectory(lambda data, step: quadratic(data), 5, later, 3)
    assert [number for number, _ in seen] == asked
    assert all(params is path[number] for number, params in seen)
    # The last step's data is the number 2, towards which the gradient leads: p − 0.1 (p − 2).
    assert path[3]["first"].item() == pytest.approx(0.9 * path[2]["first"].item() + 0.1 * 2)


@pytest.mark.parametrize(
    ("attenuation", "steps"), [(None, [0, 1, 2]), (Attenuation(), [0, 0, 1, 2])], ids=["maml", "l2f"]
)
def test_a_loss_is_given_the_number_of_steps_behind_its_parameters(attenuation, steps):
    learner = meta_learner(Two(), attenuation, InnerLoop(3, 0.1)).double()
    seen = []

    def loss(data, step):
        seen.append(step)
        return quadratic(0.0)

    learner.trajectory(loss, None, lambda *_: None, 3)
    assert seen == steps


def test_every_inner_step_takes_its_own_step_size():
    learner = meta_learner(Two(), inner=InnerLoop(3, learn_inner_lr=True)).double()
    with torch.no_grad():
        learner.rule.step_sizes.copy_(torch.tensor([[0.5], [0.25], [1.0]]).expand(3, 2))
    path, _ = learner.trajectory(lambda data, step: quadratic(0.0), None, lambda *_: None, 3)
    # 2 → 2 − 0.5 · 2 = 1 → 1 − 0.25 = 0.75 → 0
    assert [params["first"].item() for params in path] == pytest.approx([2.0, 1.0, 0.75, 0.0])


def test_the_meta_update_moves_step_sizes_then_theta_then_phi_and_a_free_gamma_before_theta():
    inner = InnerLoop(learn_inner_lr=True)
    for conditioning, expected in (
        ("gradient", ["rule.step_sizes", "network.first", "network.second", *(f"mlp.{n}" for n in range(4))]),
        ("none", ["rule.step_sizes", "attenuator.free", "network.first", "network.second"]),
    ):
        learner = meta_learner(Two(), Attenuation(conditioning=conditioning), inner)
        names = {p: name for name, p in learner.named_parameters()}
        if conditioning == "gradient":
            names |= {p: f"mlp.{n}" for n, p in enumerate(learner.attenuator.mlp.parameters())}
        assert [names[p] for p in learner.meta_parameters()] == expected


def test_a_watched_loss_keeps_what_it_saw_as_a_function_of_the_parameters():
    # w = 3: the loss w² = 9 has the gradient 6; 5 w = 15, seen on the way, has the derivative 5.
    learner, w = meta_learner(nn.Linear(1, 1, bias=False)), torch.tensor([[3.0]], requires_grad=True)
    loss = Watched(lambda params: (params["weight"].square().sum(), 5 * params["weight"]))
    gradients = learner.gradients(loss, {"weight": w})
    assert (loss({"weight": w}).item(), gradients["weight"].item(), loss.seen.item()) == (9.0, 6.0, 15.0)
    assert torch.autograd.grad(loss.seen.sum(), w)[0].item() == 5.0


def test_first_order_gradients_are_constants_in_every_step():
    # Two steps that halve θ: second order dθ₂/dθ = 1/4, first order 1.
    learner = meta_learner(Two(), inner=InnerLoop(2, 0.5)).double()
    for first_order, expected in ((False, 0.25), (True, 1.0)):
        path, _ = learner.trajectory(
            lambda data, step: quadratic(0.0), None, lambda *_: None, 2, first_order=first_order
        )
        (gradient,) = torch.autograd.grad(path[2]["first"].sum(), [learner.network.first])
        assert gradient.item() == pytest.approx(expected)


def test_evaluation_may_start_from_another_initialisation_and_choose_first_order_gradients():
    learner = meta_learner(Two(), inner=InnerLoop(inner_lr=0.5)).double()
    theta = {name: torch.tensor([8.0], dtype=torch.float64, requires_grad=True) for name in ("first", "second")}
    for first_order, expected in ((False, 2.0), (True, 4.0)):
        # θ₁ = θ/2;  dL(θ₁)/dθ = θ₁/2 = 2, or θ₁ = 4 where inner gradients are constants
        path, _ = learner.trajectory(
            lambda data, step: quadratic(0.0), None, lambda *_: None, 1, theta=theta, first_order=first_order
        )
        (gradient,) = torch.autograd.grad(quadratic(0.0)({"first": path[1]["first"]}), [theta["first"]])
        assert path[1]["first"].item() == pytest.approx(4.0) and gradient.item() == pytest.approx(expected)


def test_states_of_version_0_1_get_the_names_of_this_one():
    learner = meta_learner(Two(), Attenuation(), InnerLoop(learn_inner_lr=True))
    older = {
        name.replace("rule.", "").replace("attenuator.mlp.", "attenuator."): value
        for name, value in learner.state_dict().items()
    }
    assert "step_sizes" in older and "attenuator.0.weight" in older
    assert renamed_since_0_1(older).keys() == learner.state_dict().keys()
    assert renamed_since_0_1(learner.state_dict()).keys() == learner.state_dict().keys()
    free = meta_learner(Two(), Attenuation(conditioning="none")).state_dict()
    assert renamed_since_0_1({name.replace("attenuator.", ""): v for name, v in free.items()}).keys() == free.keys()


# ---- the meta-gradient, of every combination of parts --------------------------------------------------------------


def adapted_loss(learner, x, y):
    """One task: the loss after adaptation on the same samples."""

    def loss(params):
        return (learner.network(params, x) - y).square().mean()

    params, _ = adapt(learner, [loss] * learner.rule.steps)
    return loss(params)


VARIANTS = [
    {"attenuation": Attenuation(scope=scope, transform=transform, conditioning=conditioning)}
    for scope, transform, conditioning in itertools.product(
        ["network", "layer", "tensor", "filter", "weight"], ["attenuate", "scale", "affine"], ["gradient", "none"]
    )
] + [
    {"attenuation": Attenuation(), "inner": InnerLoop(inner_steps=2, learn_inner_lr=True)},
    {"attenuation": None, "inner": InnerLoop(inner_steps=3, learn_inner_lr=True)},
    {"attenuation": Attenuation(), "gradient_at_init": True},
    {"attenuation": Attenuation(), "attenuated": lambda n: "bias" not in n, "adapted": lambda n: "layers.1" in n},
]


@pytest.mark.parametrize("options", VARIANTS)
def test_vmapped_tasks_equal_a_plain_loop_over_tasks(options):
    learner, x, y = regression(**options)
    batched = vmap(lambda x, y: adapted_loss(learner, x, y))(x, y)
    looped = torch.stack([adapted_loss(learner, *task) for task in zip(x, y, strict=True)])
    torch.testing.assert_close(batched, looped, rtol=1e-12, atol=1e-14)


def frozen_gammas(learner, x, y):
    """γ and δ of each task at the current θ, as constants: the embedding is detached, so the meta-gradient of θ
    flows around it and finite differences must hold it still."""
    result = []
    for inputs, targets in zip(x, y, strict=True):

        def loss(params, inputs=inputs, targets=targets):
            return (learner.network(params, inputs) - targets).square().mean()

        gradients = learner.gradients(loss, learner.theta, list(learner.theta))
        chosen = [gradients[name] for name in learner.attenuator.names]
        result.append(embed(chosen, learner.attenuator.owners.values(), learner.attenuator.attenuation.embedding))
    return result


@pytest.mark.parametrize("options", VARIANTS)
def test_meta_gradient_agrees_with_finite_differences(options, monkeypatch):
    learner, x, y = regression(**options)
    conditioned = learner.attenuator is not None and learner.attenuator.attenuation.conditioning == "gradient"
    embeddings = frozen_gammas(learner, x, y) if conditioned else None

    def total():
        losses = []
        for number, task in enumerate(zip(x, y, strict=True)):
            if embeddings is not None:
                monkeypatch.setattr("metarl_l2f.core.attenuation.embed", lambda *_, number=number: embeddings[number])
            losses.append(adapted_loss(learner, *task))
        return sum(losses)

    gradients = torch.autograd.grad(total(), list(learner.parameters()))
    random = torch.Generator().manual_seed(0)
    for parameter, gradient in zip(learner.parameters(), gradients, strict=True):
        direction, step = torch.randn(parameter.shape, generator=random, dtype=torch.float64), 1e-5
        with torch.no_grad():
            parameter += step * direction
            above = total().item()
            parameter -= 2 * step * direction
            below = total().item()
            parameter += step * direction
        assert float((gradient * direction).sum()) == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-8)


def test_gamma_of_one_is_maml_exactly():
    free = Attenuation(conditioning="none", transform="scale")  # starts at γ = 1
    learner, x, y = regression(attenuation=free)
    maml, _, _ = regression()
    for task in zip(x, y, strict=True):
        assert torch.equal(adapted_loss(learner, *task), adapted_loss(maml, *task))
