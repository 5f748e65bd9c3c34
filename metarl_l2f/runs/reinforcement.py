"""Runs of reinforcement learning: options of their launchers, their evaluation, and looks at their policies."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..envs import domain_of
from ..envs.base import Domain
from ..inspection import Inspection
from ..methods import label_of
from ..parallel import devices
from ..parallel.ranks import Group
from ..parallel.shards import TASKS_PER_SHARD
from ..reports.domains import domain_captions, domain_pictures
from ..reports.evaluation import Evaluation
from ..rl.adaptation import Rollouts
from ..rl.experiment import MetaRL
from ..rl.settings import DOMAIN_OF, MetaRLSettings
from .load import checked_kind, load_run
from .options import DeviceOptions, Judged


@dataclass(frozen=True)
class PolicyOptions(DeviceOptions):
    """Options that every run of reinforcement learning has; a launcher adds its environment's."""

    settings: MetaRLSettings = field(default_factory=MetaRLSettings)
    """Settings of the method and of its training."""
    tasks_per_shard: int = TASKS_PER_SHARD
    """Tasks differentiated together, with convolutions on a CPU one at a time; under torchrun every rank takes whole
    shards of them. Rounding differs."""
    compile: bool = False
    """Trace what a meta-update computes, and replay it: seconds to start, then updates take about half the time on a
    CPU; rounding differs. On a CUDA device it has no effect."""
    inspect_every: int = 100
    """Meta-iterations between two looks at conflict, attenuation and the landscape of the inner loss on the validation
    tasks, with pictures in TensorBoard; 0 looks never."""

    kind: ClassVar[str] = "reinforcement learning"
    inspectable: ClassVar[bool] = True
    evaluated_with: ClassVar[tuple[str, ...]] = ("episodes", "steps", "later_lr_factor")

    def environment(self) -> tuple[str, dict[str, Any]]:
        """The environment's id and arguments."""
        raise NotImplementedError

    @property
    def domain(self) -> Domain:
        """The environment's domain, which says how its tasks are drawn."""
        env, arguments = self.environment()
        return domain_of(env, **arguments)

    def with_method(self, method: str) -> Self:
        domain = DOMAIN_OF.get(self.environment()[0])  # None: nobody has tuned anything there.
        return dataclasses.replace(self, settings=MetaRLSettings.for_domain(domain, method))

    def title(self) -> str:
        return f"{label_of(self.method)} on {self.environment()[0]}"

    def trained_on(self) -> dict[str, Any]:
        env, arguments = self.environment()
        return {"environment": {"id": env, "arguments": arguments}}

    def experiment(self, group: Group | None = None) -> MetaRL:
        env, arguments = self.environment()
        return MetaRL(
            env,
            self.settings,
            arguments,
            threads=self.threads,
            device=devices.prepare(self.device, self.tf32),
            group=group,
            tasks_per_shard=self.tasks_per_shard,
            compiled=self.compile,
        )

    def judged(self) -> Judged:
        return Judged("return", self.settings.inner.inner_steps, curve="return")

    def evaluate(
        self, experiment: MetaRL, folder: Path, seed: int, episodes: int | None = None
    ) -> tuple[Evaluation, "PolicyLook"]:
        episodes = episodes or self.settings.episodes_per_task
        evaluation, rollouts, tasks = evaluate(experiment, self.evaluation_tasks, episodes, self.evaluation_steps, seed)
        return evaluation, PolicyLook(self.domain, experiment, rollouts, tasks)

    def usual_evaluation(self) -> Self:
        # Its launcher's, not the run's, so that runs that were evaluated differently are compared alike.
        usual = type(self)()
        return dataclasses.replace(
            self, evaluation_tasks=usual.evaluation_tasks, evaluation_steps=usual.evaluation_steps
        )

    def look_at_validation(self, experiment: MetaRL) -> "PolicyLook":
        return PolicyLook(self.domain, experiment, *experiment.validation_rollouts())

    def look_at_held_out(self, experiment: MetaRL, tasks: int) -> "PolicyLook":
        held_out = experiment.held_out_tasks(tasks, self.seed)
        return PolicyLook(self.domain, experiment, _evaluated_as_trained(experiment, held_out), held_out)

    def captions(self) -> Mapping[str, str]:
        return domain_captions(self.domain)


class PolicyLook:
    """A policy on some tasks (`options.Look`).

    Args:
        domain: the environment's domain.
        experiment: trained, or in training.
        rollouts: episodes on this process's share of the tasks.
        tasks: all of them.
    """

    def __init__(self, domain: Domain, experiment: MetaRL, rollouts: Rollouts, tasks: Any) -> None:
        self._domain, self._experiment, self._rollouts, self._tasks = domain, experiment, rollouts, tasks
        self._episodes, self._gamma = rollouts.share.gather((rollouts.episodes, rollouts.start.gamma))

    def inspection(self) -> Inspection:
        return self._experiment.adaptation.inspect(self._rollouts)

    def gamma(self) -> Tensor:
        return self._gamma

    def ends(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        before, after = self._episodes[0], self._episodes[self._experiment.settings.inner.inner_steps]
        return float(before.returns().mean()), float(after.returns().mean())

    def score(self) -> float:
        rollouts = _evaluated_as_trained(self._experiment, self._tasks)
        return float(rollouts.episodes[-1].returns().mean())

    def pictures(self, width: float | None = None) -> dict[str, Figure]:
        return domain_pictures(self._domain, self._episodes, self._tasks, width)


def _evaluated_as_trained(experiment: MetaRL, tasks: Any) -> Rollouts:
    """Rollouts on given tasks with as many episodes and inner steps as in training."""
    settings = experiment.settings
    return experiment.evaluate(tasks, settings.episodes_per_task, settings.inner.inner_steps, settings.seed)


def evaluate(experiment: MetaRL, tasks: int, episodes: int, steps: int, seed: int) -> tuple[Evaluation, Rollouts, Any]:
    """Returns on held-out tasks after 0 … steps inner steps, the rollouts behind them, and the tasks."""
    held_out = experiment.held_out_tasks(tasks, seed)
    rollouts = experiment.evaluate(held_out, episodes, steps, seed)
    protocol = {
        "environment": experiment.env,
        "arguments": experiment.env_kwargs,
        "held_out_tasks": tasks,
        "episodes_per_task_and_step": episodes,
        "horizon": experiment.settings.horizon,
        "seed": seed,
    }
    model = {
        "method": experiment.settings.method,
        "training_seed": experiment.settings.seed,
        "env_steps_trained": experiment.env_steps,
        "inner_steps_trained": experiment.settings.inner.inner_steps,
        "later_lr_factor": experiment.settings.inner.later_lr_factor,
    }
    return Evaluation(mean_returns(rollouts), protocol, model, held_out), rollouts, held_out


def mean_returns(rollouts: Rollouts) -> np.ndarray:
    """Each task's mean return over its episodes, before adaptation and after every step: (N, k + 1)."""
    return torch.stack([e.returns().mean(1) for e in rollouts.episodes], 1).double().numpy()


def load_policy(
    run: Path, checkpoint: str = "best", threads: int = 1, later_lr_factor: float | None = None
) -> tuple[PolicyOptions, MetaRL]:
    """`load_run` of a run that must be of reinforcement learning.

    Raises:
        ValueError: it learned from labels instead of rewards, or cannot be loaded.
    """
    checked_kind(run, PolicyOptions)
    options, experiment = load_run(run, checkpoint, threads, later_lr_factor)
    assert isinstance(options, PolicyOptions)
    return options, experiment
