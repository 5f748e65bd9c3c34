"""Evaluate a trained run on held-out tasks: returns, errors or accuracies after 0 to k gradient steps."""

from metarl_l2f.program import as_program

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from metarl_l2f.evaluation import Comparison, Evaluation
from metarl_l2f.launchers import meta_rl, supervised
from metarl_l2f.launchers.kinds import REINFORCEMENT, SUPERVISED, launcher_of
from metarl_l2f.launchers.meta_rl import USER_ERRORS
from metarl_l2f.launchers.run import fail, question_of, quiet_machine, read_config
from metarl_l2f.report import write_report


@dataclass(frozen=True)
class Options:
    """Scores of a trained run on held-out tasks, before adaptation and after each inner step, with 95 % intervals.

    In reinforcement learning, every step adapts on the episodes before it. Tasks and noise depend on the seed alone, so
    two runs evaluated with one seed meet the same tasks and can be compared pair by pair.
    """

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of the run."""
    compare: tuple[Path, Path] | None = None
    """Two runs instead of one, as in --compare RUN_A RUN_B: the same tasks and noise for both (by default of RUN_A's
    seed), and the difference A − B, paired task by task, with its interval."""
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
    """Where to write the json; by default evaluation.json in the run's folder; a comparison is only printed."""
    threads: int = 1
    """CPU threads; changes no number."""

    def __post_init__(self) -> None:
        if (self.run is None) == (self.compare is None):
            raise ValueError("name one run, as in evaluate.py RUN, or two, as in evaluate.py --compare RUN_A RUN_B")
        for name in ("tasks", "episodes", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")


def evaluated(run: Path, options: Options, seed: int | None) -> Evaluation:
    """A run's scores.

    Args:
        run: its folder.
        options: how to evaluate.
        seed: of tasks and noise; None takes the run's own.

    Raises:
        ValueError: the folder holds no run that can be evaluated here.
    """
    launcher = launcher_of(run)
    if launcher in SUPERVISED:
        chosen, learner = supervised.load_run(
            SUPERVISED[launcher], run, options.checkpoint, options.threads, options.later_lr_factor
        )
        asked: dict[str, Any] = {"evaluation_tasks": options.tasks, "evaluation_steps": options.steps}
        chosen = dataclasses.replace(chosen, **{name: value for name, value in asked.items() if value is not None})
        return chosen.evaluate(learner, run, chosen.settings.seed if seed is None else seed)
    experiment = meta_rl.load_run(run, options.checkpoint, options.threads, options.later_lr_factor)
    try:
        chosen_seed = experiment.settings.seed if seed is None else seed
        tasks, steps = options.tasks or 40, options.steps or 3
        return meta_rl.evaluate(experiment, tasks, options.episodes, steps, chosen_seed)[0]
    finally:
        experiment.close()


def compared(first: Path, second: Path, options: Options) -> Comparison:
    """Two runs on the same held-out tasks, with the same noise.

    Raises:
        ValueError: they were trained on different problems, so that no task is common to them.
    """
    seed = options.seed if options.seed is not None else read_config(first)["options"]["settings"]["seed"]
    ours, theirs = (evaluated(run, options, seed) for run in (first, second))
    return Comparison(ours, theirs, (str(first), str(second)))


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, evaluate, print and save."""
    try:
        options = tyro.cli(Options, args=arguments)
        quiet_machine()
        result: Evaluation | Comparison
        if options.run is not None:
            result = evaluated(options.run, options, options.seed)
            path: Path | None = options.out or options.run / "evaluation.json"
        else:
            assert options.compare is not None
            result, path = compared(*options.compare, options), options.out
        print(result.table())
        if path is not None:
            result.save(path)
            print(f"wrote {path}")
            if options.run is not None and options.out is None:
                kind = (REINFORCEMENT | SUPERVISED)[launcher_of(options.run)]
                write_report(options.run, question_of(kind()))
    except USER_ERRORS as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
