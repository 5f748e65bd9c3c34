"""What the reinforcement learning launchers share: a run's experiment, its evaluation and its pictures."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

import numpy as np
import torch
from matplotlib.figure import Figure

from metarl_l2f.diagnostics import collapse_warnings, gap_warning
from metarl_l2f.launchers import run
from metarl_l2f.launchers.run import (
    checkpoint_of,
    draw,
    histograms_of,
    pictures_of,
    placed,
    read_config,
    read_state,
    warns_once,
)
from metarl_l2f.methods import label_of
from metarl_l2f.parallel import devices
from metarl_l2f.parallel.ranks import Group
from metarl_l2f.parallel.shards import TASKS_PER_SHARD
from metarl_l2f.reports.curves import learning_curve
from metarl_l2f.reports.evaluation import Evaluation
from metarl_l2f.rl.experiment import MetaRL
from metarl_l2f.rl.meta_trpo import Rollouts
from metarl_l2f.rl.settings import MetaRLSettings, Method
from metarl_l2f.rl.workers import WorkerError
from metarl_l2f.training.checkpoint import load as load_checkpoint
from metarl_l2f.training.config import from_json, to_json
from metarl_l2f.training.metrics import Shown
from metarl_l2f.training.run_folder import CONFIG_FILE

USER_ERRORS: tuple[type[Exception], ...] = (*run.USER_ERRORS, WorkerError)
"""What ends a program with one clear message instead of a traceback."""


@dataclass(frozen=True)
class RunOptions(run.DeviceOptions):
    """Options of a run that every reinforcement learning launcher has; each adds its environment's."""

    settings: MetaRLSettings = field(default_factory=MetaRLSettings)
    """What is learned, and how."""
    tasks_per_shard: int = TASKS_PER_SHARD
    """Tasks differentiated together; under torchrun every rank takes whole shards of them. Rounding differs."""
    inspect_every: int = 100
    """Meta-iterations between two looks at conflict, attenuation and the landscape of the inner loss on the validation
    tasks, with pictures in TensorBoard; 0 looks never."""

    domain: ClassVar[str | None] = None
    """What `MetaRLSettings.for_domain` calls the domain."""

    def with_method(self, method: str) -> Self:
        if method not in get_args(Method):
            return self
        return dataclasses.replace(self, settings=MetaRLSettings.for_domain(self.domain, method))

    def environment(self) -> tuple[str, dict[str, Any]]:
        """The environment's id and arguments."""
        raise NotImplementedError

    def pictures(self, rollouts: Rollouts, tasks: Any, width: float | None = None) -> dict[str, Figure]:
        """The domain's own pictures of rollouts on tasks, by name, where it has any; their width in inches."""
        return {}


def load_run(folder: Path, checkpoint: str = "best", threads: int = 1, later_lr_factor: float | None = None) -> MetaRL:
    """Rebuild a trained experiment from its folder: its launcher's environment, never one that a file names.

    gymnasium imports what an id says before a colon, and environments may read files that an argument names.

    Args:
        folder: of the run.
        checkpoint: `best` by validation (the latest where none was validated yet), or `latest`.
        threads: CPU threads.
        later_lr_factor: of steps beyond the trained ones; by default as in training.
    Raises:
        ValueError: no run, one that learned from labels instead of rewards, an environment that is not its launcher's,
            a damaged checkpoint, or one that does not fit the configuration.
    """
    config = read_config(folder)
    options = _stored_options(folder, config)
    env, arguments = options.environment()
    trained_on = {"id": env, "arguments": to_json(arguments)}
    if config["environment"] != trained_on:
        raise ValueError(
            f"{folder / CONFIG_FILE} says that the run was trained on {config['environment']}, but "
            f"{config['launcher']}.py with the options there trains on {trained_on}; put back what was there"
        )
    experiment = MetaRL(env, options.settings, arguments, threads=threads)
    experiment.load_state_dict(read_state(checkpoint_of(folder, checkpoint), "environment", trained_on))
    if later_lr_factor is not None:
        experiment.learner.inner = dataclasses.replace(experiment.learner.inner, later_lr_factor=later_lr_factor)
    return experiment


def _stored_options(folder: Path, config: Mapping[str, Any]) -> RunOptions:
    """The options of a run; those that another version of its launcher had are left out."""
    from metarl_l2f.launchers.kinds import REINFORCEMENT  # Here, for that imports every launcher, and they this file.

    launcher = config.get("launcher")
    if "environment" not in config or launcher not in REINFORCEMENT:
        names = ", ".join(REINFORCEMENT)
        raise ValueError(f"{folder} is a run of {launcher}.py; give one of reinforcement learning ({names})")
    kind = REINFORCEMENT[launcher]
    known = {field.name for field in dataclasses.fields(kind)}
    stored: RunOptions = from_json(kind, {name: value for name, value in config["options"].items() if name in known})
    return stored


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
        "later_lr_factor": experiment.learner.inner.later_lr_factor,
    }
    return Evaluation(mean_returns(rollouts), protocol, model, held_out), rollouts, held_out


def mean_returns(rollouts: Rollouts) -> np.ndarray:
    """Of every task, the mean over its episodes before adaptation and after every step: (N, k + 1)."""
    return torch.stack([e.returns().mean(1) for e in rollouts.episodes], 1).double().numpy()


def inspector(experiment: MetaRL, options: RunOptions) -> Callable[[Mapping[str, float]], Shown]:
    """Looks at a run in training through its validation tasks: diagnostics, γ, pictures, and warnings."""
    warn, steps = warns_once(), experiment.settings.inner.inner_steps

    def inspect(metrics: Mapping[str, float]) -> Shown:
        rollouts, tasks = experiment.validation_rollouts()
        found = experiment.meta.inspect(rollouts)
        share = rollouts.share
        rollouts = rollouts._replace(episodes=share.gather(rollouts.episodes))
        gamma = share.gather(rollouts.start.gamma)
        if not share.group.first:
            return Shown({}, {}, {})
        before, after = (float(rollouts.episodes[step].returns().mean()) for step in (0, steps))
        gap = gap_warning(metrics[f"return/step_{steps}"], before, after)
        warn([*collapse_warnings(experiment.learner, gamma), gap])
        pictures = options.pictures(rollouts, tasks) | pictures_of(found, label_of(experiment.settings.method))
        return Shown(found.metrics(), histograms_of(found.gamma), pictures)

    return inspect


def launch(name: str, options: RunOptions, group: Group) -> int:
    """Train, or continue, one run; then evaluate it on held-out tasks and draw its pictures.

    Args:
        name: the launcher's, for the default folder and the command that resumes.
        options: parsed.
        group: the processes that share the run.
    Returns:
        The exit status.
    """
    settings = options.settings
    options, folder = placed(options, group, name, settings.method, settings.seed)
    env, arguments = options.environment()
    device = devices.prepare(options.device, options.tf32)
    experiment = MetaRL(
        env,
        settings,
        arguments,
        threads=options.threads,
        device=device,
        group=group,
        tasks_per_shard=options.tasks_per_shard,
    )
    config = {"environment": {"id": env, "arguments": arguments}}
    print(f"{label_of(settings.method)} on {env}, seed {settings.seed}; writing to {folder}")
    score = f"return/step_{settings.inner.inner_steps}"
    try:
        return run.train_and_report(
            name,
            options,
            experiment,
            folder,
            config,
            lambda: report(experiment, folder, options),
            group,
            validation_key=f"validation/{score}",
            progress_key=score,
            inspect=inspector(experiment, options) if options.inspect_every else None,
            inspect_every=options.inspect_every or 1,
        )
    finally:
        experiment.close()


def report(experiment: MetaRL, folder: Path, options: RunOptions) -> None:
    """Draw the learning curve; evaluate the best checkpoint, write what came out, and print the table."""
    draw(folder, lambda: {"learning_curve": learning_curve([folder])})
    if not options.evaluation_tasks:
        return
    experiment.load_state_dict(load_checkpoint(checkpoint_of(folder, "best"))["experiment"])
    settings = options.settings
    evaluation, rollouts, tasks = evaluate(
        experiment, options.evaluation_tasks, settings.episodes_per_task, options.evaluation_steps, settings.seed
    )
    evaluation.save(folder / "evaluation.json")
    draw(folder, lambda: options.pictures(rollouts, tasks))
    draw(folder, lambda: pictures_of(experiment.meta.inspect(rollouts), label_of(settings.method)))
    print(evaluation.table())
