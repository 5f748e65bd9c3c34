"""What the reinforcement learning launchers share: options of a run, training with resume, evaluation at the end."""

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro

from metarl_l2f.evaluation import Evaluation
from metarl_l2f.figures import learning_curve, save
from metarl_l2f.rl.experiment import MetaRL, MetaRLSettings
from metarl_l2f.rl.meta_trpo import Rollouts
from metarl_l2f.rl.vectorise import WorkerError
from metarl_l2f.training.checkpoint import CheckpointError
from metarl_l2f.training.checkpoint import load as load_checkpoint
from metarl_l2f.training.config import from_json, provenance, to_json
from metarl_l2f.training.loop import BEST_FILE, CHECKPOINT_FILE, CONFIG_FILE, train
from metarl_l2f.training.memory import keep_freed_memory

USER_ERRORS = (ValueError, OSError, WorkerError)
"""What ends a program with one clear message instead of a traceback."""
Options = TypeVar("Options", bound="RunOptions")
MAY_CHANGE_ON_RESUME = {
    *("iterations", "threads", "resume", "log_dir", "checkpoint_every", "evaluation_tasks", "evaluation_steps"),
}


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that every reinforcement learning launcher has; each launcher adds its environment's."""

    settings: MetaRLSettings = field(default_factory=MetaRLSettings)
    """What is learned, and how."""
    iterations: int = 500
    """Meta-iterations in all; may be raised when resuming."""
    log_dir: Path | None = None
    """Folder of the run; by default runs/ENVIRONMENT/TIME_METHOD_SEED."""
    resume: Path | None = None
    """Folder of a run to continue, exactly as if it had never stopped. Its own options are the defaults."""
    threads: int = os.cpu_count() or 1
    """CPU threads; changes no number."""
    validate_every: int = 10
    """Meta-iterations between validations; best.pt keeps the best."""
    checkpoint_every: int = 1
    """Meta-iterations between checkpoints."""
    evaluation_tasks: int = 40
    """Held-out tasks of the evaluation at the end; 0 skips it."""
    evaluation_steps: int = 3
    """Inner steps of the evaluation at the end."""

    def environment(self) -> tuple[str, dict[str, Any]]:
        """The environment's id and arguments."""
        raise NotImplementedError


def fail(message: object) -> int:
    """Print one clear error; returns the exit status."""
    print(f"error: {message}", file=sys.stderr)
    return 2


def parse(default: Options, arguments: list[str] | None = None) -> Options:
    """Read the command line; with --resume the stored run's options are the defaults and what defines it stays.

    Raises:
        ValueError: an option that defines the run was changed on resume.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    resumed = _resumed_folder(arguments)
    if resumed is not None:
        default = from_json(type(default), read_config(resumed)["options"])
    options = tyro.cli(type(default), default=default, args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    if resumed is not None:
        options = dataclasses.replace(options, log_dir=resumed, resume=resumed)
        before, now = to_json(default), to_json(options)
        changed = sorted(name for name in before if before[name] != now[name] and name not in MAY_CHANGE_ON_RESUME)
        if changed:
            raise ValueError(
                f"{', '.join(changed)} cannot change when {resumed} is resumed: it would be another run; drop the "
                "flags, or start a new run without --resume"
            )
    return options


def _resumed_folder(arguments: list[str]) -> Path | None:
    for number, argument in enumerate(arguments):
        if argument.startswith("--resume="):
            return Path(argument.partition("=")[2])
        if argument == "--resume" and number + 1 < len(arguments):
            return Path(arguments[number + 1])
    return None


def read_config(run: Path) -> dict[str, Any]:
    """A run's config.json.

    Raises:
        ValueError: the folder holds no run, or its configuration is damaged.
    """
    path = Path(run) / CONFIG_FILE
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{run} holds no run: there is no {path}; give the folder that a launcher wrote") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore it, or start a new run") from error


def read_state(checkpoint: Path, environment: dict[str, Any]) -> dict[str, Any]:
    """An experiment's state from a checkpoint that was trained on this environment.

    Raises:
        CheckpointError: it is missing, damaged, no experiment's, or of another environment.
    """
    content = load_checkpoint(checkpoint)
    try:
        trained_on, state = content["config"]["environment"], content["experiment"]
    except (KeyError, TypeError):
        raise CheckpointError(f"{checkpoint} holds no meta-RL experiment; give the folder of a run") from None
    if trained_on != environment:
        raise CheckpointError(
            f"{checkpoint} was trained on {trained_on}, but the run is on {environment}; put the run's own "
            "checkpoint back"
        )
    return state


def load_run(run: Path, checkpoint: str = "best", threads: int = 1, later_lr_factor: float | None = None) -> MetaRL:
    """Rebuild a trained experiment from its folder.

    Args:
        run: the folder.
        checkpoint: `best` by validation (the latest where none was validated yet), or `latest`.
        threads: CPU threads.
        later_lr_factor: of steps beyond the trained ones; by default as in training.
    Raises:
        ValueError: no run, a damaged checkpoint, or one that does not fit the configuration.
    """
    config = read_config(run)
    settings = from_json(MetaRLSettings, config["options"]["settings"])
    experiment = MetaRL(config["environment"]["id"], settings, config["environment"]["arguments"], threads=threads)
    best = Path(run) / BEST_FILE
    path = best if checkpoint == "best" and best.exists() else Path(run) / CHECKPOINT_FILE
    experiment.load_state_dict(read_state(path, config["environment"]))
    if later_lr_factor is not None:
        experiment.learner.inner = dataclasses.replace(experiment.learner.inner, later_lr_factor=later_lr_factor)
    return experiment


def evaluate(experiment: MetaRL, tasks: int, episodes: int, steps: int, seed: int) -> tuple[Evaluation, Rollouts, Any]:
    """Returns on held-out tasks after 0 … steps inner steps, the rollouts behind them, and the tasks."""
    held_out = experiment.held_out_tasks(tasks, seed)
    rollouts = experiment.evaluate(held_out, episodes, steps, seed)
    scores = torch.stack([e.returns().mean(1) for e in rollouts.episodes], 1).double().numpy()
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
    return Evaluation(scores, protocol, model, held_out), rollouts, held_out


Draw = Callable[[Rollouts, Any, Path], None]
"""Draws a domain's own pictures, from the evaluation's rollouts and tasks, into the run's folder."""


def draws_nothing(rollouts: Rollouts, tasks: Any, folder: Path) -> None:
    """For domains without a picture of their own."""


def launch(name: str, options: RunOptions, draw: Draw = draws_nothing) -> int:
    """Train, or continue, one run; then evaluate it on held-out tasks and draw its pictures.

    Args:
        name: the launcher's, for the default folder and the command that resumes.
        options: parsed.
        draw: the domain's own pictures, if it has any.
    Returns:
        The exit status.
    """
    settings = options.settings
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = options.log_dir or Path("runs") / name / f"{stamp}_{settings.method}_seed{settings.seed}"
    # Threads work on whole tasks (rl/meta_trpo.py); more of them inside an operation would fight those.
    torch.set_num_threads(1)
    keep_freed_memory()
    env, arguments = options.environment()
    experiment = MetaRL(env, settings, arguments, threads=options.threads)
    config = {"launcher": name, "environment": {"id": env, "arguments": arguments}, "options": to_json(options)}
    if options.resume is not None and (folder / CHECKPOINT_FILE).exists():
        read_state(folder / CHECKPOINT_FILE, config["environment"])
    print(f"{settings.method.upper()} on {env}, seed {settings.seed}; writing to {folder}")
    begin = time.monotonic()
    try:
        outcome = train(
            experiment,
            folder,
            iterations=options.iterations,
            config=config | provenance(),
            resume=options.resume is not None,
            validate_every=options.validate_every,
            checkpoint_every=options.checkpoint_every,
            validation_key=f"validation/return/step_{settings.inner.inner_steps}",
            progress_key=f"return/step_{settings.inner.inner_steps}",
        )
        if outcome.interrupted is not None:
            print(
                f"stopped after iteration {outcome.iteration} by {signal.Signals(outcome.interrupted).name}; "
                f"go on with:\n  python launchers/{name}.py --resume {folder}"
            )
            return 128 + outcome.interrupted
        print(f"iteration {outcome.iteration} done, {time.monotonic() - begin:.0f} s")
        save(learning_curve([folder]), folder / "learning_curve.png")
        if options.evaluation_tasks:
            report(experiment, folder, options, draw)
    finally:
        experiment.close()
    return 0


def report(experiment: MetaRL, folder: Path, options: RunOptions, draw: Draw) -> None:
    """Evaluate the best checkpoint, write evaluation.json and the pictures, and print the table."""
    experiment.load_state_dict(load_checkpoint(folder / BEST_FILE)["experiment"])
    settings = options.settings
    evaluation, rollouts, tasks = evaluate(
        experiment, options.evaluation_tasks, settings.episodes_per_task, options.evaluation_steps, settings.seed
    )
    evaluation.save(folder / "evaluation.json")
    draw(rollouts, tasks, folder)
    print(evaluation.table())
    print("wrote " + ", ".join(sorted(str(path) for path in folder.glob("*.[jp][sn][og]*"))))
