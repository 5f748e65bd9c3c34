"""The meta-gradient of every named method against finite differences of a plain loop over tasks, in float64."""

from functools import partial

import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from metarl_l2f.core.alfa import ALFA
from metarl_l2f.core.attenuation import embed
from metarl_l2f.networks.policies import detached
from metarl_l2f.rl.adaptation import magic
from metarl_l2f.rl.outer import flat
from metarl_l2f.rl.trpo import MetaSurrogate

from .small import EVERY, KINDS, PLAIN, TASKS, small, task_of


class Held:
    """Holds what a method treats as data at its first values while parameters are moved: embeddings, and denominators.

    Values are told apart by the order in which they are asked for.
    """

    def __init__(self, monkeypatch):
        self.values, self.calls = [], 0
        state = ALFA.state
        monkeypatch.setattr("metarl_l2f.core.attenuation.embed", lambda *given: self(embed(*given)))
        monkeypatch.setattr(ALFA, "state", lambda rule, *given: self(state(rule, *given)))
        monkeypatch.setattr("metarl_l2f.rl.adaptation.magic", lambda x: torch.exp(x - self(x)))
        assert magic  # What it stands in for.

    def __call__(self, value):
        if self.calls == len(self.values):
            self.values.append(torch.func.debug_unwrap(value).detach())
        self.calls += 1
        return self.values[self.calls - 1]


def assert_slopes(learner, gradient, loop, scale=1e-5):
    """The gradient's products with directions are the loop's central differences along them."""
    parameters = learner.meta_parameters()
    origin = parameters_to_vector(parameters).detach().clone()
    loop()  # What is held is held at the origin.
    for seed in range(3):
        direction = torch.randn(len(origin), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        direction /= direction.norm()
        values = []
        for sign in (1, -1):
            vector_to_parameters(origin + sign * scale * direction, parameters)
            values.append(loop())
        vector_to_parameters(origin, parameters)
        assert float(gradient @ direction) == pytest.approx((values[0] - values[1]) / (2 * scale), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("method", [name for name in EVERY if small(name).settings.outer == "trust-region"])
def test_the_surrogates_gradient(method, monkeypatch):
    one = small(method)
    first_order = one.learner.first_order
    one.learner.first_order = False  # What first order leaves out, finite differences do not; that is tested below.
    assert_surrogates_gradient(one, monkeypatch)
    assert first_order is method.startswith("first-order")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["maml", "l2f"])
def test_the_surrogates_gradient_for_every_kind_of_policy(method, kind, monkeypatch):
    assert_surrogates_gradient(small(method, kind=KINDS[kind]), monkeypatch)


def assert_surrogates_gradient(one, monkeypatch):
    learner, adaptation, data = one.learner, one.adaptation, one.data
    _, gradient, old = MetaSurrogate(adaptation, data, one.share).gradient()
    held = Held(monkeypatch)

    def loop():
        held.calls, total = 0, 0.0
        with torch.no_grad():
            for number in range(TASKS):
                mine = task_of(data, number)
                policies = adaptation.policies(mine)
                total += float(adaptation.objective(policies, [task_of(policy, number) for policy in old], mine))
        return total / TASKS

    assert_slopes(learner, gradient, loop)


@pytest.mark.parametrize(
    ("method", "kind"),
    [(name, PLAIN) for name in EVERY if small(name).settings.outer != "trust-region"] + [("promp", KINDS["pictures"])],
)
def test_the_gradient_of_updates_by_adam_away_from_where_episodes_were_collected(method, kind, monkeypatch):
    one = small(method, kind=kind)
    learner, data = one.learner, one.data
    policies = partial(one.outer.policies, one.adaptation)

    def terms_of(data, old):
        return one.outer.terms(one.adaptation, policies(data, old), old, data)

    with torch.no_grad():
        old = [detached(policy) for policy in torch.func.vmap(lambda data: policies(data, ()))(data)]
        for parameter in learner.meta_parameters():
            parameter.mul_(1.02)
    terms = torch.func.vmap(terms_of)(data, old)
    gradient = flat(torch.autograd.grad(terms.loss.mean(), learner.meta_parameters()))
    held = Held(monkeypatch)

    def loop():
        held.calls = 0
        with torch.no_grad():
            losses = [
                terms_of(task_of(data, number), [task_of(policy, number) for policy in old]).loss
                for number in range(TASKS)
            ]
        return float(sum(losses)) / TASKS

    assert_slopes(learner, gradient, loop)


def test_first_order_leaves_out_the_derivative_of_the_inner_gradient():
    one = small("first-order-maml", steps=1)
    _, first, old = MetaSurrogate(one.adaptation, one.data, one.share).gradient()
    one.learner.first_order = False
    _, second, _ = MetaSurrogate(one.adaptation, one.data, one.share).gradient()
    assert not torch.allclose(first, second)
    # ∂θ'/∂θ = 1: the gradient at θ' itself, of θ; that of the step sizes is exact in both.
    sizes = one.learner.rule.step_sizes.numel()
    torch.testing.assert_close(first[:sizes], second[:sizes])
    total = 0
    for number in range(TASKS):
        data = task_of(one.data, number)
        path, _ = one.learner.trajectory(one.adaptation.loss, data.first, lambda *_, data=data: data.inner[0], 1)
        leaves = {name: value.detach().requires_grad_() for name, value in path[1].items()}
        policies = [one.adaptation.policy(leaves, data.post.observations)]
        loss = one.adaptation.objective(policies, [task_of(policy, number) for policy in old], data)
        total = total + flat(torch.autograd.grad(loss, list(leaves.values()))) / TASKS
    torch.testing.assert_close(first[sizes:], total)
