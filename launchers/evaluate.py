"""Evaluate a trained run on held-out tasks: returns after 0 to k gradient steps."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from metarl_l2f.launchers.meta_rl import USER_ERRORS, evaluate, load_run
from metarl_l2f.launchers.run import fail


@dataclass(frozen=True)
class Options:
    """Returns of a trained run on held-out tasks, before adaptation and after each inner step, with 95 % intervals.

    Every step adapts on the episodes before it. Tasks and noise depend on the seed alone, so two runs evaluated with
    one seed meet the same tasks and can be compared pair by pair.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    tasks: int = 40
    """Held-out tasks, from their own random stream."""
    episodes: int = 20
    """Episodes per task, before adaptation and after every step."""
    steps: int = 3
    """Inner gradient steps."""
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
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")


def main(arguments: list[str] | None = None) -> int:
    """Parse, evaluate, print and save."""
    try:
        options = tyro.cli(Options, args=arguments)
        torch.set_num_threads(1)
        experiment = load_run(options.run, options.checkpoint, options.threads, options.later_lr_factor)
        seed = experiment.settings.seed if options.seed is None else options.seed
        evaluation, _, _ = evaluate(experiment, options.tasks, options.episodes, options.steps, seed)
        path = options.out or options.run / "evaluation.json"
        evaluation.save(path)
        print(evaluation.table())
        print(f"wrote {path}")
    except USER_ERRORS as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
