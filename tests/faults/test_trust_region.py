"""Whatever the episodes are like, no number that is not finite reaches the parameters."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from metarl_l2f import Attenuation, InnerLoop, MetaRL, MetaRLSettings, PolicyNetwork
from metarl_l2f.rl.baseline import fit_values
from metarl_l2f.rl.trpo import TrustRegion, trust_region_step


class Given(gymnasium.Env):
    """Observations and rewards from two functions of (random numbers, time, action); ends after `end` steps."""

    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, observe, pay, size=2, end=None):
        self.observe, self.pay, self.size, self.end = observe, pay, size, end
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def sample_tasks(self, number, generator):
        return generator.uniform(size=number)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._seen(), {}

    def step(self, action):
        self.time += 1
        reward = float(self.pay(self.np_random, self.time, float(action[0])))
        return self._seen(), reward, self.time == self.end, False, {}

    def _seen(self):
        return np.full(self.size, self.observe(self.np_random, self.time), np.float32)


def clock(random, time):
    return time / 10


def action(random, time, action):
    return action


def constant(value):
    return lambda *_: value


def scaled(size):
    return lambda random, time, action: size * action


def rare(size):
    return lambda random, time, action: size if random.uniform() < 0.1 else action


CASES = {
    "ordinary": (clock, action, {}),
    "one observation, a baseline of rank one": (constant(1.0), action, {}),
    "no observation at all": (constant(0.0), action, {}),
    "more features than steps": (clock, action, {"size": 60}),
    "nothing to gain": (clock, constant(1.0), {}),
    "nothing": (constant(0.0), constant(0.0), {}),
    **{f"rewards of {size:g}": (clock, scaled(size), {}) for size in (1e-44, 1e-30, 1e10, 1e19, 1e20, 1e37, 3e38)},
    **{f"a rare reward of {size:g}": (clock, rare(size), {}) for size in (1e6, 1e19, 1e30, 1e38)},
    **{f"always {size:g}": (clock, constant(size), {}) for size in (1e20, 3e38)},
    **{f"observations of {size:g}": (constant(size), action, {}) for size in (1e10, 1e20, 3e38)},
    "noise of 1e30 to see": (lambda random, time: 1e30 * random.uniform(-1, 1), action, {}),
    "episodes of one step": (clock, action, {"end": 1}),
}
SIZES = {
    "usual": (3, 3, 5),
    "one task": (1, 3, 5),
    "one episode": (3, 1, 5),
    "one step": (3, 3, 1),
    "one of each": (1, 1, 1),
}
VARIANTS = {
    "l2f": {},
    "maml": {"method": "maml"},
    "learned steps, noise attenuated": {"inner": InnerLoop(2, learn_inner_lr=True), "initial_std_gamma": 0.5},
    "raw embedding": {"attenuation": Attenuation(embedding="raw")},
    "whole Fisher": {"region": TrustRegion(fisher_fraction=1.0)},
}


@pytest.mark.parametrize("case", CASES)
def test_parameters_stay_finite(case, amount, record_property):
    observe, pay, arguments = CASES[case]
    sizes = list(SIZES) if amount(0, 1) else ["usual", "one of each"]
    variants = list(VARIANTS) if amount(0, 1) else ["l2f"]
    for size in sizes:
        for variant in variants:
            tasks, episodes, horizon = SIZES[size]
            shape = {"tasks_per_batch": tasks, "episodes_per_task": episodes, "horizon": horizon}
            chosen = MetaRLSettings(**(shape | {"policy": PolicyNetwork((4,))} | VARIANTS[variant]))
            run = MetaRL(Given, chosen, {"observe": observe, "pay": pay, **arguments})
            before = [p.detach().clone() for p in run.learner.parameters()]
            try:
                for iteration in (1, 2):
                    metrics = run.iterate(iteration)
                    moved = any(not p.equal(old) for p, old in zip(run.learner.parameters(), before, strict=True))
                    assert moved or not metrics["line_search/accepted"]
                    assert math.isfinite(metrics["kl"])
            except ValueError as error:  # What outgrew float32 on the way to an action or in a reward is named.
                assert "float32" in str(error)
            assert all(p.isfinite().all() for p in run.learner.parameters()), (size, variant)
            run.close()


ANY = st.floats(allow_nan=True, allow_infinity=True)
HUGE = st.sampled_from([0.0, 1.0, -1.0, 1e-300, 1e150, -1e150, 1e300, math.inf, math.nan])


@settings(max_examples=200)
@given(
    gradient=st.lists(ANY | HUGE, min_size=1, max_size=4),
    curvature=ANY | HUGE,
    surrogates=st.lists(ANY | HUGE, min_size=1, max_size=15),
    kls=st.lists(ANY | HUGE, min_size=1, max_size=15),
    before=ANY | HUGE,
)
def test_a_step_is_finite_and_within_its_bound_or_no_step_at_all(gradient, curvature, surrogates, kls, before):
    region, tried = TrustRegion(), iter(range(100))

    def evaluate(step):
        number = next(tried)
        return surrogates[number % len(surrogates)], kls[number % len(kls)]

    vector = torch.tensor(gradient, dtype=torch.float64)
    step, log = trust_region_step(vector, lambda v: curvature * v, evaluate, before, region)
    assert step.isfinite().all()
    if log.accepted:
        assert all(map(math.isfinite, (before, log.surrogate_after, log.kl)))
        assert log.surrogate_after < before and log.kl <= region.max_kl and not log.reason
    else:
        assert not step.any() and log.reason
        assert next(tried) == log.backtracks  # As many as it says were tried.


@settings(max_examples=100)
@given(
    rank=st.integers(0, 3),
    tasks=st.integers(1, 3),
    episodes=st.integers(1, 3),
    steps=st.integers(1, 6),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e10, 1e30]),
    seed=st.integers(0, 99),
)
def test_a_baseline_of_any_rank_is_finite_and_no_worse_than_none(rank, tasks, episodes, steps, scale, seed):
    random = torch.Generator().manual_seed(seed)
    basis = torch.randn(rank, 5, generator=random)
    observations = scale * torch.randn(tasks, episodes, steps, rank, generator=random) @ basis
    returns = torch.randn(tasks, episodes, steps, generator=random)
    mask = (torch.arange(steps) < torch.randint(1, steps + 1, (tasks, episodes, 1), generator=random)).float()
    values = fit_values(observations, returns * mask, mask)
    assert values.isfinite().all() and not values[mask == 0].any()
    # The least squares of anything, 0 included, are no larger than those of 0.
    assert ((values - returns) * mask).square().sum() <= (returns * mask).square().sum() * (1 + 1e-4)
