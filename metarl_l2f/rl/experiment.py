"""A meta-RL run on one environment: settings, and the object that iterates, validates, and evaluates.

Everything random is keyed by (seed, stream, iteration, task, phase), so `iterate(i)` depends on nothing but the
learner's state and i: runs resume exactly, and two methods with one seed meet the same tasks and the same noise.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ..core import L2F, Attenuation, InnerLoop
from ..diagnostics import degree_of_conflict
from ..networks import Activation, GaussianPolicy
from ..training.checkpoint import CheckpointError
from ..training.seeding import Stream, generator, torch_generator
from .meta_trpo import MetaTRPO, PolicyGradient, Rollouts
from .sampling import EnvSource, Sampler, vectorise
from .trpo import TrustRegion

logger = logging.getLogger(__name__)

Method = Literal["l2f", "maml"]


@dataclass(frozen=True)
class PolicyNetwork:
    """The Gaussian policy."""

    hidden_sizes: tuple[int, ...] = (100, 100)
    """Units of the hidden layers."""
    activation: Activation = "relu"
    """Between the layers."""
    initial_std: float = 1.0
    """Where the action noise σ starts; it is learned."""


@dataclass(frozen=True)
class MetaRLSettings:
    """Everything that changes the numbers of a meta-RL run."""

    method: Method = "l2f"
    """`l2f`, or `maml`: the same code without attenuation."""
    seed: int = 1
    """Seed of everything random."""
    tasks_per_batch: int = 20
    """Tasks N per meta-iteration."""
    episodes_per_task: int = 20
    """Episodes B per task, before and again after every inner step."""
    horizon: int = 100
    """Steps T after which an episode is cut."""
    policy: PolicyNetwork = field(default_factory=PolicyNetwork)
    """The policy network."""
    attenuation: Attenuation = field(default_factory=lambda: Attenuation(initial_gamma=0.9))
    """How L2F attenuates; ignored by MAML."""
    initial_std_gamma: float | None = None
    """Attenuate the action noise σ too (log σ + log γ), starting from this γ in (0, 1), so that a policy may explore
    loudly before adaptation and act quietly after; None keeps σ out of it. Ignored by MAML."""
    inner: InnerLoop = field(default_factory=InnerLoop)
    """The inner loop."""
    gradient: PolicyGradient = field(default_factory=PolicyGradient)
    """The policy gradients."""
    region: TrustRegion = field(default_factory=TrustRegion)
    """The trust region of the meta-update."""

    def __post_init__(self) -> None:
        for name in ("tasks_per_batch", "episodes_per_task", "horizon"):
            if getattr(self, name) < 1:
                unit = "steps" if name == "horizon" else name.split("_")[0]
                raise ValueError(f"{name} must be a positive number of {unit}, got {getattr(self, name)}")
        if self.method not in ("l2f", "maml"):
            raise ValueError(f"method must be 'l2f' or 'maml', got {self.method!r}")


class MetaRL:
    """Meta-trains a policy on one environment's tasks.

    Args:
        env: a registered gymnasium id, or a factory of environments. The environment takes its task through
            `reset(options={"task": task})` and draws tasks by `sample_tasks(number, generator)`.
        settings: everything that changes the numbers.
        env_kwargs: passed to the environment.
        threads: CPU threads of the meta-update; changes no number.
    """

    def __init__(
        self,
        env: EnvSource,
        settings: MetaRLSettings | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        threads: int = 1,
    ) -> None:
        self.env, self.env_kwargs = env, dict(env_kwargs or {})
        self.settings = settings = settings or MetaRLSettings()
        self.env_steps = 0
        sampler = self._sampler(settings.tasks_per_batch, settings.episodes_per_task)
        policy = GaussianPolicy(
            sampler.observation_size,
            sampler.action_size,
            settings.policy.hidden_sizes,
            settings.policy.activation,
            settings.policy.initial_std,
            torch_generator(settings.seed, Stream.INIT),
        )
        self.learner = L2F(
            policy,
            settings.attenuation if settings.method == "l2f" else None,
            settings.inner,
            attenuated=lambda name: settings.initial_std_gamma is not None or name != "log_std",
            logarithmic=["log_std"],
            initial_gammas={} if settings.initial_std_gamma is None else {"log_std": settings.initial_std_gamma},
            generator=torch_generator(settings.seed, Stream.INIT, 1),
        )
        self.meta = MetaTRPO(self.learner, sampler, settings.gradient, settings.region, threads)

    def _sampler(self, tasks: int, episodes: int) -> Sampler:
        envs = vectorise(self.env, tasks * episodes, **self.env_kwargs)
        return Sampler(envs, tasks, episodes, self.settings.horizon)

    def iterate(self, iteration: int) -> dict[str, float]:
        """One meta-iteration; returns its metrics (`docs/metrics.md`)."""
        begin = time.perf_counter()
        seed, count = self.settings.seed, self.settings.tasks_per_batch
        tasks = self.meta.sampler.sample_tasks(count, generator(seed, Stream.TASKS, iteration))
        keyed = partial(_generators, seed, Stream.POLICY, iteration, count)
        rollouts = self.meta.collect(tasks, keyed, self.settings.inner.inner_steps)
        sampled = time.perf_counter()
        log = self.meta.update(rollouts.data)
        updated = time.perf_counter()
        if not log.accepted:
            logger.warning("iteration %d: the update was rejected: %s", iteration, log.reason)
        self.env_steps += rollouts.env_steps
        return {
            "env_steps": self.env_steps,
            **_returns(rollouts),
            "surrogate": log.surrogate_before,
            "surrogate/change": log.surrogate_after - log.surrogate_before,
            "kl": log.kl,
            "cg_residual": log.cg_residual,
            "line_search/backtracks": log.backtracks,
            "line_search/accepted": float(log.accepted),
            "policy/std": float(self.learner.theta["log_std"].detach().exp().mean()),
            **self._learned_step_sizes(),
            **self._gammas(rollouts.start.gamma),
            **{f"conflict/{layer}": angle for layer, angle in degree_of_conflict(rollouts.start.gradients).items()},
            "time/iteration": updated - begin,
            "time/sampling": sampled - begin,
            "time/update": updated - sampled,
        }

    def validate(self, iteration: int) -> dict[str, float]:
        """Returns after 0 … k inner steps on the run's validation tasks, the same at every call."""
        seed, count = self.settings.seed, self.settings.tasks_per_batch
        tasks = self.meta.sampler.sample_tasks(count, generator(seed, Stream.VALIDATION, 0))
        keyed = partial(_generators, seed, Stream.VALIDATION, 1, count)
        rollouts = self.meta.collect(tasks, keyed, self.settings.inner.inner_steps)
        return {f"validation/{tag}": value for tag, value in _returns(rollouts).items()}

    def evaluate(self, tasks: Sequence[Any], episodes: int, steps: int, seed: int) -> Rollouts:
        """Roll out, adapt, roll out … on given tasks, for any number of inner steps, without learning.

        Args:
            tasks: held-out tasks, N of them.
            episodes: per task, before and after every step; each step adapts on the episodes before it.
            steps: inner steps; step sizes beyond the trained steps are `later_lr_factor` times the last.
            seed: of the noise.
        """
        sampler = self._sampler(len(tasks), episodes)
        try:
            meta = MetaTRPO(self.learner, sampler, self.settings.gradient, self.settings.region)
            meta.shards = self.meta.shards
            return meta.collect(tasks, partial(_generators, seed, Stream.EVALUATION, 1, len(tasks)), steps)
        finally:
            sampler.close()

    def held_out_tasks(self, count: int, seed: int) -> Any:
        """Tasks from the evaluation stream, which training never draws from."""
        return self.meta.sampler.sample_tasks(count, generator(seed, Stream.EVALUATION, 0))

    def state_dict(self) -> dict[str, Any]:
        """The learner's meta-parameters and the count of environment steps."""
        return {"learner": dict(self.learner.state_dict()), "env_steps": self.env_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            CheckpointError: the state belongs to another environment, policy shape or method.
        """
        own = {name: tuple(value.shape) for name, value in self.learner.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in state.get("learner", {}).items()}
        if own != found:
            differing = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
            raise CheckpointError(
                "the checkpoint is of another environment, policy or method: "
                + "; ".join(f"{n} is {found.get(n, 'missing')}, expected {own.get(n, 'none')}" for n in differing)
                + ". Load it with the settings it was trained with"
            )
        self.learner.load_state_dict(state["learner"])
        self.env_steps = state["env_steps"]

    def close(self) -> None:
        """Close environments and threads."""
        self.meta.sampler.close()
        self.meta.shards.close()

    def _gammas(self, gamma: Tensor) -> dict[str, float]:
        if self.learner.attenuation is None:
            return {}
        statistics = {}
        for name, columns in self.learner.gammas_by_tensor(gamma).items():
            statistics[f"gamma/{name}/mean"] = float(columns.mean())
            statistics[f"gamma/{name}/std"] = float(columns.std(0, unbiased=False).mean())
        return statistics

    def _learned_step_sizes(self) -> dict[str, float]:
        if not self.settings.inner.learn_inner_lr:
            return {}
        sizes = self.learner.step_sizes.detach()
        return {
            f"step_size/{name}/{step}": float(sizes[step, column])
            for column, name in enumerate(self.learner.adapted_names)
            for step in range(len(sizes))
        }


def _returns(rollouts: Rollouts) -> dict[str, float]:
    return {f"return/step_{k}": float(e.returns().mean()) for k, e in enumerate(rollouts.episodes)}


def _generators(seed: int, stream: Stream, key: int, tasks: int, phase: int) -> list[np.random.Generator]:
    return [generator(seed, stream, key, task, phase) for task in range(tasks)]
