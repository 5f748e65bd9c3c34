"""Evaluate a trained run on held-out tasks: returns, errors or accuracies after 0 to k gradient steps."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from metarl_l2f.evaluation import Evaluation
from metarl_l2f.launchers import image_classification, leo, meta_rl, prototypes, sinusoid, supervised
from metarl_l2f.launchers.meta_rl import USER_ERRORS
from metarl_l2f.launchers.run import fail, quiet_machine, read_config

SUPERVISED: dict[str, type[supervised.RunOptions]] = {
    "sinusoid": sinusoid.Sinusoid,
    "image_classification": image_classification.ImageClassification,
}
NOT_HERE = (leo.NAME, prototypes.NAME)
"""Launchers whose runs are evaluated at their own end only."""


@dataclass(frozen=True)
class Options:
    """Scores of a trained run on held-out tasks, before adaptation and after each inner step, with 95 % intervals.

    In reinforcement learning, every step adapts on the episodes before it. Tasks and noise depend on the seed alone, so
    two runs evaluated with one seed meet the same tasks and can be compared pair by pair.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    tasks: int | None = None
    """Held-out tasks, from their own random stream; by default 40 in reinforcement learning, else as in the run."""
    episodes: int = 20
    """Reinforcement learning: episodes per task, before adaptation and after every step."""
    steps: int | None = None
    """Inner gradient steps; by default 3 in reinforcement learning, else as in the run."""
    later_lr_factor: float | None = None
    """Step size of steps beyond the trained ones, relative to the last trained one; by default as in training."""
    seed: int | None = None
    """Seed of tasks and noise; by default the run's own."""
    checkpoint: Literal["best", "latest"] = "best"
    """The best by validation, or the latest."""
    out: Path | None = None
    """Where to write the json; by default evaluation.json in the run's folder."""
    threads: int = 1
    """CPU threads; changes no number."""

    def __post_init__(self) -> None:
        for name in ("tasks", "episodes", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")


def evaluated(options: Options) -> Evaluation:
    """The run's scores.

    Raises:
        ValueError: the folder holds no run that can be evaluated here.
    """
    launcher = read_config(options.run)["launcher"]
    if launcher in NOT_HERE:
        raise ValueError(f"{options.run} is a run of {launcher}.py, which evaluates at its end only")
    if launcher in SUPERVISED:
        chosen, learner = supervised.load_run(
            SUPERVISED[launcher], options.run, options.checkpoint, options.threads, options.later_lr_factor
        )
        asked: dict[str, Any] = {"evaluation_tasks": options.tasks, "evaluation_steps": options.steps}
        chosen = dataclasses.replace(chosen, **{name: value for name, value in asked.items() if value is not None})
        seed = chosen.settings.seed if options.seed is None else options.seed
        return chosen.evaluate(learner, options.run, seed)
    experiment = meta_rl.load_run(options.run, options.checkpoint, options.threads, options.later_lr_factor)
    seed = experiment.settings.seed if options.seed is None else options.seed
    return meta_rl.evaluate(experiment, options.tasks or 40, options.episodes, options.steps or 3, seed)[0]


def main(arguments: list[str] | None = None) -> int:
    """Parse, evaluate, print and save."""
    try:
        options = tyro.cli(Options, args=arguments)
        quiet_machine()
        evaluation = evaluated(options)
        path = options.out or options.run / "evaluation.json"
        evaluation.save(path)
        print(evaluation.table())
        print(f"wrote {path}")
    except USER_ERRORS as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
