"""Adaptation and the trust-region update, against finite differences, plain loops over tasks, and known limits."""

import itertools
import math
from typing import NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from metarl_l2f.core.attenuation import Attenuation, embed
from metarl_l2f.core.learner import MetaLearner, meta_learner
from metarl_l2f.core.update_rules import InnerLoop
from metarl_l2f.networks.policies import Categorical, CategoricalPolicy, Gaussian, GaussianPolicy, detached
from metarl_l2f.parallel.shards import Share
from metarl_l2f.rl.adaptation import Adaptation, MetaData, PolicyGradient, policy_loss, surrogate_loss
from metarl_l2f.rl.baseline import features
from metarl_l2f.rl.episodes import Batch
from metarl_l2f.rl.sampling import Sampler
from metarl_l2f.rl.trpo import MetaSurrogate, StepLog, TrustRegion, TrustRegionUpdate
from metarl_l2f.rl.vectorise import vectorise

NAVIGATION = "metarl_l2f/Navigation2D-v0"
TASKS, EPISODES, HORIZON = 12, 3, 5  # 12 tasks: one whole shard and a part of one


def generators(seed=0, tasks=TASKS):
    return lambda phase: [np.random.default_rng([seed, phase, task]) for task in range(tasks)]


class Compass(gymnasium.ActionWrapper):
    """Navigation in steps east, north, or south-west."""

    STEPS = np.array([[0.1, 0.0], [0.0, 0.1], [-0.07, -0.07]], np.float32)

    def __init__(self):
        super().__init__(gymnasium.make(NAVIGATION))
        self.action_space = gymnasium.spaces.Discrete(3)

    def action(self, action):
        return self.STEPS[action]


def new_policy(discrete, generator, dependent=False):
    if discrete:
        policy = CategoricalPolicy(2, 3, (4,), "tanh", generator)
    else:
        policy = GaussianPolicy(2, 2, (4,), "tanh", 0.3, generator, state_dependent_std=dependent)
    if discrete or dependent:
        with torch.no_grad():  # At equal probabilities, or σ, many a wrong curvature would pass.
            policy.mlp.layers[-1].weight.mul_(100)
    return policy


class Meta(NamedTuple):
    """All that a meta-iteration consists of."""

    learner: MetaLearner
    sampler: Sampler
    adaptation: Adaptation
    outer: TrustRegionUpdate

    def surrogate(self, data):
        return MetaSurrogate(self.adaptation, data, Share(TASKS))


def build(
    attenuation=None,
    inner=None,
    gradient=None,
    region=None,
    threads=1,
    std=True,
    seed=0,
    discrete=False,
    dependent=False,
):
    """A tiny policy on navigation, in float32 as trained."""
    generator, gradient = torch.Generator().manual_seed(seed), gradient or PolicyGradient()
    learner = meta_learner(
        new_policy(discrete, generator, dependent),
        attenuation,
        inner or InnerLoop(inner_lr=0.05),
        gradient_at_init=gradient.inner_data == "gradient_at_init",
        attenuated=lambda name: std or name != "log_std",
        logarithmic=[] if discrete else ["log_std"],
        generator=generator,
    )
    envs = vectorise(Compass if discrete else NAVIGATION, TASKS * EPISODES)
    sampler = Sampler(envs, TASKS, EPISODES, HORIZON)
    outer = TrustRegionUpdate(region or TrustRegion(fisher_fraction=1.0))
    return Meta(learner, sampler, Adaptation(learner, gradient, threads), outer)


def collected(meta, steps=1, seed=0):
    goals = meta.sampler.sample_tasks(TASKS, np.random.default_rng(seed))
    return meta.adaptation.collect(meta.sampler, goals, generators(seed), steps)


def adapted(meta, data):
    """One task: the parameters that its data lead to."""
    steps = len(data.inner)
    path, _ = meta.learner.trajectory(meta.adaptation.loss, data.first, lambda number, _: data.inner[number], steps)
    return path[-1]


def in_double(data):
    def double(batch):
        return Batch(*(values.double() for values in batch))

    return MetaData(double(data.first), tuple(map(double, data.inner)), double(data.post), data.credit.double())


def task_of(data, number):
    def one(batch):
        return Batch(*(values[number] for values in batch))

    return MetaData(one(data.first), tuple(map(one, data.inner)), one(data.post), data.credit[number])


VARIANTS = {
    "MAML": {},
    "MAML, two learned steps": {"inner": InnerLoop(inner_steps=2, inner_lr=0.05, learn_inner_lr=True)},
    "MAML, log π": {"gradient": PolicyGradient(estimator="reinforce")},
    "L2F, gradient at θ": {"attenuation": Attenuation(initial_gamma=0.8)},
    "L2F, gradient at θ̄": {"attenuation": Attenuation(), "gradient": PolicyGradient(inner_data="reuse")},
    "L2F, fresh episodes": {"attenuation": Attenuation(), "gradient": PolicyGradient(inner_data="resample")},
    "L2F, filters, initial return": {
        "attenuation": Attenuation(scope="filter"),
        "gradient": PolicyGradient(initial_weight=0.3),
    },
    "L2F, σ kept": {"attenuation": Attenuation(), "std": False},
    "L2F, σ of each state": {
        "attenuation": Attenuation(),
        "gradient": PolicyGradient(initial_weight=0.3),
        "dependent": True,
    },
    "MAML, discrete, two learned steps": {
        "inner": InnerLoop(inner_steps=2, inner_lr=0.5, learn_inner_lr=True),
        "discrete": True,
    },
    "L2F, discrete, initial return": {
        "attenuation": Attenuation(),
        "gradient": PolicyGradient(initial_weight=0.3),
        "discrete": True,
    },
}


def problem(options):
    """A learner and data in float64, whose samples count unequally, as where episodes end at different times."""
    meta = build(**options)
    data = in_double(collected(meta, meta.learner.rule.steps).data)
    generator = torch.Generator().manual_seed(1)

    def uneven(batch):
        weights = torch.rand(batch.weights.shape, generator=generator, dtype=torch.float64)
        return batch._replace(weights=weights / weights.sum(1, keepdim=True))

    meta.learner.double()
    return meta, MetaData(uneven(data.first), tuple(map(uneven, data.inner)), uneven(data.post), data.credit)


class Loop:
    """Every task's policies, one after the other, without vmap, as finite differences need them.

    What the code treats as data is held at its first value: the embeddings, and the denominators of `lvc`, which stand
    for the policy that collected the episodes.
    """

    def __init__(self, meta, data, monkeypatch):
        self.meta, self.data, self.monkeypatch = meta, data, monkeypatch
        self.held, self.calls = [], 0

    def hold(self, value):
        """The value of this call in the first pass."""
        if self.calls == len(self.held):
            self.held.append(value.detach())
        self.calls += 1
        return self.held[self.calls - 1]

    def policies(self):
        def held_loss(policy, batch, estimator, params, **for_dice):
            log_prob = policy(params, batch.observations).log_prob(batch.actions)
            if estimator == "lvc":
                log_prob = torch.exp(log_prob - self.hold(torch.func.debug_unwrap(log_prob)))
            return -(batch.weights * batch.advantages * log_prob).sum()

        self.calls = 0
        with self.monkeypatch.context() as patch:
            patch.setattr("metarl_l2f.core.attenuation.embed", lambda *arguments: self.hold(embed(*arguments)))
            patch.setattr("metarl_l2f.rl.adaptation.policy_loss", held_loss)
            with torch.no_grad():
                return [self.meta.adaptation.policies(task_of(self.data, number)) for number in range(TASKS)]


def perturbed(meta, direction, by):
    moved = parameters_to_vector(meta.learner.meta_parameters()).detach() + by * direction
    vector_to_parameters(moved, meta.learner.meta_parameters())


def direction_of(meta, seed=3):
    size = sum(p.numel() for p in meta.learner.meta_parameters())
    direction = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return direction / direction.norm()


def test_embedding_agrees_with_finite_differences_of_the_loss():
    # log π: the value of the `lvc` loss does not move with its parameters, only its gradient is meant
    gradient = PolicyGradient(estimator="reinforce")
    meta, data = problem({"attenuation": Attenuation(embedding="raw"), "gradient": gradient})
    learner, task = meta.learner, task_of(data, 2).first
    theta = {name: p.detach().clone() for name, p in learner.theta.items()}
    gradients = learner.gradients(meta.adaptation.loss(task), theta)
    embedding = embed([gradients[name] for name in learner.attenuator.names], learner.attenuator.owners.values(), "raw")
    for entry, name in enumerate(learner.attenuator.names):
        # the mean of a tensor's gradient is the loss's slope along all its scalars together, over their number
        moved = [meta.adaptation.loss(task)(theta | {name: theta[name] + step}).item() for step in (1e-5, -1e-5)]
        slope = (moved[0] - moved[1]) / 2e-5 / theta[name].numel()
        assert embedding[entry].item() == pytest.approx(slope, rel=1e-6, abs=1e-10)


def test_both_estimators_have_the_policy_gradient_as_first_derivative():
    meta, data = problem({})
    task = task_of(data, 0).first
    parameters = dict(meta.adaptation.policy.named_parameters())
    gradients = [
        torch.autograd.grad(policy_loss(meta.adaptation.policy, task, estimator, parameters), list(parameters.values()))
        for estimator in ("reinforce", "lvc")
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_lvc_has_the_likelihood_ratios_second_derivative_and_log_prob_has_not():
    # One sample, A = 1, weight 1, mean m, σ = 1, action a:  log π = −(a−m)²/2 + c
    # log π·A:    d²/dm² = −1;    likelihood ratio:  d²/dm² π/π₀ = (a−m)² − 1
    class Direct(torch.nn.Module):
        def forward(self, params, observations):
            return Gaussian(params["mean"] + 0 * observations, torch.zeros(1, dtype=torch.float64))

    one = torch.ones(1, dtype=torch.float64)
    batch = Batch(one[:, None], 3 * one[:, None], one, one)  # a = 3

    def gradient_through_inner_step(estimator):
        learner = meta_learner(Holder(), None, InnerLoop(inner_lr=0.1)).double()
        path, _ = learner.trajectory(
            lambda data, step: lambda p: policy_loss(Direct(), data, estimator, p), batch, lambda *_: batch, 1
        )
        params = path[-1]
        # θ' = m + 0.1·(a − m), dθ'/dm = 1 + 0.1 · d²(A-weighted term)/dm²
        return torch.autograd.grad(params["mean"].sum(), [learner.network.mean])[0].item()

    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = torch.nn.Parameter(torch.ones(1))  # m = 1, a − m = 2

    assert gradient_through_inner_step("reinforce") == pytest.approx(1 - 0.1)
    assert gradient_through_inner_step("lvc") == pytest.approx(1 + 0.1 * (4 - 1))


def test_gamma_of_one_gives_mamls_update():
    maml = build()
    free = build(Attenuation(conditioning="none", transform="scale"))  # starts at γ = 1
    data = collected(maml).data
    theta = sum(p.numel() for p in maml.learner.parameters())
    before, gradient, _ = maml.surrogate(data).gradient()
    ours, free_gradient, _ = free.surrogate(data).gradient()
    assert ours == before
    assert torch.equal(dict_of(free, free_gradient), gradient[:theta])


def dict_of(meta, gradient):
    """The part of a flat gradient that belongs to the initialisation."""
    parameters, theta = meta.learner.meta_parameters(), set(meta.learner.theta.values())
    pieces = gradient.split([p.numel() for p in parameters])
    return torch.cat([piece for p, piece in zip(parameters, pieces, strict=True) if p in theta])


@pytest.mark.parametrize(
    ("inner_data", "inner_steps", "phases"),
    [("gradient_at_init", 1, "first post"), ("resample", 1, "first inner post"), ("reuse", 2, "first inner post")],
)
def test_every_phase_is_acted_by_the_policy_adapted_so_far_with_its_own_sigma(inner_data, inner_steps, phases):
    # As many tasks as episodes, so that swapping the two axes would go unnoticed by shapes alone.
    gradient = PolicyGradient(inner_data=inner_data)
    meta = build(Attenuation(initial_gamma=0.5), InnerLoop(inner_steps, 0.5), gradient)
    learner, sampler = meta.learner, Sampler(vectorise(NAVIGATION, 9), 3, 3, HORIZON)
    with torch.no_grad():
        learner.attenuator.mlp[2].weight.mul_(20)  # γ that differ clearly from task to task
    goals = sampler.sample_tasks(3, np.random.default_rng(0))
    data = meta.adaptation.collect(sampler, goals, generators(0, 3), inner_steps).data
    for task in range(3):
        one = task_of(data, task)
        path, _ = learner.trajectory(
            meta.adaptation.loss, one.first, lambda number, _, one=one: one.inner[number], inner_steps
        )
        by_phase = {
            "first": (learner.theta, one.first),
            "inner": (path[inner_steps - 1], one.inner[-1]),  # θ̄ where episodes are fresh, else after one step of two
            "post": (path[-1], one.post),
        }
        for phase, name in enumerate(phases.split()):
            params, batch = by_phase[name]
            generator = generators(0, 3)(phase)[task]
            generator.integers(2**31, size=3)  # the environments' seeds come first
            noise = torch.from_numpy(generator.standard_normal((HORIZON, 3, 2), dtype=np.float32)).transpose(0, 1)
            expected = meta.adaptation.policy(params, batch.observations.reshape(3, HORIZON, 2)).sample(noise).detach()
            happened = (batch.weights.reshape(3, HORIZON) > 0)[..., None]
            torch.testing.assert_close(
                batch.actions.reshape(3, HORIZON, 2), expected * happened, rtol=1e-4, atol=1e-5, msg=name
            )


@pytest.mark.parametrize("attenuation", [None, Attenuation()])
def test_rollouts_hand_back_the_parameters_that_acted_last(attenuation):
    meta = build(attenuation, inner=InnerLoop(inner_steps=2, inner_lr=0.05))
    rollouts = collected(meta, steps=2)
    for task in range(TASKS):
        data = task_of(rollouts.data, task)
        expected = adapted(meta, data)
        ours = {name: values[task] for name, values in rollouts.params[-1].items()}
        torch.testing.assert_close(ours, {name: p.detach() for name, p in expected.items()}, rtol=1e-4, atol=1e-5)
        first = {name: values[task] for name, values in rollouts.params[0].items()}
        torch.testing.assert_close(first, {name: p.detach() for name, p in meta.learner.theta.items()})  # θ, not θ̄


@pytest.mark.parametrize("initial_weight", [0.0, 0.3])
@pytest.mark.parametrize("inner_data", ["reuse", "resample"])
def test_policies_are_those_that_acted_seen_on_their_own_observations(inner_data, initial_weight):
    gradient = PolicyGradient(inner_data=inner_data, initial_weight=initial_weight)
    meta = build(Attenuation(), InnerLoop(2, 0.2), gradient)
    rollouts = collected(meta, steps=2)
    for task in range(TASKS):
        data = task_of(rollouts.data, task)
        last = {name: values[task] for name, values in rollouts.params[-1].items()}
        expected = [meta.adaptation.policy(last, data.post.observations)]
        if initial_weight:
            expected.append(meta.adaptation.policy(meta.learner.theta, data.first.observations))
        for ours, theirs in zip(meta.adaptation.policies(data), expected, strict=True):
            torch.testing.assert_close(tuple(ours), tuple(theirs), rtol=1e-4, atol=1e-5)
    theta = {name: p + 1 for name, p in meta.learner.theta.items()}  # from another initialisation
    for ours in zip(meta.adaptation.policies(data), meta.adaptation.policies(data, theta), strict=True):
        assert not any(torch.allclose(one, other, atol=1e-2) for one, other in zip(*ours, strict=True))


@pytest.mark.parametrize("attenuation", [None, Attenuation()])
def test_without_inner_steps_there_is_one_rollout_and_nothing_to_adapt_to(attenuation):
    meta = build(attenuation, gradient=PolicyGradient(inner_data="reuse"))
    rollouts = collected(meta, steps=0)
    assert len(rollouts.episodes) == 1 and rollouts.env_steps == rollouts.episodes[0].steps()
    assert rollouts.data.inner == () and rollouts.data.post is rollouts.data.first


def test_advantages_are_those_of_a_plain_loop_over_a_tasks_episodes():
    discount, gae_lambda = 0.9, 0.7
    meta = build(gradient=PolicyGradient(discount=discount, gae_lambda=gae_lambda))
    rollouts = collected(meta)
    for task in range(TASKS):
        seen, _, rewards, mask = (values[task].double().numpy() for values in rollouts.episodes[0])
        returns = np.zeros((EPISODES, HORIZON + 1))
        for t in reversed(range(HORIZON)):
            returns[:, t] = rewards[:, t] + discount * returns[:, t + 1]
        x = features(*(torch.from_numpy(values) for values in (seen, mask))).flatten(0, 1).numpy()
        values = np.zeros((EPISODES, HORIZON + 1))
        values[:, :HORIZON] = (x @ np.linalg.lstsq(x, returns[:, :HORIZON].ravel())[0]).reshape(EPISODES, HORIZON)
        advantages = np.zeros((EPISODES, HORIZON + 1))
        for t in reversed(range(HORIZON)):
            error = rewards[:, t] + discount * values[:, t + 1] - values[:, t]
            advantages[:, t] = error + discount * gae_lambda * advantages[:, t + 1]
        happened = advantages[:, :HORIZON][mask > 0]
        expected = np.zeros((EPISODES, HORIZON))
        expected[mask > 0] = (happened - happened.mean()) / happened.std()
        assert rollouts.data.first.advantages[task].numpy() == pytest.approx(expected.ravel(), abs=2e-2)


def test_rollouts_keep_the_share_that_they_are():
    meta = build()
    goals = meta.sampler.sample_tasks(TASKS, np.random.default_rng(0))
    share = Share(2 * TASKS)
    assert meta.adaptation.collect(meta.sampler, goals, generators(), 1, share).share is share
    assert len(collected(meta).share) == TASKS


def test_the_inner_loss_by_hand():
    # Two samples of p = (½, ½), of weights ¼ and ¾ and advantages 1 and 3: −(¼ + 9/4) log ½;  lvc: −(¼ + 9/4) · 1
    batch = Batch(torch.zeros(2, 1), torch.eye(2), torch.tensor([1.0, 3.0]), torch.tensor([0.25, 0.75]))

    def policy(params, observations):
        return Categorical(params["logits"].expand(2, 2))

    params = {"logits": torch.zeros(2)}
    assert policy_loss(policy, batch, "reinforce", params).item() == pytest.approx(2.5 * math.log(2))
    assert policy_loss(policy, batch, "lvc", params).item() == pytest.approx(-2.5)
    # The gradient of log softmax is (1, 0) − p and (0, 1) − p: −(¼ · (½, −½) + 9/4 · (−½, ½)) = (1, −1)
    for estimator in ("reinforce", "lvc"):
        gradient = torch.func.grad(lambda p, estimator=estimator: policy_loss(policy, batch, estimator, p))(params)
        torch.testing.assert_close(gradient["logits"], torch.tensor([1.0, -1.0]))


def test_the_surrogate_weighs_advantages_by_how_much_likelier_an_action_became():
    # ¾ instead of ½ for the first action: −(¼ · 1 · 3/2 + ¾ · 3 · ½) = −1.5
    batch = Batch(torch.zeros(2, 1), torch.eye(2), torch.tensor([1.0, 3.0]), torch.tensor([0.25, 0.75]))
    old, new = (Categorical(torch.tensor([[p, 1 - p]] * 2).log()) for p in (0.5, 0.75))
    assert surrogate_loss(new, old, batch).item() == pytest.approx(-1.5)


@pytest.mark.parametrize("policy", [Gaussian(torch.zeros(2, 1), torch.zeros(1)), Categorical(torch.zeros(2, 1))])
def test_surrogate_of_an_unmoved_policy_is_minus_the_mean_advantage(policy):
    # ratio 1:  −(0.25·1 + 0.75·3) = −2.5
    batch = Batch(torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([1.0, 3.0]), torch.tensor([0.25, 0.75]))
    assert surrogate_loss(policy, policy, batch).item() == pytest.approx(-2.5)


@pytest.mark.parametrize(
    "options", [{}, {"attenuation": Attenuation()}, {"attenuation": Attenuation(), "discrete": True}]
)
def test_threads_do_not_change_a_digit(options):
    results = []
    for threads in (1, 2, 3):
        meta = build(threads=threads, **options)
        for seed in range(2):
            meta.outer.update(meta.adaptation, collected(meta, seed=seed))
        results.append(parameters_to_vector(meta.learner.parameters()).detach())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("discrete", [False, True])
def test_an_update_lowers_the_surrogate_within_the_bound(discrete):
    meta = build(Attenuation(), discrete=discrete)
    rollouts = collected(meta)
    data = rollouts.data
    before, _, old = meta.surrogate(data).gradient()
    log = meta.outer.step(meta.adaptation, rollouts)
    assert log.accepted
    after, kl = meta.surrogate(data).value_and_kl(old)
    assert (after, kl) == (log.surrogate_after, log.kl)
    assert after < before
    assert 0 < kl <= meta.outer.region.max_kl


@pytest.mark.parametrize("name", ["L2F, filters, initial return", "L2F, discrete, initial return"])
def test_values_after_a_step_are_means_of_a_plain_loop_over_tasks(name):
    meta, data = problem(VARIANTS[name])
    _, _, old = meta.surrogate(data).gradient()
    perturbed(meta, direction_of(meta), 2.0)  # so far that KL(old ‖ new) and KL(new ‖ old) differ
    loss, kl = meta.surrogate(data).value_and_kl(old)
    losses, kls = [], []
    for number in range(TASKS):
        task = task_of(data, number)
        for weight, policy, before, batch in zip(
            (1.0, 0.3), meta.adaptation.policies(task), old, (task.post, task.first), strict=True
        ):
            before = before._make(values[number] for values in before)
            losses.append(weight * surrogate_loss(policy, before, batch).item() / TASKS)
            kls.append((batch.weights * before.kl(policy)).sum().item() / TASKS)
    assert (loss, kl) == (pytest.approx(sum(losses)), pytest.approx(sum(kls)))
    assert kl > 1e-3


def test_the_metrics_of_an_update_are_those_of_its_log():
    meta, other = build(Attenuation()), build(Attenuation())
    rollouts = collected(meta)
    log, made = other.outer.step(other.adaptation, rollouts), meta.outer.update(meta.adaptation, rollouts)
    assert log.surrogate_after < log.surrogate_before and not made.rejected
    assert made.metrics == {
        "surrogate/change": log.surrogate_after - log.surrogate_before,
        "kl": log.kl,
        "gradient_norm": log.gradient_norm,
        "cg_residual": log.cg_residual,
        "line_search/backtracks": log.backtracks,
        "line_search/accepted": 1.0,
    }


def test_a_line_search_without_success_changes_nothing(monkeypatch):
    meta = build(Attenuation())
    rollouts = collected(meta)
    before = parameters_to_vector(meta.learner.parameters()).clone()
    monkeypatch.setattr(MetaSurrogate, "value_and_kl", lambda self, old: (-1e9, 1.0))
    made = meta.outer.update(meta.adaptation, rollouts)
    assert "line search" in made.rejected and made.metrics["line_search/backtracks"] == 15
    assert torch.equal(parameters_to_vector(meta.learner.parameters()), before)


def test_an_update_moves_the_parameters_by_the_accepted_step(monkeypatch):
    meta = build(Attenuation())
    rollouts = collected(meta)
    before = parameters_to_vector(meta.learner.meta_parameters()).detach().double()
    step = torch.linspace(-1, 1, len(before), dtype=torch.float64)
    tried = []

    def searched(gradient, product, evaluate, surrogate_before, region):
        tried.append(evaluate(step))
        tried.append(evaluate(step * math.nan))
        return step, StepLog(0.0, -1.0, 0.0, 0.0, 0, True, "")

    monkeypatch.setattr("metarl_l2f.rl.trpo.trust_region_step", searched)
    meta.outer.update(meta.adaptation, rollouts)
    after = parameters_to_vector(meta.learner.meta_parameters()).detach()
    torch.testing.assert_close(after, (before + step).float())
    assert all(map(math.isfinite, tried[0])) and tried[1] == (math.inf, math.inf)


def test_a_rejected_update_changes_nothing():
    meta = build(Attenuation())
    rollouts = collected(meta)
    post = rollouts.data.post
    broken = rollouts.data._replace(post=post._replace(advantages=post.advantages * math.nan))
    before = parameters_to_vector(meta.learner.parameters()).clone()
    made = meta.outer.update(meta.adaptation, rollouts._replace(data=broken))
    assert "not finite" in made.rejected and made.metrics["line_search/accepted"] == 0.0
    assert torch.equal(parameters_to_vector(meta.learner.parameters()), before)


def test_curvature_on_a_share_uses_the_first_episodes_with_weights_that_sum_to_one():
    half = build(region=TrustRegion(fisher_fraction=0.5))  # 2 of 3 episodes
    full = build(region=TrustRegion(fisher_fraction=1.0))
    rollouts = collected(full)
    data = rollouts.data

    def cut(batch):
        kept = Batch(*(values[:, : 2 * HORIZON] for values in batch))
        return kept._replace(weights=kept.weights / kept.weights.sum(1, keepdim=True))

    shorter = MetaData(cut(data.first), tuple(map(cut, data.inner)), cut(data.post), data.credit)
    direction = direction_of(full)
    ours = half.outer.curvature(half.adaptation, rollouts)(direction)
    expected = full.surrogate(shorter).curvature()(direction)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("inner_data", "attenuation", "phases"),
    [
        ("reuse", Attenuation(), 2),
        ("gradient_at_init", Attenuation(), 2),
        ("resample", Attenuation(), 3),
        ("resample", None, 2),  # θ̄ = θ: nothing to sample again
    ],
)
def test_env_steps_count_every_simulated_episode(inner_data, attenuation, phases):
    meta = build(attenuation, gradient=PolicyGradient(inner_data=inner_data))
    far = np.full((TASKS, 2), 9.0)  # no episode arrives early
    rollouts = meta.adaptation.collect(meta.sampler, far, generators(), 1)
    assert rollouts.env_steps == phases * TASKS * EPISODES * HORIZON
    assert len(rollouts.episodes) == 2


def test_every_inner_step_gets_fresh_episodes_from_the_adapted_policy():
    meta = build(inner=InnerLoop(inner_steps=3))
    rollouts = collected(meta, steps=3)
    assert len(rollouts.episodes) == 4
    assert len(rollouts.data.inner) == 3
    for one, other in itertools.pairwise(rollouts.episodes):
        assert not torch.equal(one.actions, other.actions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "magic"}, "estimator must be one of .*'lvc'.*, got 'magic'"),
        ({"inner_data": "none"}, "inner_data must be one of"),
        ({"discount": 1.5}, r"discount must lie in \[0, 1\], got 1.5"),
        ({"initial_weight": -0.1}, "initial_weight must be finite and not negative, got -0.1"),
    ],
)
def test_bad_policy_gradient_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PolicyGradient(**options)


def test_a_network_that_is_no_policy_is_refused():
    learner = meta_learner(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="a GaussianPolicy or a CategoricalPolicy, got Linear"):
        Adaptation(learner, PolicyGradient())


def test_threads_must_be_positive():
    with pytest.raises(ValueError, match="threads must be a whole number, 1 or more, got 0"):
        build(threads=0)


@pytest.mark.parametrize(
    "name",
    [
        *("MAML", "L2F, gradient at θ", "L2F, gradient at θ̄", "L2F, fresh episodes", "L2F, σ kept"),
        "MAML, discrete, two learned steps",
    ],
)
def test_an_inspection_is_what_a_plain_loop_over_tasks_finds(name):
    meta = build(**VARIANTS[name])
    learner, steps = meta.learner, meta.learner.rule.steps
    rollouts = collected(meta, steps)
    found = meta.adaptation.inspect(rollouts)
    metrics = found.metrics()
    assert all(math.isfinite(value) for value in metrics.values()) and metrics["landscape/loss_range"] > 0
    theta = {name: p.detach() for name, p in learner.theta.items()}
    for number in range(TASKS):
        data = task_of(rollouts.data, number)
        start = {name: values[number] for name, values in rollouts.start.params.items()}
        adapted = {name: values[number] for name, values in rollouts.params[-1].items()}
        gradient = torch.func.grad(meta.adaptation.loss(data.first))
        before, after = gradient(theta), torch.func.grad(meta.adaptation.loss(data.post))(adapted)
        flat = [torch.cat([one[n].flatten() for n in theta]).double() for one in (before, after)]
        cosine = float(flat[0] @ flat[1] / flat[0].norm() / flat[1].norm())
        assert float(found.cosine["network"][number]) == pytest.approx(cosine, abs=1e-5)
        # A step further along the inner step: the ratio's loss where twice the step leads.
        direction = (
            before
            if meta.learner.first_gradient_is_known
            else torch.func.grad(meta.adaptation.loss(data.inner[0]))(start)
        )
        there = {n: p - 2 * learner.rule.alpha(0)[n] * direction[n] for n, p in start.items()}
        old = meta.adaptation.policy(theta, data.first.observations)
        loss = surrogate_loss(meta.adaptation.policy(there, data.first.observations), old, data.first)
        assert float(found.landscape.losses[number, 3]) == pytest.approx(float(loss.detach()), abs=1e-5)
    assert found.gamma.keys() == set(learner.attenuator.names if learner.attenuator else [])


@pytest.mark.parametrize("name", ["MAML", "L2F, gradient at θ", "L2F, gradient at θ̄", "L2F, fresh episodes"])
def test_an_inspection_without_inner_steps_looks_around_the_first_one(name):
    meta = build(**VARIANTS[name])
    none, one = (meta.adaptation.inspect(collected(meta, steps)) for steps in (0, 1))
    assert all(math.isfinite(value) for value in none.metrics().values())
    if name != "L2F, fresh episodes":  # Without steps there are none, and the first ones stand for them.
        torch.testing.assert_close(none.landscape.losses, one.landscape.losses)


@pytest.mark.parametrize("name", ["MAML", "L2F, gradient at θ̄", "L2F, filters, initial return"])
def test_meta_conflict_is_the_angle_between_one_tasks_meta_gradient_and_the_sum_of_all(name):
    meta = build(**VARIANTS[name])
    rollouts = collected(meta)
    theta = list(meta.learner.theta.values())
    meta_gradients = []
    for number in range(TASKS):
        data = task_of(rollouts.data, number)
        policies = meta.adaptation.policies(data)
        loss = meta.adaptation.objective(policies, [detached(policy) for policy in policies], data)
        pieces = torch.autograd.grad(loss, theta)
        meta_gradients.append(torch.cat([piece.flatten() for piece in pieces]).double())
    # The sum over tasks is what the trust region starts from.
    _, gradient, _ = meta.surrogate(rollouts.data).gradient()
    torch.testing.assert_close(torch.stack(meta_gradients).mean(0), dict_of(meta, gradient), rtol=1e-4, atol=1e-6)
    whole = sum(meta_gradients)
    found = meta.adaptation.inspect(rollouts).meta_conflict["network"]
    for number, one in enumerate(meta_gradients):
        cosine = float(one @ whole / one.norm() / whole.norm())
        assert float(found[number]) == pytest.approx(math.acos(cosine), abs=1e-4)


# ---- frozen parameters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attenuation", [None, Attenuation(initial_gamma=0.8)], ids=["maml", "l2f"])
@pytest.mark.parametrize("frozen", ["mean.layers.0.weight", "log_std"])
def test_an_update_leaves_frozen_parameters_alone(attenuation, frozen):
    network = new_policy(False, torch.Generator().manual_seed(0))
    network.get_parameter(frozen).requires_grad_(False)
    inner = InnerLoop(inner_lr=0.05, learn_inner_lr=True)
    learner = meta_learner(network, attenuation, inner, logarithmic=["log_std"], gradient_at_init=True)
    sampler = Sampler(vectorise(NAVIGATION, TASKS * EPISODES), TASKS, EPISODES, HORIZON)
    outer = TrustRegionUpdate(TrustRegion(fisher_fraction=1.0))
    meta = Meta(learner, sampler, Adaptation(learner, PolicyGradient()), outer)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    rollouts = collected(meta)
    assert torch.equal(rollouts.params[-1][frozen][0], before[f"network.{frozen}"])  # not adapted
    assert not meta.outer.update(meta.adaptation, rollouts).rejected
    moved = {name for name, value in learner.state_dict().items() if not torch.equal(value, before[name])}
    assert f"network.{frozen}" not in moved and "network.mean.layers.1.weight" in moved
    assert learner.rule.step_sizes.shape == (1, 4)  # five parameters, one of them frozen
    meta.adaptation.inspect(rollouts)


# ---- derivatives, of every combination of parts -------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_meta_gradient_agrees_with_finite_differences_of_a_plain_loop(name, monkeypatch):
    meta, data = problem(VARIANTS[name])
    before, gradient, old = meta.surrogate(data).gradient()
    loop = Loop(meta, data, monkeypatch)

    def looped():
        total = 0.0
        for number, policies in enumerate(loop.policies()):
            olds = [policy._make(values[number] for values in policy) for policy in old]
            total += float(meta.adaptation.objective(policies, olds, task_of(data, number)))
        return total / TASKS

    assert looped() == pytest.approx(before, abs=1e-12)
    for seed in range(3):
        direction, step = direction_of(meta, seed), 1e-5
        perturbed(meta, direction, step)
        above = looped()
        perturbed(meta, direction, -2 * step)
        below = looped()
        perturbed(meta, direction, step)
        assert float(gradient @ direction) == pytest.approx((above - below) / (2 * step), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", VARIANTS)
def test_curvature_product_is_the_second_derivative_of_the_kl(name, monkeypatch):
    meta, data = problem(VARIANTS[name])
    _, _, old = meta.surrogate(data).gradient()
    loop = Loop(meta, data, monkeypatch)

    def kl():
        total = 0.0
        for number, policies in enumerate(loop.policies()):
            task = task_of(data, number)
            for policy, before, batch in zip(policies, old, (task.post, task.first), strict=False):
                before = before._make(values[number] for values in before)
                total += float((batch.weights * before.kl(policy)).sum())
        return total / TASKS

    assert kl() == pytest.approx(0.0, abs=1e-12)
    product = meta.surrogate(data).curvature()
    first, second = direction_of(meta, 3), direction_of(meta, 4)
    # the KL and its gradient vanish here, so ½ h² uᵀFu is its leading term; polarisation gives uᵀFv
    forms = {}
    for label, direction in (("u", first), ("v", second), ("u+v", first + second)):
        step = 1e-4
        perturbed(meta, direction, step)
        above = kl()
        perturbed(meta, direction, -2 * step)
        below = kl()
        perturbed(meta, direction, step)
        forms[label] = (above + below) / step**2
        assert float(direction @ product(direction)) == pytest.approx(forms[label], rel=1e-4)
    cross = (forms["u+v"] - forms["u"] - forms["v"]) / 2
    assert float(first @ product(second)) == pytest.approx(cross, rel=1e-3, abs=1e-6)
    assert float(second @ product(first)) == pytest.approx(float(first @ product(second)), rel=1e-9)
