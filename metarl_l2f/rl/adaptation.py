"""What N tasks go through before a meta-update: roll out, attenuate, adapt, roll out again (L2F, Algorithm 1; MAML,
Finn et al. 2017, Algorithm 3), and the same adaptation once more as a differentiable function of (θ, φ, α).

Both walk through the inner loop of `core.learner.MetaLearner.trajectory`: the first collects its data on the way, all
tasks together; the second finds them collected, one task at a time, and is vmapped over shards of a few tasks
(parallel/shards.py). The inner loss is REINFORCE's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from ..checks import check_choice, check_numbers
from ..core.learner import MetaLearner, Start
from ..core.parameters import Loss, Params
from ..diagnostics import Landscape, conflict_by_task, gradient_cosines, landscape, summed_over_tasks
from ..inspection import Inspection
from ..networks.policies import Distribution, Policy, detached
from ..parallel.shards import TASKS_PER_SHARD, Shards, Share
from ..parallel.trees import joined, moved
from .baseline import fit_values
from .episodes import Batch, Episodes, discounted_returns, generalised_advantages, standardise, to_batch
from .sampling import Sampler

Estimator = Literal["reinforce", "lvc"]
InnerData = Literal["reuse", "gradient_at_init", "resample"]
Tree = TypeVar("Tree")


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
        check_choice("estimator", self.estimator, Estimator)
        check_choice("inner_data", self.inner_data, InnerData)
        check_numbers(self, "[0, 1]", "discount", "gae_lambda")
        check_numbers(self, "[0, inf)", "initial_weight")


class MetaData(NamedTuple):
    """The samples that one task's adaptation and its meta-objective are computed from; stacked over tasks outside."""

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
    """The same as samples with advantages, stacked over tasks."""
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


class Adaptation:
    """Adapts the policy inside `learner`: with new episodes, or as a function of episodes collected before.

    Args:
        learner: L2F (or MAML) around a policy.
        gradient: estimators of the inner and outer policy gradient.
        threads: tasks are differentiated on this many threads, on a CUDA device on one; changes no result.
        tasks_per_shard: tasks differentiated together; changes rounding.
    Raises:
        TypeError: the learner's network is no policy.
    """

    def __init__(
        self,
        learner: MetaLearner,
        gradient: PolicyGradient,
        threads: int = 1,
        tasks_per_shard: int = TASKS_PER_SHARD,
    ) -> None:
        if not isinstance(learner.network, Policy):
            raise TypeError(
                f"learner must hold a GaussianPolicy or a CategoricalPolicy, got {type(learner.network).__name__}"
            )
        self.learner, self.gradient = learner, gradient
        self.policy = learner.network
        self.shards = Shards(threads if learner.device.type == "cpu" else 1, tasks_per_shard)

    # ---- one task ---------------------------------------------------------------------------------------------

    def loss(self, batch: Batch, step: int = 0) -> Loss:
        """One task's inner loss as a function of its parameters, the same at every inner step."""
        return partial(policy_loss, self.policy, batch, self.gradient.estimator)

    def policies(self, data: MetaData, theta: Params | None = None) -> list[Distribution]:
        """One task: adapt through its data, differentiably, and look at the adapted policy on its own episodes.

        Where the initial policy's own return counts too, that policy follows, on its episodes.

        Args:
            data: the task's own.
            theta: the initialisation; by default the learner's.
        """
        theta = self.learner.theta if theta is None else theta
        path, _ = self.learner.trajectory(
            self.loss, data.first, lambda number, params: data.inner[number], len(data.inner), theta=theta
        )
        adapted = [self.policy(path[-1], data.post.observations)]
        if self.gradient.initial_weight:
            adapted.append(self.policy(theta, data.first.observations))
        return adapted

    def objective(self, policies: Sequence[Distribution], old: Sequence[Distribution], data: MetaData) -> Tensor:
        """One task's surrogate: of the adapted policy, plus the weighted one of the initial policy where it counts."""
        terms = zip((1.0, self.gradient.initial_weight), policies, old, (data.post, data.first), strict=False)
        losses = [weight * surrogate_loss(policy, before, batch) for weight, policy, before, batch in terms]
        return torch.stack(losses).sum()

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
        simulated: list[int] = []

        def roll(params: Params, kept: bool = True) -> Batch:
            sampled = sampler.sample(partial(self.act, params), tasks, generators(len(simulated)))
            simulated.append(sampled.steps())
            episodes.extend([sampled] if kept else [])
            there = moved(sampled, self.learner.device)
            batch = joined(self.shards.map(self._batch, there))
            # The episodes' own memory, not a copy of it, which pictures would fill gigabytes with.
            own = {"observations": there.observations.flatten(1, 2), "actions": there.actions.flatten(1, 2)}
            return batch._replace(**own)

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
        data = MetaData(first, tuple(inner), post)
        return Rollouts(episodes, data, start, [theta, *path[1:]], sum(simulated), share or Share(len(tasks)))

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

    def _batch(self, episodes: Episodes) -> Batch:
        """Episodes → samples with standardised advantages over a per-task baseline."""
        discount = self.gradient.discount
        returns = discounted_returns(episodes.rewards, discount)
        values = fit_values(episodes.observations, returns, episodes.mask)
        advantages = generalised_advantages(episodes.rewards, values, discount, self.gradient.gae_lambda)
        return to_batch(episodes, standardise(advantages, episodes.mask))

    def inspect(self, rollouts: Rollouts) -> Inspection:
        """Conflict, γ, gradients before and after adaptation, and the landscape around the first inner step, by task.

        Processes that share the tasks must all call it; rollouts of an evaluation are of one process alone.

        The landscape is that of −E[π(a|o) / π_θ(a|o) A] on the episodes of π_θ, whose gradient at θ is REINFORCE's.
        """
        learner, theta = self.learner, {name: p.detach() for name, p in self.learner.theta.items()}

        def task(data: MetaData, start: Start, adapted: Params) -> tuple[Params, Params, Landscape]:
            loss = self.loss(data.inner[0])
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

            meta_gradients = grad(meta_loss)({name: theta[name] for name in learner.differentiated})
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
