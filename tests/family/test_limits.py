"""The parts of the family against arithmetic by hand, and against the methods that they turn into at their limits."""

import dataclasses
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.func import jacfwd

from metarl_l2f.core.alfa import ALFA
from metarl_l2f.core.learner import meta_learner
from metarl_l2f.core.parameters import contexts
from metarl_l2f.core.update_rules import GradientDescent, InnerLoop
from metarl_l2f.methods import METHODS, label_of, named, with_parts
from metarl_l2f.networks.mlp import MLP
from metarl_l2f.networks.policies import Categorical, CategoricalPolicy, Gaussian, GaussianPolicy, detached
from metarl_l2f.rl.adaptation import Adaptation, PolicyGradient, loaded_dice, magic, policy_loss
from metarl_l2f.rl.episodes import Batch
from metarl_l2f.rl.promp import adapted_weight, clipped_loss
from metarl_l2f.rl.settings import MetaRLSettings
from metarl_l2f.rl.trpo import MetaSurrogate
from metarl_l2f.supervised.settings import SupervisedSettings

from .small import TASKS, small, task_of

# ---- ALFA ---------------------------------------------------------------------------------------------------------


def test_alfa_with_a_constant_output_of_one_and_zero_is_maml():
    shapes = {"a": torch.Size([2, 3]), "b": torch.Size([3])}
    inner = InnerLoop(inner_steps=2, inner_lr=0.3, later_lr_factor=0.5)
    alfa, maml = ALFA(shapes, inner), GradientDescent(shapes, inner)
    with torch.no_grad():
        alfa.mlp[2].weight.zero_()
    params, gradients = ({name: torch.randn(shape) for name, shape in shapes.items()} for _ in range(2))
    for step in range(3):
        torch.testing.assert_close(alfa(params, gradients, step), maml(params, gradients, step))


def test_alfas_step_by_hand():
    alfa = ALFA({"a": torch.Size([2]), "b": torch.Size([1])}, InnerLoop(inner_lr=0.5), embedding="raw")
    params = {"a": torch.tensor([2.0, 4.0]), "b": torch.tensor([1.0])}
    gradients = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([-1.0])}
    # Mean gradients (2, −1), then mean weights (3, 1).
    assert alfa.state(params, gradients).tolist() == [2.0, -1.0, 3.0, 1.0]
    with torch.no_grad():
        alfa.mlp[0].weight.copy_(torch.eye(4))
        alfa.mlp[0].bias.zero_()
        alfa.mlp[2].weight.copy_(torch.eye(4))
        alfa.mlp[2].bias.zero_()
        alfa.beta.fill_(0.1)
    # ReLU: (2, 0, 3, 1). α = 0.5 · (2, 0), β = 0.1 · (3, 1).
    moved = alfa(params, gradients, 0)
    torch.testing.assert_close(moved["a"], 0.7 * params["a"] - 1.0 * gradients["a"])
    torch.testing.assert_close(moved["b"], 0.9 * params["b"])


def test_every_step_of_alfa_has_its_own_sizes_and_later_ones_shrink_the_last():
    alfa = ALFA({"a": torch.Size([1])}, InnerLoop(inner_steps=2, inner_lr=0.5, later_lr_factor=0.5), embedding="raw")
    with torch.no_grad():
        alfa.mlp[2].weight.zero_()
        alfa.mlp[2].bias.copy_(torch.tensor([1.0, 1.0]))
        alfa.alpha.copy_(torch.tensor([[0.1], [0.2]]))
        alfa.beta.copy_(torch.tensor([[0.3], [0.4]]))
    params, gradients = {"a": torch.tensor([10.0])}, {"a": torch.tensor([5.0])}
    moved = [float(alfa(params, gradients, step)["a"].detach()) for step in range(3)]
    assert moved == pytest.approx([7.0 - 0.5, 6.0 - 1.0, 8.0 - 0.5])


# ---- CAVIA, ANIL, BOIL --------------------------------------------------------------------------------------------


def test_a_context_acts_as_if_it_were_concatenated_to_every_input():
    network = MLP([2, 5, 1], "tanh", torch.Generator().manual_seed(0), context_size=3)
    inputs, context = torch.randn(7, 2), torch.randn(3)
    wide = MLP([5, 5, 1], "tanh")
    params = dict(network.named_parameters())
    whole = torch.cat([params["layers.0.weight"], params["context_weight"]], 1)
    expected = wide({**params, "layers.0.weight": whole}, torch.cat([inputs, context.expand(7, 3)], 1))
    torch.testing.assert_close(network(params | {"context": context}, inputs), expected)
    # Stacked over tasks, each with its own context.
    contexts = torch.randn(4, 3)
    stacked = {name: p.expand(4, *p.shape) for name, p in params.items()} | {"context": contexts}
    together = network(stacked, inputs.expand(4, 7, 2))
    for task, own in enumerate(contexts):
        torch.testing.assert_close(together[task], network(params | {"context": own}, inputs))


def test_cavia_moves_its_context_alone_from_zero_and_nothing_where_the_network_does_not_read_it():
    one = small("cavia", steps=1)
    learner, data = one.learner, task_of(one.data, 0)
    path, _ = learner.trajectory(one.adaptation.loss, data.first, lambda *_: data.inner[0], 1)
    theta = learner.theta
    assert [name for name in theta if not torch.equal(path[1][name], theta[name])] == ["mean.context"]
    assert not theta["mean.context"].any() and path[1]["mean.context"].any()
    assert list(contexts(learner.network)) == ["mean.context"]
    with torch.no_grad():
        theta["mean.context_weight"].zero_()
    path, _ = learner.trajectory(one.adaptation.loss, data.first, lambda *_: data.inner[0], 1)
    assert not path[1]["mean.context"].any()


@pytest.mark.parametrize(
    ("method", "moves"),
    [
        ("anil", ["log_std", "mean.layers.1.weight", "mean.layers.1.bias"]),
        ("boil", ["mean.layers.0.weight", "mean.layers.0.bias"]),
        ("cavia", ["mean.context"]),
    ],
)
def test_what_adapts(method, moves):
    assert small(method).learner.rule.names == moves
    assert small(f"{method}+l2f").learner.rule.names == moves
    # Attenuation is of θ, whatever adapts; a context is 0 and has nothing to forget.
    attenuated = small(f"{method}+l2f").learner.attenuator.names
    assert set(attenuated) == small(method).learner.theta.keys() - contexts(small(method).learner.network).keys()


@pytest.mark.parametrize("policy", [GaussianPolicy(2, 2, ()), CategoricalPolicy(2, 2, ())])
def test_a_linear_policy_has_no_body_to_adapt(policy):
    with pytest.raises(ValueError, match=r"adapts='body' leaves nothing .* give it hidden layers"):
        meta_learner(policy, None, InnerLoop(adapts="body"))


# ---- DiCE ---------------------------------------------------------------------------------------------------------


def test_dices_derivatives_on_a_two_step_decision_by_hand():
    # At each of two steps: action 1 with probability p = σ(x), else action 0. Both actions were 1, with advantages
    # A₁ = 2 and A₂ = 5. With l = log σ(x), l' = 1 − p and l'' = −p (1 − p), what is differentiated is
    #   first step:   □(l) − 1,            first derivative l',  second l'² + l''
    #   second step:  □(2l) − □(l),        first derivative l',  second (4 l'² + 2 l'') − (l'² + l'') = 3 l'² + l''
    x = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    p = torch.sigmoid(x.detach())
    slope, bend = 1 - p, -p * (1 - p)
    log_prob = torch.nn.functional.logsigmoid(x).expand(1, 2)
    value = (loaded_dice(log_prob) * torch.tensor([2.0, 5.0], dtype=torch.float64)).sum()
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    assert value.item() == 0.0
    assert first.item() == pytest.approx((7 * slope).item())
    assert second.item() == pytest.approx((2 * (slope**2 + bend) + 5 * (3 * slope**2 + bend)).item())


def second_derivatives(function, log_prob):
    """What `function` of l (B, T) has as second derivative with respect to a common shift of all l, by time step."""

    def along(shift):
        return function(log_prob + shift)

    return jacfwd(jacfwd(along))(torch.zeros((), dtype=log_prob.dtype))


def test_lambda_of_dice_leads_from_the_ratio_of_each_action_alone_to_that_of_all_so_far():
    # Along a common shift of all log-probabilities, □(x_t) has the second derivative (Σ_{s ≤ t} λ^(t−s))² = c_t², so
    # the factor has c_t² − (c_t − 1)². λ = ½: c = 1, 1.5, 1.75, 1.875 and 1, 2, 2.5, 2.75; λ = 1: c = 1, 2, 3, 4;
    # λ = 0: c = 1, as LVC's ratio of one action.
    log_prob = torch.tensor([[-0.3, -1.2, -0.7, -2.0]], dtype=torch.float64)
    for decay, expected in ((0.5, [1.0, 2.0, 2.5, 2.75]), (1.0, [1.0, 3.0, 5.0, 7.0]), (0.0, [1.0, 1.0, 1.0, 1.0])):
        found = second_derivatives(partial(loaded_dice, decay=decay), log_prob)
        assert found.tolist() == [pytest.approx(expected)]
    assert second_derivatives(magic, log_prob).tolist() == [pytest.approx([1.0] * 4)]


def test_dice_has_the_first_derivative_of_the_other_estimators_and_ignores_what_did_not_happen():
    one = small("maml")
    data = task_of(one.data, 1).first
    theta = {name: p.detach().requires_grad_() for name, p in one.learner.theta.items()}
    gradients = [
        torch.autograd.grad(policy_loss(one.adaptation.policy, data, estimator, theta, 4), list(theta.values()))
        for estimator in ("reinforce", "lvc", "dice")
    ]
    for ours in gradients[1:]:
        torch.testing.assert_close(ours, gradients[0])
    other = data._replace(actions=torch.where(data.weights[:, None] > 0, data.actions, 9.0))
    again = torch.autograd.grad(policy_loss(one.adaptation.policy, other, "dice", theta, 4), list(theta.values()))
    torch.testing.assert_close(again, gradients[2])


def test_dice_with_a_lambda_of_zero_has_the_meta_gradient_of_low_variance_curvature():
    def gradient_of(method, decay=None):
        one = small(method)
        if decay is not None:
            one.adaptation.gradient = dataclasses.replace(one.settings.gradient, dice_lambda=decay)
        return MetaSurrogate(one.adaptation, one.data, one.share).gradient()[1]

    torch.testing.assert_close(gradient_of("maml-dice", 0.0), gradient_of("maml"))
    assert not torch.allclose(gradient_of("maml-dice"), gradient_of("maml"), rtol=1e-3)


def test_a_lambda_that_would_have_no_effect_is_refused():
    with pytest.raises(ValueError, match=r"dice_lambda=0.5 has no effect on estimator='lvc'; leave it 1"):
        PolicyGradient(dice_lambda=0.5)


def test_dice_needs_to_know_how_long_episodes_are():
    learner = meta_learner(CategoricalPolicy(2, 2, (3,)))
    with pytest.raises(ValueError, match=r"estimator='dice' multiplies ratios along episodes: pass their length"):
        Adaptation(learner, PolicyGradient(estimator="dice"))


# ---- E-MAML -------------------------------------------------------------------------------------------------------


def test_e_mamls_credit_on_a_two_armed_bandit_by_hand():
    # Logits 0 and 0: π = (½, ½). Pulls of arm 0, 0, 1 earned a credit of 2 for what adaptation made of them.
    # ∇ log π of arm 0 is (½, −½), of arm 1 (−½, ½): their mean is (1/6, −1/6). Gradient of the loss: −0.3 · 2 · that.
    learner = meta_learner(CategoricalPolicy(1, 2, ()))
    gradient = PolicyGradient(exploration_weight=0.3)
    adaptation = Adaptation(learner, gradient)
    logits = torch.zeros(3, 2, requires_grad=True)
    pulls = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    first = Batch(torch.ones(3, 1), pulls, torch.tensor([9.0, 9.0, 9.0]), torch.full((3,), 1 / 3))
    data = task_of(small("maml").data, 0)._replace(first=first, credit=torch.tensor(2.0))
    loss = adaptation.initial_objective(Categorical(logits), Categorical(torch.zeros(3, 2)), data)
    (slope,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(slope.sum(0), -0.3 * 2 * torch.tensor([1 / 6, -1 / 6]))


def test_e_mamls_gradient_is_mamls_and_that_of_the_credit():
    one, maml = small("e-maml"), small("maml")
    _, found, _ = MetaSurrogate(one.adaptation, one.data, one.share).gradient()
    _, without, _ = MetaSurrogate(maml.adaptation, one.data, maml.share).gradient()
    losses = []
    for number in range(TASKS):
        data = task_of(one.data, number)
        log_prob = one.adaptation.policy(one.learner.theta, data.first.observations).log_prob(data.first.actions)
        losses.append(-one.settings.gradient.exploration_weight * data.credit * (data.first.weights * log_prob).sum())
    credit = torch.autograd.grad(sum(losses) / TASKS, one.learner.meta_parameters(), materialize_grads=True)
    torch.testing.assert_close(found - without, torch.cat([slope.flatten() for slope in credit]).double())
    assert found.ne(without).any()


def test_credit_is_the_return_after_adaptation_centred_over_the_meta_batch():
    from metarl_l2f import MetaRL

    settings = MetaRLSettings.for_domain("navigation", "e-maml")
    settings = dataclasses.replace(settings, tasks_per_batch=4, episodes_per_task=3, horizon=5)
    run = MetaRL("metarl_l2f/Navigation2D-v0", settings, {"horizon": 5})
    rollouts = run.validation_rollouts()[0]
    returns = rollouts.episodes[-1].returns().mean(1)
    expected = (returns - returns.mean()) / returns.std(unbiased=False)
    torch.testing.assert_close(rollouts.data.credit, expected, rtol=1e-4, atol=1e-5)
    run.close()
    plain = dataclasses.replace(settings, method="maml", gradient=PolicyGradient())
    run = MetaRL("metarl_l2f/Navigation2D-v0", plain, {"horizon": 5})
    assert not run.validation_rollouts()[0].data.credit.any()
    run.close()


# ---- ProMP, PPO, VPG ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "+l2f"])
@pytest.mark.parametrize("method", ["promp", "maml-ppo", "maml-vpg"])
def test_the_first_epochs_gradient_is_that_of_maml_with_low_variance_curvature(method, end):
    one, maml = small(method + end), small("maml" + end)
    _, expected, _ = MetaSurrogate(maml.adaptation, maml.data, maml.share).gradient()
    sums, _ = one.outer._gradient(one.adaptation, one.data)
    kl, clipped, gradient = sums[3], sums[2], sums[-len(expected) :]
    torch.testing.assert_close(gradient / TASKS, expected)
    assert abs(kl) < 1e-12 and not clipped


@pytest.mark.parametrize(("method", "passes"), [("promp", 2), ("maml-ppo", 2), ("maml-vpg", 2)])
def test_an_update_adapts_once_for_each_epoch_and_once_for_its_metrics(method, passes, monkeypatch):
    one, calls = small(method, steps=1), []
    forward = type(one.adaptation.policy).forward
    monkeypatch.setattr(type(one.adaptation.policy), "forward", lambda *given: calls.append(0) or forward(*given))
    one.outer.update(one.adaptation, SimpleNamespace(data=one.data, share=one.share))
    # The inner loss, which finds the policy of the inner step on the way, and the adapted policy, for two shards.
    assert len(calls) == 2 * passes * (one.outer.epochs + 1)


@pytest.mark.parametrize("inner_data", ["reuse", "gradient_at_init", "resample"])
def test_the_policy_of_the_first_inner_step_is_the_one_that_collected_its_episodes(inner_data):
    plain = small("l2f")
    one = small("l2f", gradient=dataclasses.replace(plain.settings.gradient, inner_data=inner_data))
    data = task_of(one.data, 0)
    data = data._replace(inner=(data.post, *data.inner[1:])) if inner_data == "resample" else data
    start = one.learner.start(one.adaptation.loss(data.first)).params
    params = start if inner_data == "resample" else one.learner.theta  # Fresh episodes are those of θ̄.
    expected = one.adaptation.policy(params, data.inner[0].observations)
    old = [Gaussian(policy.mean + 0.3, policy.log_std) for policy in one.adaptation.acting(data)]
    for found in (one.adaptation.acting(data), one.adaptation.acting(data, old)):
        assert len(found) == 3
        torch.testing.assert_close(found[0], expected)


def test_clipped_ratios_by_hand():
    # π_old(a) = ½ each; now the ratios are 1.5, 0.5, 1.5, 0.5 with advantages 1, 1, −1, −1 and ε = 0.2:
    # min(r A, clip(r) A) = min(1.5, 1.2), min(0.5, 0.8), min(−1.5, −1.2), min(−0.5, −0.8) = 1.2, 0.5, −1.5, −0.8
    old = Categorical(torch.zeros(4, 2))
    new = Categorical(torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.75, 0.25], [0.25, 0.75]]).log())
    actions = torch.tensor([[1.0, 0.0]] * 4)
    batch = Batch(torch.zeros(4, 1), actions, torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.full((4,), 0.25))
    loss, fraction = clipped_loss(new, old, batch, 0.2)
    assert loss.item() == pytest.approx(-(1.2 + 0.5 - 1.5 - 0.8) / 4) and fraction.item() == 1.0
    assert clipped_loss(new, old, batch, 0.6)[1].item() == 0.0


def test_the_penaltys_weight_follows_the_kl():
    # Target 0.03: unchanged from 0.02 to 0.045.
    assert [adapted_weight(1.0, kl, 0.03) for kl in (0.0199, 0.0201, 0.0449, 0.0451)] == [0.5, 1.0, 1.0, 2.0]


def test_the_penalty_holds_the_inner_policies_and_only_promp_has_it():
    promp, ppo = small("promp"), small("maml-ppo")
    with torch.no_grad():
        old = [detached(policy) for policy in torch.func.vmap(promp.adaptation.acting)(promp.data)]
        for parameter in [*promp.learner.meta_parameters(), *ppo.learner.meta_parameters()]:
            parameter.mul_(1.1)
    promp.outer.inner_kl_weights = torch.tensor([3.0, 5.0], dtype=torch.float64)
    for number in range(TASKS):
        data, before = task_of(promp.data, number), [task_of(policy, number) for policy in old]
        with_penalty, without = (
            one.outer.terms(one.adaptation, one.outer.policies(one.adaptation, data, before), before, data)
            for one in (promp, ppo)
        )
        # KL(old ‖ current) of the policy at θ, then of the one after the first inner step, on their own episodes.
        now = promp.adaptation.acting(data, before)
        kls = [
            (batch.weights * past.kl(policy)).sum()
            for past, policy, batch in zip(before, now, data.inner, strict=False)
        ]
        torch.testing.assert_close(torch.stack(kls), with_penalty.inner_kl)
        expected = without.loss + (3.0 * kls[0] + 5.0 * kls[1]) / 2
        torch.testing.assert_close(with_penalty.loss, expected)
        assert min(kls) > 1e-4


# ---- names --------------------------------------------------------------------------------------------------------


def test_names_are_taken_apart():
    assert named("l2f") == named("maml+l2f") and named("l2f").attenuated
    assert label_of("promp+l2f") == "ProMP + L2F" and label_of("l2f") == "L2F" and label_of("leo") == "LEO"
    with pytest.raises(ValueError, match=r"method must be one of l2f, maml, first-order-maml, .*got 'mamll'"):
        named("mamll")
    for name, why in (("maml-two-sigmas+l2f", "L2F has a second σ already"), ("l2f-paper+l2f", "it is L2F already")):
        with pytest.raises(ValueError, match=f"means nothing, for {why}"):
            named(name)


@pytest.mark.parametrize("domain", ["navigation", "cheetah_vel", None])
@pytest.mark.parametrize("method", METHODS)
def test_a_methods_settings_hold_its_parts(domain, method):
    settings = MetaRLSettings.for_domain(domain, method)
    assert settings.method == method
    for name, value in METHODS[method].parts.items():
        found = settings
        for part in name.split("."):
            found = getattr(found, part)
        assert found == value


def test_parts_that_need_each_other_are_set_at_once():
    changed = with_parts(MetaRLSettings(), {"inner.adapts": "context", "policy.context_size": 4, "seed": 9})
    assert (changed.inner.adapts, changed.policy.context_size, changed.seed) == ("context", 4, 9)
    with pytest.raises(ValueError, match="a positive context_size go together, got 'all' and 4"):
        with_parts(MetaRLSettings(), {"policy.context_size": 4})


def test_methods_of_rewards_are_refused_where_labels_are_learned_from():
    for method in ("promp", "e-maml", "maml-dice", "maml-two-sigmas"):
        with pytest.raises(ValueError, match=f"method '{method}' is of reinforcement learning.*choose maml, first"):
            SupervisedSettings.for_problem("sinusoid", method)
    assert SupervisedSettings.for_problem("sinusoid", "alfa").inner.update_rule == "alfa"


def test_a_network_without_context_or_named_head_cannot_adapt_it():
    linear = GaussianPolicy(2, 1, ())
    with pytest.raises(ValueError, match="adapts='context' needs a network with a context"):
        meta_learner(linear, inner=InnerLoop(adapts="context"))
    with pytest.raises(ValueError, match="needs a network that says what its head is: give Linear a method"):
        meta_learner(torch.nn.Linear(2, 1), inner=InnerLoop(adapts="head"))


def test_gaussians_of_contexts_keep_their_shapes():
    policy = GaussianPolicy(2, 1, (4,), context_size=3)
    found = policy(dict(policy.named_parameters()) | {"mean.context": torch.zeros(3)}, torch.zeros(5, 2))
    assert (
        isinstance(found, Gaussian) and found.mean.shape == (5, 1) and math.isfinite(float(found.mean.sum().detach()))
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "promp"}, "method 'promp' has outer='promp', got 'trust-region'; name another method"),
        ({"method": "anil"}, "method 'anil' has adapts='head', got 'all'"),
        ({"method": "e-maml"}, "method 'e-maml' has exploration_weight=0.1, got 0.0"),
        ({"outer": "ppo", "gradient": PolicyGradient(estimator="dice")}, "estimator='dice' would have no effect"),
        ({"outer": "promp", "gradient": PolicyGradient(inner_data="reuse")}, "inner_data='reuse' takes the first step"),
        ({"gradient": PolicyGradient(exploration_weight=1.0), "tasks_per_batch": 1}, "tasks_per_batch of 2 or more"),
    ],
)
def test_names_without_their_parts_and_parts_without_effect_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        MetaRLSettings(**changes)


def test_a_supervised_name_without_its_parts_is_refused():
    with pytest.raises(ValueError, match="method 'anil' has adapts='head', got 'all'"):
        SupervisedSettings(method="anil")
    with pytest.raises(ValueError, match="a positive context_size go together, got 'all' and 3"):
        SupervisedSettings(context_size=3)


def test_a_parameter_called_context_is_a_parameter_like_any_other():
    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.context = torch.nn.Parameter(torch.ones(2))

    assert meta_learner(Named()).rule.names == ["context"]
