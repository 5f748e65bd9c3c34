"""L2F against MAML, paired: same seeds, held-out tasks and noise, from finished run folders of one launcher."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from metarl_l2f import MetaRL
from metarl_l2f.evaluation import Evaluation, mean_interval, paired_differences, task_groups
from metarl_l2f.figures import learning_curve, save
from metarl_l2f.launchers.kinds import REINFORCEMENT
from metarl_l2f.launchers.meta_rl import evaluate, load_run
from metarl_l2f.launchers.run import read_config
from metarl_l2f.training import checkpoint, metrics
from metarl_l2f.training.config import from_json
from metarl_l2f.training.loop import BEST_FILE


@dataclass(frozen=True)
class Options:
    """Evaluate runs of two methods under one protocol and write what came out, whichever is better."""

    l2f: tuple[Path, ...]
    """Folders of the L2F runs, one per seed."""
    maml: tuple[Path, ...]
    """Folders of the MAML runs with the same seeds, in the same order."""
    out: Path
    """Folder for returns.csv, paired.csv, by_task.csv, runs.csv, learning.csv and the pictures."""
    tasks: int = 100
    """Held-out tasks per seed."""
    episodes: tuple[int, ...] = (20, 40)
    """Episodes per task before adaptation and after every step; one protocol for each number."""
    steps: int = 3
    """Inner steps."""
    l2f_later_lr_factor: float | None = None
    """Step size of L2F's steps beyond the trained one, relative to it; by default as in training."""
    maml_later_lr_factor: float | None = None
    """The same for MAML."""
    checkpoint: Literal["best", "latest"] = "best"
    """`best` by validation, or `latest`."""


def load(run: Path, options: Options) -> MetaRL:
    """A trained run with its method's later step sizes."""
    l2f = read_config(run)["options"]["settings"]["method"] == "l2f"
    factor = options.l2f_later_lr_factor if l2f else options.maml_later_lr_factor
    return load_run(run, options.checkpoint, threads=2, later_lr_factor=factor)


def evaluations(runs: Sequence[Path], episodes: int, options: Options) -> list[Evaluation]:
    """One evaluation per run, with the run's own seed."""
    results = []
    for run in runs:
        experiment = load(run, options)
        evaluation, _, _ = evaluate(experiment, options.tasks, episodes, options.steps, experiment.settings.seed)
        results.append(evaluation)
        experiment.close()
    return results


def main() -> None:
    """Evaluate, pair, write."""
    options = tyro.cli(Options)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    returns, paired, by_task = [], [], []
    for episodes in options.episodes:
        by_method = {
            "l2f": evaluations(options.l2f, episodes, options),
            "maml": evaluations(options.maml, episodes, options),
        }
        for method, results in by_method.items():
            for step in range(options.steps + 1):
                seeds = [result.scores[:, step].mean() for result in results]
                over_seeds, over_tasks = mean_interval(np.array(seeds)), mean_interval(pooled(results, step))
                returns.append([method, episodes, step, *over_seeds, over_tasks.half_width, *seeds])
                by_task += [[method, episodes, step, *group] for group in grouped(results, step)]
        differences = [paired_differences(*pair) for pair in zip(by_method["l2f"], by_method["maml"], strict=True)]
        for step in range(options.steps + 1):
            seeds = [difference[step].mean for difference in differences]
            tasks = pooled(by_method["l2f"], step) - pooled(by_method["maml"], step)
            over_seeds = mean_interval(np.array(seeds))
            paired.append(["l2f − maml", episodes, step, *over_seeds, mean_interval(tasks).half_width, *seeds])
    header = ["what", "episodes", "steps", "mean", "half_width_95_over_seeds", "half_width_95_over_tasks"]
    header += [f"run_{number + 1}" for number in range(len(options.l2f))]
    write(options.out / "returns.csv", [header, *returns])
    write(options.out / "paired.csv", [header, *paired])
    if by_task:
        write(options.out / "by_task.csv", [["what", "episodes", "steps", "task", "tasks", "mean"], *by_task])
    runs = [*options.l2f, *options.maml]
    origins = [provenance_of(run) for run in runs]
    write(options.out / "runs.csv", [list(origins[0]), *(list(origin.values()) for origin in origins)])
    write(options.out / "learning.csv", [LEARNING, *(row for run in runs for row in learning_of(run))], show=False)
    labels = ["L2F"] * len(options.l2f) + ["MAML"] * len(options.maml)
    save(learning_curve(runs, labels), options.out / "learning_curve.png")
    for method, run in (("l2f", options.l2f[0]), ("maml", options.maml[0])):
        draw(method, run, options)


def draw(method: str, run: Path, options: Options) -> None:
    """The launcher's own pictures of one run, named after the method."""
    config = read_config(run)
    pictured = from_json(REINFORCEMENT[config["launcher"]], config["options"])
    experiment = load(run, options)
    _, rollouts, tasks = evaluate(experiment, 40, 20, options.steps, experiment.settings.seed)
    experiment.close()
    for name, figure in pictured.pictures(rollouts, tasks).items():
        save(figure, options.out / f"{name}_{method}.png")


def grouped(results: Sequence[Evaluation], step: int) -> list[list[object]]:
    """Label, number of tasks and mean score of each group of tasks, over all seeds."""
    tasks = np.concatenate([np.asarray(result.tasks) for result in results])
    return [[label, int(mask.sum()), pooled(results, step)[mask].mean()] for label, mask in task_groups(tasks).items()]


def pooled(results: Sequence[Evaluation], step: int) -> np.ndarray:
    """Every task's score of every seed after `step` inner steps."""
    return np.concatenate([result.scores[:, step] for result in results])


LEARNING = ["run", "iteration", "env_steps", "return/step_0", "return/step_1", "validation/return/step_1"]


def learning_of(run: Path) -> list[list[object]]:
    """A run's learning curve, one row per meta-iteration."""
    return [[run.name, *(line.get(key, "") for key in LEARNING[1:])] for line in metrics.read(run)]


def provenance_of(run: Path) -> dict[str, object]:
    """Where a run's numbers come from."""
    config, lines = read_config(run), metrics.read(run)
    best = checkpoint.load(run / BEST_FILE)
    return {
        "run": run.name,
        "command": config["command"],
        "git_commit": config["git_commit"],
        **config["versions"],
        "iterations": lines[-1]["iteration"],
        "env_steps": lines[-1]["env_steps"],
        "hours": sum(line["time/iteration"] for line in lines) / 3600,
        "best_iteration": best["iteration"],
    }


def write(path: Path, rows: Sequence[Sequence[object]], show: bool = True) -> None:
    """Rows to csv, floats with three digits; printed too unless told otherwise."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        for row in rows:
            cells = [f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row]
            writer.writerow(cells)
            if show:
                print(*cells, sep="\t")


if __name__ == "__main__":
    main()
