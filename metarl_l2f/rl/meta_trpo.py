"""Meta-reinforcement learning: REINFORCE inside, a trust-region step outside (MAML, Finn et al. 2017, Sec. 5.3; L2F).

One meta-iteration: roll out the initialisation on N tasks, attenuate and adapt per task, roll out the adapted
policies, and move (θ, φ, α) by a trust-region step on their surrogate loss, differentiated through the adaptation.

Per-task functions are written for one task and vmapped over shards of a few tasks (../parallel/shards.py).
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ..checks import check_numbers
from ..core import L2F, Params, Start
from ..diagnostics import Inspection, Landscape, conflict_by_task, gradient_cosines, landscape, summed_over_tasks
from ..networks.policies import Distribution, Policy
from ..parallel.shards import TASKS_PER_SHARD, Shards, Share
from ..parallel.trees import joined, moved
from .baseline import fit_values
from .episodes import Batch, Episodes, discounted_returns, generalised_advantages, standardise, to_batch
from .sampling import Sampler
from .trpo import StepLog, TrustRegion, trust_region_step

Estimator = Literal["reinforce", "lvc"]
InnerData = Literal["reuse", "gradient_at_init", "resample"]


@dataclass(frozen=True)
class PolicyGradient:
    """How episodes become inner and outer policy gradients."""

    discount: float = 0.99
    """Discount of rewards, in [0, 1]."""
    gae_lambda: float = 1.0
    """λ of the generalised advantage estimator, in [0, 1]."""
    estimator: Estimator = "lvc"
    """Inner loss: log π · A (`reinforce`), or π / ⊥π · A (`lvc`): same first, and the right second derivative."""
    inner_data: InnerData = "gradient_at_init"
    """Episodes of the first inner step after attenuation: those of the initialisation, at θ̄ (`reuse`) or at θ
    (`gradient_at_init`), or fresh ones from θ̄ (`resample`)."""
    initial_weight: float = 0.0
    """Weight of the unadapted policy's own return in the meta-objective; above 0 its KL is bounded too."""

    def __post_init__(self) -> None:
        for name, accepted in (("estimator", Estimator), ("inner_data", InnerData)):
            if getattr(self, name) not in get_args(accepted):
                raise ValueError(f"{name} must be one of {get_args(accepted)}, got {getattr(self, name)!r}")
        check_numbers(self, "[0, 1]", "discount", "gae_lambda")
        check_numbers(self, "[0, inf)", "initial_weight")


class MetaData(NamedTuple):
    """The episodes one meta-update learns from, per task."""

    first: Batch
    """From the initialisation: what the embedding reads."""
    inner: tuple[Batch, ...]
    """One batch per inner step."""
    post: Batch
    """From the adapted policy."""


class Rollouts(NamedTuple):
    """Everything collected on a meta-batch: episodes before and after each inner step."""

    episodes: list[Episodes]
    """From the initialisation, then after 1 … k inner steps."""
    data: MetaData
    start: Start
    """Per task: attenuated start, γ and gradients at θ."""
    params: list[Params]
    """Per task: the parameters that rolled these episodes out."""
    env_steps: int
    """All steps simulated, those of `resample` included."""
    share: Share
    """Which of all tasks rolled out together, by one process or several, these are."""


def policy_loss(policy: Policy, batch: Batch, estimator: Estimator, params: Params) -> Tensor:
    """Inner loss of one task, −E[log π(a|o) A] or −E[π(a|o) / ⊥π(a|o) A]; both have the REINFORCE gradient.

    ⊥ stops the gradient. The second form also has the policy gradient's right second derivative (ProMP, Rothfuss et
    al. 2019, low-variance curvature), which the first misses.
    """
    log_prob = policy(params, batch.observations).log_prob(batch.actions)
    if estimator == "lvc":
        log_prob = torch.exp(log_prob - log_prob.detach())
    return -(batch.weights * batch.advantages * log_prob).sum()


def surrogate_loss(policy: Distribution, old: Distribution, batch: Batch) -> Tensor:
    """−E[π(a|o) / π_old(a|o) A] over one task's samples."""
    ratio = torch.exp(policy.log_prob(batch.actions) - old.log_prob(batch.actions))
    return -(batch.weights * batch.advantages * ratio).sum()


def first_episodes(batch: Batch, samples: int) -> Batch:
    """The first `samples` of a stacked batch (N, S, ·), with weights that sum to 1 again."""
    kept = Batch(*(values[:, :samples] for values in batch))
    return kept._replace(weights=kept.weights / kept.weights.sum(1, keepdim=True).clamp_min(1e-12))


class MetaTRPO:
    """Meta-trains the policy inside `learner`.

    Args:
        learner: L2F (or MAML) around a policy.
        sampler: N tasks × B episodes.
        gradient: estimators of the inner and outer policy gradient.
        region: the trust region.
        threads: tasks are differentiated on this many threads, on a CUDA device on one; changes no result.
        share: which of the meta-batch's tasks these N are; by default all. Updates are over all.
        tasks_per_shard: tasks differentiated together; changes rounding.
    """

    def __init__(
        self,
        learner: L2F,
        sampler: Sampler,
        gradient: PolicyGradient,
        region: TrustRegion,
        threads: int = 1,
        share: Share | None = None,
        tasks_per_shard: int = TASKS_PER_SHARD,
    ) -> None:
        if not isinstance(learner.network, Policy):
            raise TypeError(
                f"learner must hold a GaussianPolicy or a CategoricalPolicy, got {type(learner.network).__name__}"
            )
        self.learner, self.sampler, self.gradient, self.region = learner, sampler, gradient, region
        self.policy = learner.network
        self.share = share or Share(sampler.shape[0])
        self.shards = Shards(threads if self.device.type == "cpu" else 1, tasks_per_shard)
        # Without attenuation θ̄ = θ, so the gradient at θ is the first step's whatever the mode.
        self.gradient_at_init = learner.attenuation is None or gradient.inner_data == "gradient_at_init"

    @property
    def device(self) -> torch.device:
        """Where the learner is."""
        return self.learner.step_sizes.device

    # ---- adaptation -------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Callable[[Params], Tensor]:
        """One task's inner loss as a function of its parameters."""
        return partial(policy_loss, self.policy, batch, self.gradient.estimator)

    def policies(self, data: MetaData) -> list[Distribution]:
        """One task: adapt through its data, differentiably, and look at the adapted policy on its own episodes.

        Where the initial policy's own return counts too, that policy follows, on its episodes.
        """
        losses = [self.loss(batch) for batch in data.inner]
        params, _ = self.learner.adapt(losses, self.loss(data.first), self.gradient_at_init)
        adapted = [self.policy(params, data.post.observations)]
        if self.gradient.initial_weight:
            adapted.append(self.policy(self.learner.theta, data.first.observations))
        return adapted

    def act(self, params: Params, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions of N tasks, (N, B, A), under one set of parameters or under stacked ones, one for each task.

        Environments stay on the CPU: observations go to the parameters' device, actions come back.
        """
        there = moved((observations, noise), self.device)
        return self.policy(params, there[0]).sample(there[1]).cpu()

    def collect(
        self, tasks: Sequence[Any], generators: Callable[[int], Sequence[np.random.Generator]], steps: int
    ) -> Rollouts:
        """Roll out, adapt, roll out … on a meta-batch of tasks.

        Args:
            tasks: N tasks.
            generators: phase → one generator per task.
            steps: inner steps.
        """
        phase, env_steps = 0, 0

        def roll(params: Params) -> tuple[Episodes, Batch]:
            nonlocal phase, env_steps
            sampled = self.sampler.sample(partial(self.act, params), tasks, generators(phase))
            phase, env_steps = phase + 1, env_steps + sampled.steps()
            there = moved(sampled, self.device)
            batch = joined(self.shards.map(self.batch, there))
            # The episodes' own memory, not a copy of it, which pictures would fill gigabytes with.
            own = {"observations": there.observations.flatten(1, 2), "actions": there.actions.flatten(1, 2)}
            return sampled, batch._replace(**own)

        @torch.no_grad()
        def start_shard(batch: Batch) -> Start:
            return vmap(lambda b: self.learner.start(self.loss(b)))(batch)

        @torch.no_grad()
        def step_shard(number: int, shard: tuple[Params, Batch, Start]) -> Params:
            def task(params: Params, batch: Batch, start: Start) -> Params:
                known = number == 0 and self.gradient_at_init
                gradients = start.gradients if known else self.learner.gradients(self.loss(batch), params)
                return self.learner.step(params, gradients, number)

            return vmap(task)(*shard)

        # One θ for each task: as a single product over the observations of all tasks, rounding would depend on N.
        theta = {name: p.detach().expand(len(tasks), *p.shape) for name, p in self.learner.theta.items()}
        sampled, first = roll(theta)
        episodes, inner, played = [sampled], [], [theta]
        start = joined(self.shards.map(start_shard, first))
        params, batch = start.params, first
        if self.gradient.inner_data == "resample" and not self.gradient_at_init:
            _, batch = roll(params)
        for number in range(steps):
            inner.append(batch)
            params = joined(self.shards.map(partial(step_shard, number), (params, batch, start)))
            sampled, batch = roll(params)
            episodes.append(sampled)
            played.append(params)
        data = MetaData(first, tuple(inner), batch)
        return Rollouts(episodes, data, start, played, env_steps, self.share)

    def inspect(self, rollouts: Rollouts) -> Inspection:
        """Conflict, γ, gradients before and after adaptation, and the landscape around the first inner step, by task.

        Processes that share the tasks must all call it; rollouts of an evaluation are of one process alone.

        The landscape is that of −E[π(a|o) / π_θ(a|o) A] on the episodes of π_θ, whose gradient at θ is REINFORCE's.
        """

        @torch.no_grad()
        def shard(parts: tuple[MetaData, Start, Params]) -> tuple[Params, Landscape]:
            def task(data: MetaData, start: Start, adapted: Params) -> tuple[Params, Landscape]:
                first, (inner, *_), post = data
                loss = self.loss(inner)
                gradients = start.gradients if self.gradient_at_init else self.learner.gradients(loss, start.params)
                after = self.learner.gradients(self.loss(post), adapted, list(start.gradients))
                direction = {n: self.learner.alpha(0)[n] * gradients[n] for n in self.learner.adapted_names}
                played = self.policy(self.learner.theta, first.observations)

                def around(params: Params) -> Tensor:  # the inner loss is 0 wherever it is stood on; this one is not
                    return surrogate_loss(self.policy(params, first.observations), played, first)

                return after, landscape(around, start.params, direction)

            return vmap(task)(*parts)

        start, share = rollouts.start, rollouts.share
        after, around = joined(self.shards.map(shard, (rollouts.data, start, rollouts.params[-1])))
        found = Inspection(
            self.learner.gammas_by_tensor(start.gamma) if self.learner.attenuation else {},
            conflict_by_task(start.gradients, share.sum(summed_over_tasks(start.gradients))),
            gradient_cosines(start.gradients, after),
            around,
        )
        return share.gather(moved(found, torch.device("cpu")))

    def batch(self, episodes: Episodes) -> Batch:
        """Episodes → samples with standardised advantages over a per-task baseline."""
        discount = self.gradient.discount
        returns = discounted_returns(episodes.rewards, discount)
        values = fit_values(episodes.observations, returns, episodes.mask)
        advantages = generalised_advantages(episodes.rewards, values, discount, self.gradient.gae_lambda)
        return to_batch(episodes, standardise(advantages, episodes.mask))

    # ---- meta-update ------------------------------------------------------------------------------------------

    def update(self, data: MetaData) -> StepLog:
        """Move (θ, φ, α) by one trust-region step on the surrogate."""
        parameters = self.learner.meta_parameters
        origin = parameters_to_vector(parameters).detach().clone()
        before, gradient, old = self.surrogate(data)

        @torch.no_grad()
        def move(step: Tensor) -> Tensor:
            point = (origin.double() + step).to(origin.dtype)
            vector_to_parameters(point, parameters)
            return point

        def evaluate(step: Tensor) -> tuple[float, float]:
            # Neither number need depend on a parameter that float32 cannot hold.
            return self.surrogate_and_kl(data, old) if move(step).isfinite().all() else (math.inf, math.inf)

        accepted = torch.zeros_like(gradient)
        try:
            accepted, log = trust_region_step(gradient, self.curvature(data), evaluate, before, self.region)
        finally:
            move(accepted)
        return log

    def objective(self, policies: Sequence[Distribution], old: Sequence[Distribution], data: MetaData) -> Tensor:
        """One task's surrogate: of the adapted policy, plus the weighted one of the initial policy where it counts."""
        terms = zip((1.0, self.gradient.initial_weight), policies, old, (data.post, data.first), strict=False)
        losses = [weight * surrogate_loss(policy, before, batch) for weight, policy, before, batch in terms]
        return torch.stack(losses).sum()

    def surrogate(self, data: MetaData) -> tuple[float, Tensor, list[Distribution]]:
        """The surrogate's mean over tasks, its exact gradient through the adaptation, and the policies as they are.

        Returns:
            The mean; the gradient with respect to (θ, φ, α), (P,) float64; the current policies, stacked over tasks.
        """
        parameters = self.learner.meta_parameters

        def shard(data: MetaData) -> tuple[Tensor, list[Distribution]]:
            policies = vmap(self.policies)(data)
            old = [_detached(policy) for policy in policies]
            losses = vmap(self.objective)(policies, old, data)
            gradient = torch.autograd.grad(losses.sum(), parameters)
            return torch.cat([losses.detach().double().sum().unsqueeze(0), _flat(gradient)]), old

        sums, old = zip(*self.shards.map(shard, data), strict=True)
        mean = self._mean(list(sums))
        return float(mean[0]), mean[1:], joined(old)

    @torch.no_grad()
    def surrogate_and_kl(self, data: MetaData, old: list[Distribution]) -> tuple[float, float]:
        """Means over tasks of the surrogate and of KL(old ‖ current), at the current parameters."""

        def task(data: MetaData, old: list[Distribution]) -> tuple[Tensor, Tensor]:
            policies = self.policies(data)
            terms = zip(old, policies, (data.post, data.first), strict=False)
            kls = [(batch.weights * before.kl(policy)).sum() for before, policy, batch in terms]
            return self.objective(policies, old, data), torch.stack(kls).sum()

        @torch.no_grad()  # the grad mode belongs to a thread
        def shard(pair: tuple[MetaData, list[Distribution]]) -> tuple[Tensor, Tensor]:
            return vmap(task)(*pair)

        parts = [torch.stack(part).double().sum(1) for part in self.shards.map(shard, (data, old))]
        loss, kl = self._mean(parts).tolist()
        return loss, kl

    def _mean(self, parts: list[Tensor]) -> Tensor:
        """The mean over all tasks, of every process, given each shard's sum over its own: (n,) float64.

        What was computed in float32 adds up in float64 without rounding, so in any order. What was float64 already is
        added in the order of shards.
        """
        if self.learner.step_sizes.dtype == torch.float64:
            return self.share.gather(torch.stack(parts)).to(self.device).sum(0) / self.share.number
        return self.share.sum(torch.stack(parts).sum(0)) / self.share.number

    def curvature(self, data: MetaData) -> Callable[[Tensor], Tensor]:
        """Gauss-Newton products of the KL, v → Σᵢ JᵢᵀMᵢJᵢ v / N, J = ∂(policy outputs)/∂(θ, φ, α) through adaptation.

        The graph of Jᵀu is built once, at u = 0; its derivative with respect to u along v is J v, and a second pass
        gives Jᵀ(M J v). Estimated on `fisher_fraction` of the episodes.
        """
        data = self._fisher_share(data)
        parameters = self.learner.meta_parameters

        def build(data: MetaData) -> Graph:
            policies = vmap(self.policies)(data)
            outputs = [output.requires_grad_() for output in _outputs(policies)]  # A frozen σ is a constant.
            tangents = [torch.zeros_like(output, requires_grad=True) for output in outputs]
            pulled = torch.autograd.grad(outputs, parameters, tangents, create_graph=True)
            return Graph([data.post.weights, data.first.weights], policies, tangents, pulled)

        graphs = self.shards.map(build, data)

        def product(vector: Tensor) -> Tensor:
            pieces = vector.split([p.numel() for p in parameters])
            direction = [piece.view_as(p).to(p.dtype) for piece, p in zip(pieces, parameters, strict=True)]

            def multiply(graph: Graph) -> Tensor:
                pushed = torch.autograd.grad(
                    graph.pulled, graph.tangents, direction, retain_graph=True, materialize_grads=True
                )
                tangents = _regrouped(pushed, graph.policies)
                curved = [
                    vmap(type(policy).fisher)(_detached(policy), tangent, weights)
                    for policy, tangent, weights in zip(graph.policies, tangents, graph.weights, strict=False)
                ]
                pulled = torch.autograd.grad(_outputs(graph.policies), parameters, _outputs(curved), retain_graph=True)
                return _flat(pulled)

            return self._mean(self.shards.map_list(multiply, graphs))

        return product

    def _fisher_share(self, data: MetaData) -> MetaData:
        horizon = self.sampler.horizon
        episodes = math.ceil(self.region.fisher_fraction * (data.post.weights.shape[1] // horizon))
        first, inner, post = data
        share = partial(first_episodes, samples=episodes * horizon)
        return MetaData(share(first), tuple(share(batch) for batch in inner), share(post))


class Graph(NamedTuple):
    """One shard's graph of Jᵀu, ready for curvature products."""

    weights: list[Tensor]
    """Per policy, (n, S): each sample's share of its task's mean."""
    policies: list[Distribution]
    """The outputs J differentiates: each policy's own tensors, stacked over the shard's tasks."""
    tangents: Sequence[Tensor]
    """u, zeros shaped as the outputs."""
    pulled: Sequence[Tensor]
    """Jᵀu, shaped as the parameters."""


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).double()


def _detached(policy: Distribution) -> Distribution:
    return _like(policy, [output.detach() for output in policy])


def _like(policy: Distribution, outputs: Iterable[Tensor]) -> Distribution:
    """A distribution of the same kind, of other tensors."""
    kind: Callable[..., Distribution] = type(policy)
    return kind(*outputs)


def _outputs(policies: Sequence[Distribution]) -> list[Tensor]:
    return [output for policy in policies for output in policy]


def _regrouped(outputs: Sequence[Tensor], like: Sequence[Distribution]) -> list[Distribution]:
    """The inverse of `_outputs`: distributions of the same kinds as `like`."""
    remaining = iter(outputs)
    return [_like(policy, itertools.islice(remaining, len(policy))) for policy in like]
