"""Adaptation to N tasks before a meta-update: roll out, attenuate, adapt, roll out again (L2F, Algorithm 1; MAML, Finn
et al. 2017, Algorithm 3), and the same adaptation once more as a differentiable function of (θ, φ, α).

Both walk through the inner loop of `core.learner.MetaLearner.trajectory`: the first collects its data on the way, all
tasks together; the second finds them collected, one task at a time, and is vmapped over shards of a few tasks
(parallel/shards.py). The inner loss is REINFORCE's.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from ..checks import check_choice, check_numbers
from ..core.learner import MetaLearner, Start
from ..core.parameters import Loss, Params, Watched
from ..diagnostics import Landscape, conflict_by_task, gradient_cosines, landscape, summed_over_tasks
from ..inspection import Inspection
from ..networks.policies import Distribution, Policy, detached
from ..parallel.shards import TASKS_PER_SHARD, Shards, Share
from ..parallel.traces import TracedShards
from ..parallel.trees import joined, moved
from .baseline import fit_values
from .episodes import (
    Batch,
    Episodes,
    discounted_returns,
    explained_variance,
    generalised_advantages,
    standardise,
    to_batch,
)
from .sampling import Sampler

logger = logging.getLogger(__name__)

Estimator = Literal["reinforce", "lvc", "dice"]
InnerData = Literal["reuse", "gradient_at_init", "resample"]
Tree = TypeVar("Tree")


@dataclass(frozen=True)
class PolicyGradient:
    """The estimators of the inner and outer policy gradients."""

    discount: float = 0.99
    """Discount of rewards, in [0, 1]."""
    gae_lambda: float = 1.0
    """λ of the generalised advantage estimator, in [0, 1]."""
    estimator: Estimator = "lvc"
    """Inner loss: log π · A (`reinforce`), π / ⊥π · A (`lvc`): the same first, and nearly the right second derivative,
    or products of π / ⊥π up to each time step (`dice`): the right second derivative, of more variance."""
    inner_data: InnerData = "gradient_at_init"
    """Episodes of the first inner step after attenuation: those of the initialisation, at θ̄ (`reuse`) or at θ
    (`gradient_at_init`), or fresh ones from θ̄ (`resample`)."""
    initial_weight: float = 0.0
    """Weight of the unadapted policy's own return in the meta-objective; above 0 its KL is bounded too."""
    exploration_weight: float = 0.0
    """Weight of the credit that the unadapted policy gets for the returns after adaptation to its episodes (E-MAML),
    which is another thing than its own return; above 0 its KL is bounded too."""
    dice_lambda: float = 1.0
    """λ of `dice`, in [0, 1]: an action counts λᵏ as much for the advantage k time steps later, so that 1 is DiCE and 0
    is `lvc`, with less variance and more bias in between."""

    def __post_init__(self) -> None:
        check_choice("estimator", self.estimator, Estimator)
        check_choice("inner_data", self.inner_data, InnerData)
        check_numbers(self, "[0, 1]", "discount", "gae_lambda", "dice_lambda")
        if self.dice_lambda != 1.0 and self.estimator != "dice":
            raise ValueError(
                f"dice_lambda={self.dice_lambda} has no effect on estimator={self.estimator!r}; leave it 1, or choose "
                "estimator='dice'"
            )
        check_numbers(self, "[0, inf)", "initial_weight", "exploration_weight")

    @property
    def initial_counts(self) -> bool:
        """Whether the unadapted policy has a term of its own in the meta-objective."""
        return self.initial_weight > 0 or self.exploration_weight > 0


class MetaData(NamedTuple):
    """The samples that one task's adaptation and its meta-objective are computed from; stacked over tasks outside."""

    first: Batch
    """The samples of the initialisation, from which the embedding is computed."""
    inner: tuple[Batch, ...]
    """One batch per inner step."""
    post: Batch
    """The samples of the adapted policy."""
    credit: Tensor
    """(), the task's return after adaptation, less the mean over the meta-batch and in units of its deviation; 0 where
    it does not count."""


class Phase(NamedTuple):
    """Measurements of one task's episodes, before adaptation or after a number of inner steps."""

    entropy: Tensor
    """(), mean entropy of the policy that collected them, nats."""
    explained_variance: Tensor
    """(), fraction of the returns' variance that the baseline explains."""


class Rollouts(NamedTuple):
    """Everything collected on a meta-batch: episodes before and after each inner step."""

    episodes: list[Episodes]
    """Those of the initialisation, then those after 1 … k inner steps."""
    data: MetaData
    """The same as samples with advantages, stacked over tasks."""
    start: Start
    """Per task: attenuated start, γ and gradients at θ."""
    params: list[Params]
    """Per task: the parameters that rolled these episodes out."""
    env_steps: int
    """The number of steps that were simulated, including those of `resample`."""
    share: Share
    """The rows that these tasks have among all tasks of the meta-batch, which several processes may share."""
    phases: list[Phase]
    """The measurements of each task, (N,), by phase as `episodes`."""


def policy_loss(
    policy: Callable[[Params, Tensor], Distribution],
    batch: Batch,
    estimator: Estimator,
    params: Params,
    horizon: int | None = None,
    dice_lambda: float = 1.0,
) -> Tensor:
    """Inner loss of one task: −E[log π(a|o) A], −E[π(a|o) / ⊥π(a|o) A], or that of `dice`, all with one gradient.

    ⊥ stops the gradient. The second form (low-variance curvature of ProMP, Rothfuss et al. 2019, Eq. 12) also has the
    policy gradient's second derivative, but for the terms of pairs of different time steps, which the first misses
    altogether and the third has.

    Args:
        policy: (parameters, observations) → the distribution of the action.
        batch: the task's samples.
        estimator: the form.
        params: the point at which the loss is computed.
        horizon: T, for `dice`.
        dice_lambda: λ, in [0, 1], for `dice`.
    """
    log_prob = policy(params, batch.observations).log_prob(batch.actions)
    if estimator == "lvc":
        log_prob = magic(log_prob)
    elif estimator == "dice":
        assert horizon is not None
        log_prob = loaded_dice(log_prob.unflatten(0, (-1, horizon)), dice_lambda).flatten()
    return -(batch.weights * batch.advantages * log_prob).sum()


def magic(log_prob: Tensor) -> Tensor:
    """exp(x − ⊥x): 1 at every point, with the derivatives of a likelihood ratio (DiCE, Foerster et al. 2018)."""
    return torch.exp(log_prob - log_prob.detach())


def loaded_dice(log_prob: Tensor, decay: float = 1.0) -> Tensor:
    """The factor of each time step's advantage in Loaded DiCE (Farquhar, Whiteson, Foerster 2019).

    □(x_t) − □(x_t − log π(a_t | o_t)) with x_t = Σ_{s ≤ t} λ^(t−s) log π(a_s | o_s) and □ = `magic`: 0 at every point.
    Its first derivative is ∇ log π(a_t | o_t). With λ = 1 its second is that of the likelihood ratio of all actions up
    to t, and with λ = 0 that of the ratio of a_t alone, as in LVC.

    Args:
        log_prob: (B, T), log π(a_t | o_t); what stands behind an episode's end changes no factor before it.
        decay: λ, in [0, 1].
    """
    until, reach = log_prob, 1
    while reach < log_prob.shape[-1]:  # x_t over the last 1, 2, 4 … steps: each time twice as many.
        until = until + decay**reach * F.pad(until[..., :-reach], (reach, 0))
        reach *= 2
    return magic(until) - magic(until - log_prob)


def surrogate_loss(policy: Distribution, old: Distribution, batch: Batch) -> Tensor:
    """−E[π(a|o) / π_old(a|o) A] over one task's samples."""
    ratio = torch.exp(policy.log_prob(batch.actions) - old.log_prob(batch.actions))
    return -(batch.weights * batch.advantages * ratio).sum()


class Adaptation:
    """Adapts the policy inside `learner`: with new episodes, or as a function of episodes collected before.

    Args:
        learner: L2F (or MAML) around a policy.
        gradient: estimators of the inner and outer policy gradient.
        threads: tasks are differentiated on this many threads, on a CUDA device on one; changes no result.
        tasks_per_shard: tasks differentiated together; changes rounding. On a CPU a policy with convolutions takes one
            at a time, which is several times as fast as a convolution in groups, one for each task.
        horizon: T, the length of the episodes; only the estimator `dice` needs it.
        compiled: whether what an update computes again and again is traced and replayed (`parallel/traces.py`), which
            changes rounding; only on the CPU.
    Raises:
        TypeError: the learner's network is no policy.
        ValueError: the estimator needs a horizon.
    """

    def __init__(
        self,
        learner: MetaLearner,
        gradient: PolicyGradient,
        threads: int = 1,
        tasks_per_shard: int = TASKS_PER_SHARD,
        horizon: int | None = None,
        compiled: bool = False,
    ) -> None:
        if gradient.estimator == "dice" and horizon is None:
            raise ValueError(
                "estimator='dice' multiplies ratios along episodes: pass their length as horizon, got None"
            )
        if not isinstance(learner.network, Policy):
            raise TypeError(
                f"learner must hold a GaussianPolicy or a CategoricalPolicy, got {type(learner.network).__name__}"
            )
        self.learner, self.gradient, self.horizon = learner, gradient, horizon
        self.policy = learner.network
        on_cpu = learner.device.type == "cpu"
        tasks_per_shard = 1 if on_cpu and self.policy.trunk is not None else tasks_per_shard
        self.shards = Shards(threads if on_cpu else 1, tasks_per_shard)
        if compiled and on_cpu:
            self.shards = TracedShards(threads, tasks_per_shard, lambda: [*learner.parameters(), *learner.buffers()])
        elif compiled:
            logger.warning("compiled has no effect on %s: updates are traced on a CPU only", learner.device)

    # ---- one task ---------------------------------------------------------------------------------------------

    def loss(self, batch: Batch, step: int = 0, policy: Callable[[Params, Tensor], Distribution] | None = None) -> Loss:
        """One task's inner loss as a function of its parameters, the same at every inner step.

        Args:
            batch: the task's samples.
            step: the inner step's number, from 0.
            policy: (parameters, observations) → the distribution of the action; by default the learner's policy.
        """
        how, policy = self.gradient, policy or self.policy
        return partial(policy_loss, policy, batch, how.estimator, horizon=self.horizon, dice_lambda=how.dice_lambda)

    def policies(self, data: MetaData, theta: Params | None = None) -> list[Distribution]:
        """One task: adapt through its data, differentiably, and look at the adapted policy on its own episodes.

        Where the initial policy counts too, that policy follows, on its episodes.

        Args:
            data: the task's own.
            theta: the initialisation; by default the learner's.
        """
        theta = self.learner.theta if theta is None else theta
        # The first inner loss is that of the initial policy, on the same episodes.
        seen = self.gradient.initial_counts and self.learner.first_gradient_is_known
        losses: list[Watched] = []

        def loss(batch: Batch, step: int) -> Loss:
            if not seen:
                return self.loss(batch, step)

            def watched(params: Params) -> tuple[Tensor, Distribution]:
                policy = self.policy(params, batch.observations)
                return self.loss(batch, step, lambda params, observations: policy)(params), policy

            losses.append(Watched(watched))
            return losses[-1]

        path, _ = self.learner.trajectory(
            loss, data.first, lambda number, params: data.inner[number], len(data.inner), theta=theta
        )
        adapted = [self.policy(path[-1], data.post.observations)]
        if self.gradient.initial_counts:
            adapted.append(losses[0].seen if seen else self.policy(theta, data.first.observations))
        return adapted

    def acting(
        self, data: MetaData, old: Sequence[Distribution] = (), theta: Params | None = None
    ) -> list[Distribution]:
        """One task: the policies that collected the episodes of inner step 1 … k and those after it, on these episodes.

        Where the initial policy counts too, that policy follows, on its episodes.

        Args:
            data: the task's own.
            old: the same policies as they were when they collected them; empty where they are still what they were. The
                inner loss is that of the likelihood ratio to them, −E[π / π_old A] (ProMP, Eq. 11), which stays right
                while θ moves.
            theta: the initialisation; by default the learner's.
        """
        theta, steps = self.learner.theta if theta is None else theta, len(data.inner)
        before: list[Distribution | None] = [*old] if old else [None] * steps
        known, fresh = self.learner.first_gradient_is_known, self.gradient.inner_data == "resample"
        losses: list[Watched] = []

        def loss(pair: tuple[Batch, Distribution | None], step: int) -> Loss:
            batch, past = pair

            def ratios(params: Params) -> tuple[Tensor, Distribution]:
                policy = self.policy(params, batch.observations)
                return surrogate_loss(policy, detached(policy) if past is None else past, batch), policy

            losses.append(Watched(ratios))
            return losses[-1]

        path, _ = self.learner.trajectory(
            loss,
            (data.first, before[0] if known or not fresh else None),
            lambda number, params: (data.inner[number], before[number]),
            steps,
            theta=theta,
        )
        acted: list[Distribution] = [loss.seen for loss in losses[-steps:]]
        if not (known or fresh):  # θ collected the episodes of the first step, which is taken at θ̄.
            acted[0] = self.policy(theta, data.inner[0].observations)
        acted.append(self.policy(path[-1], data.post.observations))
        if self.gradient.initial_counts:
            acted.append(self.policy(theta, data.first.observations))
        return acted

    def objective(self, policies: Sequence[Distribution], old: Sequence[Distribution], data: MetaData) -> Tensor:
        """One task's surrogate: that of the adapted policy, plus the terms of the initial policy where it counts."""
        losses = [surrogate_loss(policies[0], old[0], data.post)]
        if self.gradient.initial_counts:
            losses.append(self.initial_objective(policies[1], old[1], data))
        return torch.stack(losses).sum()

    def initial_objective(self, policy: Distribution, old: Distribution, data: MetaData) -> Tensor:
        """One task's terms of the initial policy, on the episodes that it collected.

        Its own return, and E-MAML's credit for what adaptation made of its episodes (Stadie et al. 2018, Eq. 3): the
        gradient of −E[π / π_old] C is −E[∇ log π] C, with C the return after adaptation, centred over the meta-batch.
        """
        own = self.gradient.initial_weight * surrogate_loss(policy, old, data.first)
        if not self.gradient.exploration_weight:
            return own
        credited = data.first._replace(advantages=data.credit.expand_as(data.first.advantages))
        return own + self.gradient.exploration_weight * surrogate_loss(policy, old, credited)

    # ---- many tasks -------------------------------------------------------------------------------------------

    def collect(
        self,
        sampler: Sampler,
        tasks: Sequence[Any],
        generators: Callable[[int], Sequence[np.random.Generator]],
        steps: int,
        share: Share | None = None,
    ) -> Rollouts:
        """Roll out, adapt, roll out … on a meta-batch of tasks.

        Args:
            sampler: rolls policies out on N tasks.
            tasks: N tasks.
            generators: phase → one generator per task.
            steps: inner steps.
            share: which of all tasks these N are; by default all.
        """
        episodes: list[Episodes] = []
        phases: list[Phase] = []
        simulated: list[int] = []

        def roll(params: Params, kept: bool = True) -> Batch:
            sampled = sampler.sample(partial(self.act, params), tasks, generators(len(simulated)))
            simulated.append(sampled.steps())
            there = moved(sampled, self.learner.device)
            batch, explained = joined(self.shards.map(self._batch, there))
            # The episodes' own memory, not a copy of it, which pictures would fill gigabytes with.
            own = {"observations": there.observations.flatten(1, 2), "actions": there.actions.flatten(1, 2)}
            batch = batch._replace(**own)
            if kept:
                episodes.append(sampled)
                phases.append(Phase(self._over_tasks(self._entropy, params, batch), explained))
            return batch

        # One θ for each task: as a single product over the observations of all tasks, rounding would depend on N.
        theta = {name: p.detach().expand(len(tasks), *p.shape) for name, p in self.learner.theta.items()}
        first = roll(theta)
        inner = [first][:steps] if self.learner.first_gradient_is_known else []

        def data_of(number: int, params: Params) -> Batch:
            if number == 0:
                inner.append(roll(params, kept=False) if self.gradient.inner_data == "resample" else first)
            else:
                inner.append(roll(params))
            return inner[-1]

        path, start = self.learner.trajectory(self.loss, first, data_of, steps, over=self._over_tasks)
        post = roll(path[-1]) if steps else first
        share = share or Share(len(tasks))
        data = MetaData(first, tuple(inner), post, self._credit(episodes[-1], share).to(self.learner.device))
        return Rollouts(episodes, data, start, [theta, *path[1:]], sum(simulated), share, phases)

    def _credit(self, episodes: Episodes, share: Share) -> Tensor:
        """Each task's return after adaptation, centred and scaled over the meta-batch, (N,); else 0."""
        returns = episodes.returns().mean(1)
        if not self.gradient.exploration_weight:
            return torch.zeros_like(returns)
        every = share.gather(returns)
        return (returns - every.mean()) / (every.std(unbiased=False) + 1e-8)

    def _over_tasks(self, function: Callable[..., Tree], *stacked: Any) -> Tree:
        """A function of one task, for every task of trees stacked over tasks; without derivatives."""

        @torch.no_grad()  # The grad mode belongs to a thread.
        def shard(trees: tuple[Any, ...]) -> Tree:
            return vmap(function)(*trees)

        return joined(self.shards.map(shard, stacked))

    def act(self, params: Params, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions of N tasks, (N, B, A), under parameters stacked over tasks.

        Environments stay on the CPU: observations go to the parameters' device, actions come back.
        """
        there = moved((observations, noise), self.learner.device)
        return self.policy(params, there[0]).sample(there[1]).cpu()

    def _entropy(self, params: Params, batch: Batch) -> Tensor:
        """One task: the mean entropy of a policy on samples, ()."""
        return (batch.weights * self.policy.entropy(params, batch.observations)).sum()

    def _batch(self, episodes: Episodes) -> tuple[Batch, Tensor]:
        """Episodes → samples with standardised advantages over a per-task baseline, and what it explains, (N,)."""
        discount = self.gradient.discount
        returns = discounted_returns(episodes.rewards, discount)
        values = fit_values(episodes.observations, returns, episodes.mask)
        advantages = generalised_advantages(episodes.rewards, values, discount, self.gradient.gae_lambda)
        explained = explained_variance(returns, values, episodes.mask)
        return to_batch(episodes, standardise(advantages, episodes.mask)), explained

    def inspect(self, rollouts: Rollouts) -> Inspection:
        """Conflict, γ, gradients before and after adaptation, and the landscape around the first inner step, by task.

        Processes that share the tasks must all call it; rollouts of an evaluation are of one process alone.

        The landscape is that of −E[π(a|o) / π_θ(a|o) A] on the episodes of π_θ, whose gradient at θ is REINFORCE's.
        """
        learner, theta = self.learner, {name: p.detach() for name, p in self.learner.theta.items()}

        def task(data: MetaData, start: Start, adapted: Params) -> tuple[Params, Params, Landscape]:
            loss = self.loss(data.inner[0] if data.inner else data.first)  # Without steps, that of a first one.
            gradients = start.gradients if learner.first_gradient_is_known else learner.gradients(loss, start.params)
            after = learner.gradients(self.loss(data.post), adapted, learner.differentiated)
            stepped = learner.rule(start.params, gradients, 0)
            direction = {name: start.params[name] - stepped[name] for name in learner.rule.names}
            played = self.policy(theta, data.first.observations)

            def around(params: Params) -> Tensor:  # The LVC loss has the value 0 at every point; this one has not.
                return surrogate_loss(self.policy(params, data.first.observations), played, data.first)

            def meta_loss(moved: Params) -> Tensor:
                policies = self.policies(data, theta | moved)
                return self.objective(policies, [detached(policy) for policy in policies], data)

            meta_gradients = grad(meta_loss)({name: theta[name] for name in learner.learned})
            return after, meta_gradients, landscape(around, start.params, direction)

        start, share = rollouts.start, rollouts.share
        after, meta_gradients, around = self._over_tasks(task, rollouts.data, start, rollouts.params[-1])
        found = Inspection(
            learner.gammas_by_tensor(start.gamma),
            conflict_by_task(start.gradients, share.sum(summed_over_tasks(start.gradients))),
            conflict_by_task(meta_gradients, share.sum(summed_over_tasks(meta_gradients))),
            gradient_cosines(start.gradients, after),
            around,
        )
        return share.gather(moved(found, torch.device("cpu")))
