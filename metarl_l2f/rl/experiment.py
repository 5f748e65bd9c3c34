"""A meta-RL run on one environment: settings, and the object that iterates, validates, evaluates and adapts.

Everything random is keyed by (seed, stream, iteration, task, phase), so `iterate(i)` depends on nothing but the
learner's state and i: runs resume exactly, and two methods with one seed have the same tasks and the same noise.
"""

import copy
import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ..checks import check_count, check_finite
from ..core.attenuation import Attenuation
from ..core.learner import MetaLearner, meta_learner, renamed_since_0_1
from ..diagnostics import degree_of_conflict
from ..inspection import gamma_statistics
from ..methods import named
from ..networks.normalisation import Moments, moments
from ..parallel.ranks import Group
from ..parallel.shards import TASKS_PER_SHARD, Share
from ..parallel.trees import joined, moved, rows_of
from ..training.checkpoint import CheckpointError, load_into
from ..training.seeding import Stream, generator, torch_generator
from .adaptation import Adaptation, Rollouts
from .adapted import Adapted, AdaptedPolicy
from .outer import OuterUpdate
from .policy import policy_for, warn_of_pictures
from .promp import ClippedUpdate
from .sampling import Sampler, listed
from .settings import DOMAIN_OF, MetaRLSettings
from .trpo import TrustRegionUpdate
from .vectorise import EnvSource, id_of, vectorise
from .vpg import PolicyGradientUpdate

logger = logging.getLogger(__name__)


class MetaRL:
    """Meta-trains a policy on one environment's tasks.

    Args:
        env: a registered gymnasium id, its specification, or a factory of environments. An environment takes its task
            through `reset(options={"task": task})` and draws tasks by `sample_tasks(number, generator)`; `set_task`
            and `sample_tasks(number)` of other libraries work, too (`docs/environments.md`).
        settings: the settings; None stands for L2F's best known ones in the environment's domain.
        env_kwargs: the environment's own arguments.
        threads: the number of CPU threads of the meta-update, and of environments that can use them. It changes no
            result.
        workers: the number of processes that step the environments; 0 stands for this one. It changes no result.
        timeout: the longest time, in seconds, that a worker may take to build, reset or step its share once.
        device: the device of learning, which changes rounding (`devices.prepare`); None stands for the CPU, on which
            environments always stay.
        group: the processes that share every meta-batch of tasks; None stands for this one alone. It changes no result.
        tasks_per_shard: the number of tasks that are differentiated together, which changes rounding; every process
            takes whole shards. A policy with convolutions differentiates them one at a time on a CPU.
        compiled: whether the meta-update's losses and derivatives are traced once and replayed, which changes rounding
            (`parallel/traces.py`); only on the CPU.
    Raises:
        ValueError, TypeError: an argument is out of range, or the environment cannot be used.
    """

    def __init__(
        self,
        env: EnvSource,
        settings: MetaRLSettings | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        threads: int = 1,
        workers: int = 0,
        timeout: float = 60.0,
        device: torch.device | None = None,
        group: Group | None = None,
        tasks_per_shard: int = TASKS_PER_SHARD,
        compiled: bool = False,
    ) -> None:
        self.env, self.env_kwargs = env, dict(env_kwargs or {})
        self.settings = settings = settings or MetaRLSettings.for_domain(DOMAIN_OF.get(id_of(env)))
        self.threads, self.workers, self.timeout = threads, workers, timeout
        self.env_steps = 0
        self.share = Share(settings.tasks_per_batch, group, tasks_per_shard)
        self.share.warn_of_idle(f"make tasks_per_shard smaller than {tasks_per_shard}, which rounds differently")
        self.sampler = self._sampler(len(self.share), settings.episodes_per_task)
        try:
            self.learner = _learner(settings, self.sampler).to(device or "cpu")
            self.adaptation = Adaptation(
                self.learner, settings.gradient, threads, tasks_per_shard, settings.horizon, compiled
            )
            warn_of_pictures(self.adaptation.policy, self.sampler)
        except Exception:
            self.sampler.close()
            raise
        self.outer = _outer(settings, self.learner)

    def _sampler(self, tasks: int, episodes: int, env: EnvSource | None = None) -> Sampler:
        """A sampler of N·B copies of an environment; by default of the run's own, with its arguments."""
        source, arguments = (self.env, self.env_kwargs) if env is None else (env, {})
        envs = vectorise(
            source,
            tasks * episodes,
            workers=self.workers,
            timeout=self.timeout,
            threads=self.threads,
            **arguments,
        )
        return Sampler(envs, tasks, episodes, self.settings.horizon)

    def iterate(self, iteration: int) -> dict[str, float]:
        """Do one meta-iteration, and return its metrics (`docs/metrics.md`)."""
        begin, simulated = time.perf_counter(), self.sampler.physics_seconds
        rollouts, _ = self._rollouts(generator(self.settings.seed, Stream.TASKS, iteration), Stream.POLICY, iteration)
        sampled, physics = time.perf_counter(), self.sampler.physics_seconds - simulated
        group = self.share.group
        waited = group.seconds
        made = self.outer.update(self.adaptation, rollouts)
        self._move_normalisation(rollouts)
        updated, waited = time.perf_counter(), group.seconds - waited
        check_finite(self.learner.state_dict(), iteration, "a smaller max_kl or inner_lr")
        if made.rejected:
            logger.warning("iteration %d: the update was rejected: %s", iteration, made.rejected)
        returns, env_steps = self._returns_and_steps(rollouts)
        self.env_steps += env_steps
        conflict = degree_of_conflict(rollouts.start.gradients, self.share.sum)
        return {
            "env_steps": self.env_steps,
            **returns,
            **made.metrics,
            **self._measured(rollouts),
            **self._action_noise(),
            **self.learner.rule.learned(),
            **gamma_statistics(self.learner, self.share.gather(rollouts.start.gamma)),
            **{f"conflict/{layer}": angle for layer, angle in conflict.items()},
            "time/iteration": updated - begin,
            "time/sampling": sampled - begin,
            "time/update": updated - sampled,
            **({"time/physics": physics} if physics else {}),
            **({"time/ranks": waited} if group.size > 1 else {}),
        }

    def validate(self, iteration: int) -> dict[str, float]:
        """Compute mean returns after 0 … k inner steps on the run's validation tasks, which are fixed."""
        returns, _ = self._returns_and_steps(self.validation_rollouts()[0])
        return {f"validation/{tag}": value for tag, value in returns.items()}

    def validation_rollouts(self) -> tuple[Rollouts, Any]:
        """Collect episodes on this process's share of the run's validation tasks; return these and all of those tasks.

        Tasks and noise are always the same.
        """
        return self._rollouts(generator(self.settings.seed, Stream.VALIDATION, 0), Stream.VALIDATION, 1)

    def _rollouts(self, drawing: np.random.Generator, stream: Stream, key: int) -> tuple[Rollouts, Any]:
        """This process's share of a meta-batch that a generator draws, rolled out and adapted to; and all its tasks."""
        seed, rows = self.settings.seed, self.share.rows
        tasks = self.sampler.sample_tasks(self.share.number, drawing)
        keyed = partial(_generators, seed, stream, key, range(rows.start, rows.stop))
        steps = self.settings.inner.inner_steps
        return self.adaptation.collect(self.sampler, tasks[rows], keyed, steps, self.share), tasks

    def _move_normalisation(self, rollouts: Rollouts) -> None:
        """Add the observations of all processes' episodes to the moments that the policy normalises by.

        Each task's moments are computed alike wherever it is, and merged in the order of phases and tasks, so that they
        do not depend on the number of processes. What acted, adapted and was updated within an iteration has used the
        moments of the iterations before it.
        """
        normalisation = self.adaptation.policy.normalisation
        if normalisation is None:
            return

        def by_task(shard: tuple[Tensor, Tensor]) -> Moments:
            found = zip(*(moments(*task) for task in zip(*shard, strict=True)), strict=True)
            return Moments(*map(torch.stack, found))

        read = [(episodes.observations, episodes.mask) for episodes in rollouts.episodes]
        phases = self.share.gather([joined(self.adaptation.shards.map(by_task, phase)) for phase in read])
        for phase in phases:
            for task in range(self.share.number):
                normalisation.absorb(rows_of(phase, task))

    def _returns_and_steps(self, rollouts: Rollouts) -> tuple[dict[str, float], int]:
        """Mean returns by inner step, and environment steps, of all processes' episodes."""
        returns = self.share.gather([episodes.returns() for episodes in rollouts.episodes])
        env_steps = self.share.sum(torch.tensor(rollouts.env_steps, dtype=torch.float64))
        return {f"return/step_{k}": float(values.mean()) for k, values in enumerate(returns)}, int(env_steps)

    def _measured(self, rollouts: Rollouts) -> dict[str, float]:
        """Means over all tasks of what is measured in every phase, by tag."""
        phases = self.share.gather(moved(rollouts.phases, torch.device("cpu")))
        return {
            f"{tag}/step_{step}": float(values.mean())
            for step, phase in enumerate(phases)
            for tag, values in phase._asdict().items()
        }

    def evaluate(self, tasks: Sequence[Any], episodes: int, steps: int, seed: int) -> Rollouts:
        """Collect episodes and adapt in turn on given tasks, for any number of inner steps.

        Args:
            tasks: N held-out tasks: an array, a list, or a dictionary of arrays with one row per task.
            episodes: the number of episodes per task, before and after every step; each step adapts on the episodes
                before it.
            steps: the number of inner steps; step sizes beyond the trained steps are `later_lr_factor` times the last.
            seed: the seed of the noise.
        """
        tasks = listed(tasks, self.sampler.name)
        sampler = self._sampler(len(tasks), episodes)
        try:
            return self._collect(sampler, tasks, steps, seed)
        finally:
            sampler.close()

    def _collect(self, sampler: Sampler, tasks: Sequence[Any], steps: int, seed: int) -> Rollouts:
        keyed = partial(_generators, seed, Stream.EVALUATION, 1, range(len(tasks)))
        return self.adaptation.collect(sampler, tasks, keyed, steps)

    def adapt(
        self, env: EnvSource | None = None, task: Any = None, *, steps: int = 1, episodes: int = 20, seed: int = 0
    ) -> Adapted:
        """Adapt the meta-trained policy to one task; the meta-parameters do not change.

        Args:
            env: a registered gymnasium id, or a factory of environments, with the spaces of training; None stands for
                the run's own environment.
            task: the task, passed to the environment as in training. With None an environment keeps the task that it
                has; one that draws a task at every reset needs a task here, or every episode has another one.
            steps: the number of inner steps, 1 or more.
            episodes: the number of episodes, before adaptation and after every step; each step adapts on the episodes
                before it.
            seed: the seed of the noise.
        Raises:
            ValueError: there is neither an environment nor a task, a number is out of range, or the environment's
                spaces are not those of training.
        """
        if env is None and task is None:
            raise ValueError(
                "adapt needs a task of the run's environment, or an env with a task of its own; got neither"
            )
        check_count("steps", steps)
        check_count("episodes", episodes)
        sampler = self._sampler(1, episodes, env)
        try:
            self._check_same_spaces(sampler)
            rollouts = self._collect(sampler, [task], steps, seed)
            network = copy.deepcopy(self.adaptation.policy).cpu()
            policies = [
                AdaptedPolicy(
                    network,
                    {name: values[0].cpu().clone() for name, values in params.items()},
                    sampler.reader,
                    sampler.action_space,
                )
                for params in rollouts.params
            ]
        finally:
            sampler.close()
        gammas = self.learner.gammas_by_tensor(rollouts.start.gamma)
        returns = [float(episodes.returns().mean()) for episodes in rollouts.episodes]
        return Adapted(policies, returns, {name: float(g.mean()) for name, g in gammas.items()})

    def _check_same_spaces(self, sampler: Sampler) -> None:
        sees = self.adaptation.policy.trunk is not None
        found, trained = _spaces(sampler, sees), _spaces(self.sampler, sees)
        if found != trained:
            raise ValueError(
                f"{sampler.name} has {found}, but the policy was trained on {self.sampler.name}, with {trained}; "
                "adapt to an environment with the same spaces"
            )

    def held_out_tasks(self, count: int, seed: int) -> Any:
        """Draw tasks from the evaluation stream, which training does not use.

        Args:
            count: the number of tasks.
            seed: the seed of the stream.
        """
        return self.sampler.sample_tasks(count, generator(seed, Stream.EVALUATION, 0))

    def state_dict(self) -> dict[str, Any]:
        """Return the learner's meta-parameters, the outer update's state, and the number of environment steps."""
        outer = {"name": self.settings.outer, "state": self.outer.state_dict()}
        return {"learner": dict(self.learner.state_dict()), "outer": outer, "env_steps": self.env_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            CheckpointError: the state belongs to another environment, policy shape or method.
        """
        learned = renamed_since_0_1(state.get("learner", {}))
        if self.adaptation.policy.trunk is not None and not any(name.startswith("network.trunk.") for name in learned):
            raise CheckpointError(
                "the state is one of a policy that reads pictures by fully connected layers alone, as all did in "
                "version 0.1; load it with PolicyNetwork(trunk='mlp')"
            )
        load_into(self.learner, learned, "environment, policy or method")
        # As an update leaves them, in one vector (`trpo.TrustRegionUpdate`): elsewhere in memory, small products may
        # round otherwise, and the run would go on as another.
        parameters = self.learner.meta_parameters()
        vector_to_parameters(parameters_to_vector(parameters).detach().clone(), parameters)
        # Version 0.1 had the trust region alone, without a state.
        outer = state.get("outer", {"name": "trust-region", "state": {}})
        if outer["name"] != self.settings.outer:
            raise CheckpointError(
                f"the state is one of outer={outer['name']!r}, but the run has {self.settings.outer!r}; load it with "
                "the settings that it was saved with"
            )
        self.outer.load_state_dict(outer["state"])
        self.env_steps = state["env_steps"]

    def close(self) -> None:
        """Close environments and threads."""
        self.sampler.close()
        self.adaptation.shards.close()

    def _action_noise(self) -> dict[str, float]:
        log_std = self.learner.theta.get("log_std")
        return {} if log_std is None else {"policy/std": float(log_std.detach().exp().mean())}


def _spaces(sampler: Sampler, sees: bool) -> str:
    """The sizes that a policy must fit, in words; of one that sees, the shape and the kind of numbers."""
    size = sampler.action_size
    actions = f"{size} Discrete actions" if sampler.discrete else f"Box actions of size {size}"
    if sees:
        return f"observations of shape {sampler.observation_shape}, {sampler.reader.flat.dtype}, and {actions}"
    return f"observations of size {sampler.observation_size} and {actions}"


def _learner(settings: MetaRLSettings, sampler: Sampler) -> MetaLearner:
    """A new policy with its meta-parameters."""
    method, two_sigmas = named(settings.method), settings.method == "maml-two-sigmas"
    if sampler.discrete and settings.initial_std_gamma is not None:
        raise ValueError(
            f"initial_std_gamma attenuates the action noise σ of Box actions; {sampler.name} has Discrete actions: "
            + ("choose a method other than maml-two-sigmas" if two_sigmas else "leave it None")
            + f", got {settings.initial_std_gamma}"
        )
    policy = policy_for(settings.policy, sampler, torch_generator(settings.seed, Stream.INIT))
    attenuation = Attenuation(conditioning="none") if two_sigmas else settings.attenuation

    def attenuated(name: str) -> bool:
        if name in policy.logarithmic:
            return settings.initial_std_gamma is not None
        return not two_sigmas

    return meta_learner(
        policy,
        attenuation if method.attenuates else None,
        settings.inner,
        attenuated=attenuated,
        logarithmic=policy.logarithmic,
        initial_gammas={} if settings.initial_std_gamma is None else {"log_std": settings.initial_std_gamma},
        gradient_at_init=settings.gradient.inner_data == "gradient_at_init",
        generator=torch_generator(settings.seed, Stream.INIT, 1),
    )


def _outer(settings: MetaRLSettings, learner: MetaLearner) -> OuterUpdate:
    """The meta-update that the settings choose."""
    if settings.outer == "trust-region":
        return TrustRegionUpdate(settings.region)
    if settings.outer == "vpg":
        return PolicyGradientUpdate(learner.meta_parameters(), settings.vanilla)
    weight = settings.clipped.inner_kl_weight if settings.outer == "promp" else 0.0
    clipped = dataclasses.replace(settings.clipped, inner_kl_weight=weight)
    return ClippedUpdate(learner.meta_parameters(), clipped, settings.inner.inner_steps)


def _generators(seed: int, stream: Stream, key: int, tasks: range, phase: int) -> list[np.random.Generator]:
    return [generator(seed, stream, key, task, phase) for task in tasks]
