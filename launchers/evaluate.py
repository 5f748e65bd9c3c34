"""Evaluate a trained run on held-out tasks: returns, errors or accuracies after 0 to k gradient steps."""

from metarl_l2f.program import as_program

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from metarl_l2f.checks import check_counts
from metarl_l2f.parallel.memory import quiet_machine
from metarl_l2f.reports.evaluation import Comparison, Evaluation
from metarl_l2f.reports.page import write_report
from metarl_l2f.runs.command_line import USER_ERRORS, fail, read_alone
from metarl_l2f.runs.load import kind_of, load_options, load_run, read_config

USUAL_EPISODES = 20


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
    episodes: int | None = None
    """Reinforcement learning: episodes per task, before adaptation and after every step; by default 20."""
    steps: int | None = None
    """Inner gradient steps; by default 3 in reinforcement learning, else as in the run. Not of LEO and prototypical
    networks, whose steps are a part of the model."""
    later_lr_factor: float | None = None
    """Step size of steps beyond the trained ones, relative to the last trained one; by default as in training. Not of
    LEO and prototypical networks."""
    seed: int | None = None
    """Seed of tasks and noise; by default the run's own."""
    checkpoint: Literal["best", "latest"] = "best"
    """The best by validation, or the latest."""
    out: Path | None = None
    """File to write, json; by default evaluation.json in the run's folder; a comparison is only printed."""
    threads: int = 1
    """CPU threads; changes no number."""

    def __post_init__(self) -> None:
        if (self.run is None) == (self.compare is None):
            raise ValueError("name one run, as in evaluate.py RUN, or two, as in evaluate.py --compare RUN_A RUN_B")
        check_counts(self, 1, *(name for name in ("tasks", "episodes", "steps") if getattr(self, name) is not None))


def evaluated(run: Path, options: Options, seed: int | None) -> Evaluation:
    """A run's scores.

    Args:
        run: its folder.
        options: of this program.
        seed: seed of tasks and noise; None takes the run's own.

    Raises:
        ValueError: the folder holds no run that can be evaluated here.
    """
    refuse_meaningless(run, options)
    stored, experiment = load_run(run, options.checkpoint, options.threads, options.later_lr_factor)
    try:
        usual = stored.usual_evaluation()
        asked = dataclasses.replace(
            usual,
            evaluation_tasks=options.tasks or usual.evaluation_tasks,
            evaluation_steps=options.steps or usual.evaluation_steps,
        )
        chosen = stored.seed if seed is None else seed
        return asked.evaluate(experiment, run, chosen, options.episodes or USUAL_EPISODES)[0]
    finally:
        experiment.close()


def refuse_meaningless(run: Path, options: Options) -> None:
    """Refuse flags that mean nothing for a run."""
    names = [name for name in ("episodes", "steps", "later_lr_factor") if name not in kind_of(run).evaluated_with]
    if given := [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None]:
        launcher = read_config(run)["launcher"]
        raise ValueError(f"{run} is a run of {launcher}.py, for which {', '.join(given)} mean nothing; drop them")


def compared(first: Path, second: Path, options: Options) -> Comparison:
    """Two runs on the same held-out tasks, with the same noise.

    Raises:
        ValueError: they were trained on different problems, so that no task is common to them.
    """
    seed = load_options(first).seed if options.seed is None else options.seed
    ours, theirs = (evaluated(run, options, seed) for run in (first, second))
    return Comparison(ours, theirs, (str(first), str(second)))


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, evaluate, print and save."""
    try:
        options = read_alone(Options, arguments)
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
                stored = load_options(options.run)
                write_report(options.run, stored.question(), stored.captions())
    except USER_ERRORS as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
