"""A learner of any named method, with any kind of policy, on a handful of invented samples, in float64."""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import torch

from metarl_l2f.methods import ALONE, METHODS
from metarl_l2f.networks.normalisation import moments
from metarl_l2f.parallel.shards import Share
from metarl_l2f.rl.adaptation import Adaptation, MetaData
from metarl_l2f.rl.episodes import Batch
from metarl_l2f.rl.experiment import _learner, _outer
from metarl_l2f.rl.settings import MetaRLSettings

TASKS, EPISODES, HORIZON = 3, 2, 4
EVERY = [name + end for name in METHODS for end in ("", "+l2f") if not (end and name in ALONE)]


class Kind(NamedTuple):
    """A kind of policy, and the spaces that it is for."""

    network: Mapping[str, Any] = MappingProxyType({})
    """Entries of `PolicyNetwork`."""
    shape: tuple[int, ...] = (2,)
    """The shape of observations; pictures are bytes."""
    discrete: bool = False

    @property
    def observations(self):
        return math.prod(self.shape)


PLAIN = Kind()
KINDS = {
    "state-dependent σ": Kind({"state_dependent_std": True}),
    "elu": Kind({"activation": "elu"}),
    "silu": Kind({"activation": "silu"}),
    "categorical": Kind(discrete=True),
    "normalised": Kind({"normalise_observations": True}),
    "pictures": Kind({"filters": 2}, (16, 17, 1)),
}


class Small(NamedTuple):
    settings: MetaRLSettings
    adaptation: Adaptation
    outer: object
    data: MetaData
    """Stacked over TASKS."""

    @property
    def learner(self):
        return self.adaptation.learner

    @property
    def share(self):
        return Share(TASKS)


def small(method, steps=2, seed=0, kind=PLAIN, **changes):
    """The method at its navigation setting, but for sizes, σ, the kind of policy, and a step size that matters."""
    settings = MetaRLSettings.for_domain("navigation", method)
    policy = dataclasses.replace(settings.policy, hidden_sizes=(4,), initial_std=0.8, **kind.network)
    if policy.context_size:
        policy = dataclasses.replace(policy, context_size=3)
    inner = dataclasses.replace(settings.inner, inner_steps=steps, inner_lr=0.02)
    region = dataclasses.replace(settings.region, fisher_fraction=1.0)
    changes |= {} if settings.initial_std_gamma is None else {"initial_std_gamma": None if kind.discrete else 0.7}
    settings = dataclasses.replace(settings, policy=policy, inner=inner, region=region, seed=seed, **changes)
    spaces = SimpleNamespace(
        observation_size=kind.observations,
        observation_shape=kind.shape,
        action_size=2,
        discrete=kind.discrete,
        name="invented",
    )
    learner = _learner(settings, spaces).double()
    with torch.no_grad():  # So that no weight starts at 0, nor next to nothing.
        random = torch.Generator().manual_seed(seed)
        for name, parameter in learner.named_parameters():
            if name.startswith(("network.", "attenuator.", "rule.mlp")):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=random, dtype=parameter.dtype))
    if learner.network.normalisation is not None:
        seen = torch.randn(50, kind.observations, generator=random, dtype=torch.float64)
        learner.network.normalisation.absorb(moments(0.5 + 2 * seen, torch.ones(50)))
    adaptation = Adaptation(learner, settings.gradient, tasks_per_shard=2, horizon=HORIZON)
    return Small(settings, adaptation, _outer(settings, learner), invented(steps, seed, kind))


def invented(steps, seed=0, kind=PLAIN):
    """Samples of TASKS tasks; one of each task's episodes is shorter."""
    random = torch.Generator().manual_seed(100 + seed)

    def batch():
        def draw(*shape):
            return torch.randn(TASKS, EPISODES * HORIZON, *shape, generator=random, dtype=torch.float64)

        happened = torch.ones(TASKS, EPISODES, HORIZON, dtype=torch.float64)
        happened[:, 0, 2:] = 0
        weights = (happened / happened.sum((1, 2), keepdim=True)).flatten(1)
        observations, actions = draw(kind.observations), draw(2)
        if len(kind.shape) == 3:
            observations = (128 + 50 * observations).clamp(0, 255).to(torch.uint8)
        if kind.discrete:
            actions = torch.nn.functional.one_hot(actions.argmax(-1), 2).double()
        return Batch(observations, actions, draw() * (weights > 0), weights)

    credit = torch.randn(TASKS, generator=random, dtype=torch.float64)
    first = batch()
    return MetaData(first, (first, *(batch() for _ in range(steps - 1))), batch(), credit)


def task_of(tree, number):
    """One task of a tree that is stacked over tasks."""
    if isinstance(tree, torch.Tensor):
        return tree[number]
    parts = [task_of(part, number) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
