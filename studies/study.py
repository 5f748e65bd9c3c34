"""Methods of reinforcement learning compared in pairs: same seeds, held-out tasks and noise, from finished runs."""

from metarl_l2f.program import as_program

import csv
import itertools
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro

from metarl_l2f.methods import label_of
from metarl_l2f.parallel.memory import quiet_machine
from metarl_l2f.reports.curves import learning_curve
from metarl_l2f.reports.domains import domain_pictures
from metarl_l2f.reports.evaluation import SCORES_FILE, Evaluation, mean_interval, read_scores, task_groups, write_scores
from metarl_l2f.reports.style import save
from metarl_l2f.runs.command_line import USER_ERRORS, fail
from metarl_l2f.runs.load import read_config
from metarl_l2f.runs.reinforcement import evaluate, load_policy
from metarl_l2f.training import checkpoint, metrics
from metarl_l2f.training.run_folder import BEST_FILE

KEYS = ("method", "episodes", "seed")
LEARNING = ["run", "iteration", "env_steps", "return/step_0", "return/step_1", "validation/return/step_1"]


@dataclass(frozen=True)
class Options:
    """Evaluate runs of several methods under one protocol and print every mean and every paired difference.

    The runs of each method must have the same seeds. With --out, every task's scores are kept in scores.csv.gz, from
    which --scores prints the same tables again, without the runs.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of runs of one launcher, of any methods."""
    scores: Path | None = None
    """A scores.csv.gz that an earlier call wrote, instead of runs: print its tables."""
    beside: Path | None = None
    """returns.csv of an earlier study, whose seeds and tasks are the same, but whose scores were not kept: its means
    are paired with these seed by seed."""
    out: Path | None = None
    """Folder for scores.csv.gz, returns.csv, paired.csv, by_task.csv, runs.csv, learning.csv and pictures."""
    tasks: int = 100
    """Held-out tasks per seed."""
    episodes: tuple[int, ...] = (20, 40)
    """Episodes per task before adaptation and after every step; one protocol for each number."""
    steps: int = 3
    """Inner steps."""

    def __post_init__(self) -> None:
        if bool(self.runs) == (self.scores is not None):
            raise ValueError("name the runs, or a file of scores with --scores; one of the two")


class Protocol(NamedTuple):
    """The method and the number of episodes of one line of a table."""

    method: str
    episodes: int


@dataclass
class Scores:
    """Every task's score, of every method, protocol and seed."""

    of: dict[Protocol, dict[int, np.ndarray]] = field(default_factory=lambda: defaultdict(dict))
    """By protocol and seed: (N, k + 1), before adaptation and after 1 … k steps."""
    tasks: dict[int, np.ndarray] = field(default_factory=dict)
    """By seed: the tasks, (N, …)."""

    def check_paired(self) -> None:
        """Refuse methods with other seeds than the first, whose tasks would differ.

        Raises:
            ValueError: names the method and the seeds.
        """
        first, *others = self.of
        for other in others:
            if sorted(self.of[other]) != sorted(self.of[first]):
                raise ValueError(
                    f"the seeds of every method must be the same, got {sorted(self.of[first])} of {first.method} and "
                    f"{sorted(self.of[other])} of {other.method}"
                )

    def save(self, path: Path) -> None:
        """Write one line per method, protocol, seed and task."""
        kept: dict[tuple[str, ...], Evaluation] = {
            (method, str(episodes), str(seed)): Evaluation(values, {}, tasks=self.tasks[seed])
            for (method, episodes), seeds in self.of.items()
            for seed, values in seeds.items()
        }
        write_scores(path, list(KEYS), kept)


def load_scores(path: Path) -> Scores:
    """Read what `Scores.save` wrote.

    Raises:
        ValueError: the file holds another study's scores.
    """
    scores = Scores()
    for key, evaluation in read_scores(path).items():
        if len(key) != len(KEYS) or evaluation.tasks is None:
            raise ValueError(f"{path} holds other scores than those of this study, by {', '.join(KEYS)}")
        method, episodes, seed = key
        scores.of[Protocol(method, int(episodes))][int(seed)] = evaluation.scores
        scores.tasks[int(seed)] = evaluation.tasks
    return scores


def evaluated(options: Options) -> Scores:
    """The runs' scores, each with the run's own seed.

    Raises:
        ValueError: the runs are of several launchers or environments, or one method has a seed twice.
    """
    scores, kinds = Scores(), set()
    for episodes, run in itertools.product(options.episodes, options.runs):
        config = read_config(run)
        kinds.add(str((config.get("launcher"), config.get("environment"))))
        if len(kinds) > 1:
            raise ValueError(f"runs must be of one launcher and environment, got {' and '.join(sorted(kinds))}")
        _, experiment = load_policy(run)
        try:
            settings = experiment.settings
            protocol = Protocol(settings.method, episodes)
            if settings.seed in scores.of[protocol]:
                raise ValueError(f"{run} is a second run of {settings.method} with seed {settings.seed}; give one")
            evaluation, _, tasks = evaluate(experiment, options.tasks, episodes, options.steps, settings.seed)
            scores.of[protocol][settings.seed] = evaluation.scores
            scores.tasks[settings.seed] = np.asarray(tasks)
        finally:
            experiment.close()
    return scores


# --- Tables, from scores alone ---


def row(name: str, episodes: int, step: int, by_seed: Mapping[int, np.ndarray]) -> list[object]:
    """A mean with its 95 % intervals, over seeds and over all tasks of all seeds, and the mean of every seed."""
    seeds = [values[:, step].mean() for values in by_seed.values()]
    over_seeds = mean_interval(np.array(seeds))
    over_tasks = mean_interval(np.concatenate([values[:, step] for values in by_seed.values()]))
    return [name, episodes, step, *over_seeds, over_tasks.half_width, *seeds]


def tables(scores: Scores) -> dict[str, list[list[object]]]:
    """returns, paired (of several methods) and by_task (of tasks that are numbers): rows with a heading each."""
    scores.check_paired()
    seeds = next(iter(scores.of.values()))
    steps = range(next(iter(seeds.values())).shape[1])
    header: list[object] = ["what", "episodes", "steps", "mean", "half_width_95_over_seeds", "half_width_95_over_tasks"]
    header += [f"seed_{seed}" for seed in seeds]
    returns = [row(method, e, step, values) for (method, e), values in scores.of.items() for step in steps]
    paired = []
    for (ours, e), (theirs, other) in itertools.combinations(scores.of, 2):
        if e == other:
            first, second = scores.of[Protocol(ours, e)], scores.of[Protocol(theirs, e)]
            differences = {seed: first[seed] - second[seed] for seed in seeds}
            paired += [row(f"{ours} − {theirs}", e, step, differences) for step in steps]
    groups: list[list[object]] = []
    masks = task_groups(np.concatenate([scores.tasks[seed] for seed in seeds]))
    for (method, e), values in scores.of.items():
        pooled = np.concatenate(list(values.values()))
        groups += [
            [method, e, step, label, int(mask.sum()), pooled[mask, step].mean()]
            for step in steps
            for label, mask in masks.items()
        ]
    found = {"returns": [header, *returns]}
    if paired:
        found["paired"] = [header, *paired]
    if groups:
        found["by_task"] = [["what", "episodes", "steps", "task", "tasks", "mean"], *groups]
    return found


def write(path: Path | None, rows: Sequence[Sequence[object]], show: bool = True) -> None:
    """Write rows as csv with every digit, where there is a path; print them with three decimals where wanted."""
    if path is not None:
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows(rows)
    if show:
        for cells in rows:
            print(*(f"{cell:.3f}" if isinstance(cell, float) else cell for cell in cells), sep="\t")


def beside(scores: Scores, earlier: Path) -> list[list[object]]:
    """Differences from an earlier study's means, paired by seed, with their intervals over seeds.

    Both studies give every seed the same held-out tasks, so a difference of means is the mean of the differences.

    Raises:
        ValueError: the earlier study has another number of seeds, or no line that goes with one of these.
    """
    with open(earlier, newline="") as file:
        lines = list(csv.reader(file))[1:]
    theirs = {(line[0], int(line[1]), int(line[2])): [float(cell) for cell in line[6:]] for line in lines}
    columns = [f"seed_{seed}" for seed in next(iter(scores.of.values()))]
    rows: list[list[object]] = [["what", "episodes", "steps", "mean", "half_width_95_over_seeds", *columns]]
    for (method, episodes), seeds in scores.of.items():
        steps = range(next(iter(seeds.values())).shape[1])
        for step, other in itertools.product(steps, dict.fromkeys(name for name, *_ in theirs)):
            means = [values[:, step].mean() for values in seeds.values()]
            found = theirs.get((other, episodes, step), [])
            if len(found) != len(means):
                raise ValueError(
                    f"{earlier} has {len(found)} seeds of {other} after {step} steps with {episodes} episodes, "
                    f"expected {len(means)}; name a study of the same protocol"
                )
            differences = np.array(means) - np.array(found)
            rows.append([f"{method} − {other}", episodes, step, *mean_interval(differences), *differences.tolist()])
    return rows


# --- Of the runs themselves ---


def learning_of(run: Path) -> list[list[object]]:
    """A run's learning curve, one row per meta-iteration."""
    return [[run.name, *(line.get(key, "") for key in LEARNING[1:])] for line in metrics.read(run)]


def provenance_of(run: Path) -> dict[str, object]:
    """The command, versions and sizes behind a run's numbers."""
    config, lines = read_config(run), metrics.read(run)
    return {
        "run": run.name,
        "command": config["command"],
        "git_commit": config["git_commit"],
        **config["versions"],
        "iterations": lines[-1]["iteration"],
        "env_steps": lines[-1]["env_steps"],
        "hours": sum(line["time/iteration"] for line in lines) / 3600,
        "best_iteration": checkpoint.load(run / BEST_FILE)["iteration"],
    }


def draw(run: Path, method: str, steps: int, out: Path) -> None:
    """The launcher's own pictures of one run, named after its method."""
    stored, experiment = load_policy(run)
    _, rollouts, tasks = evaluate(experiment, 40, 20, steps, experiment.settings.seed)
    experiment.close()
    for name, figure in domain_pictures(stored.domain, rollouts.episodes, tasks).items():
        save(figure, out / f"{name}_{method.replace('-', '_')}.png")


def describe(options: Options, out: Path) -> None:
    """Write where the runs come from, how they learned, and pictures of one run of each method."""
    methods = [str(read_config(run)["options"]["settings"]["method"]) for run in options.runs]
    origins = [provenance_of(run) for run in options.runs]
    write(out / "runs.csv", [list(origins[0]), *(list(origin.values()) for origin in origins)], show=False)
    rows = [learning for run in options.runs for learning in learning_of(run)]
    write(out / "learning.csv", [LEARNING, *rows], show=False)
    save(learning_curve(list(options.runs), [label_of(method) for method in methods]), out / "learning_curve.png")
    for method in dict.fromkeys(methods):
        draw(options.runs[methods.index(method)], method, options.steps, out)


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Evaluate or read, pair, print; write if told where."""
    try:
        options = tyro.cli(Options, args=arguments)
        quiet_machine()
        scores = evaluated(options) if options.scores is None else load_scores(options.scores)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
        for name, rows in tables(scores).items():
            write(None if options.out is None else options.out / f"{name}.csv", rows)
        if options.beside is not None:
            write(None if options.out is None else options.out / "beside.csv", beside(scores, options.beside))
        if options.out is not None and options.runs:
            scores.save(options.out / SCORES_FILE)
            describe(options, options.out)
    except USER_ERRORS as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
