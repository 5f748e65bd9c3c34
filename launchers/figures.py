"""Draw what runs learned and how: the paper's figures that apply, L2F beside MAML, from run folders alone."""

import csv
import math
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure
from tqdm import tqdm

from metarl_l2f import diagnostic_figures
from metarl_l2f.diagnostics import Inspection, manual_attenuation
from metarl_l2f.evaluation import load_evaluation
from metarl_l2f.figures import FORMATS, gamma_heatmap, learning_curve, save, sinusoid_fit
from metarl_l2f.launchers import meta_rl, sinusoid, supervised
from metarl_l2f.launchers.kinds import REINFORCEMENT, SUPERVISED, launcher_of
from metarl_l2f.launchers.meta_rl import USER_ERRORS
from metarl_l2f.launchers.run import fail, quiet_machine, read_config
from metarl_l2f.training import metrics
from metarl_l2f.training.config import from_json
from metarl_l2f.training.seeding import Stream, generator

FACTORS = tuple(round(0.1 * number, 1) for number in range(1, 11))
"""That layers are shrunk by, one at a time."""


@dataclass(frozen=True)
class Options:
    """Pictures of finished runs of one problem, as .png and .pdf, and their numbers as .csv.

    Runs of one method are its seeds: means over them with 95 % intervals. Drawn are learning curves, scores against
    gradient steps (Figure 5 of the L2F paper), the domain's own pictures (Figure 4 for sinusoids), conflict by layer
    (Figure 3a, c), attenuation by hand (3b), γ by tensor (3d) and, of runs that were looked at while they trained
    (--inspect-every), the landscape of the inner loss (Figure 2).
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs, of one problem."""
    out: Path
    """Folder for the pictures; made if missing."""
    tasks: int = 40
    """Held-out tasks that conflict, γ and attenuation by hand are measured on."""
    manual: bool = True
    """Attenuate layers by hand, which takes ten evaluations of every layer of the first run of each method."""
    threads: int = 1
    """CPU threads; changes no number."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("name at least one run's folder")
        if self.tasks < 2:
            raise ValueError(f"tasks must be 2 or more, for one task alone has no conflict; got {self.tasks}")


class Look(NamedTuple):
    """What one run shows on held-out tasks."""

    found: Inspection
    """Conflict, γ, gradients before and after adaptation."""
    pictures: dict[str, Figure]
    """The domain's own."""
    attenuated: dict[str, list[float]]
    """By layer, the score for each of FACTORS."""


def look_at_policy(run: Path, launcher: str, options: Options, manual: bool) -> Look:
    """A run of reinforcement learning on held-out tasks."""
    experiment = meta_rl.load_run(run, threads=options.threads)
    settings = experiment.settings
    steps, episodes, seed = settings.inner.inner_steps, settings.episodes_per_task, settings.seed
    try:
        tasks = experiment.held_out_tasks(options.tasks, seed)
        rollouts = experiment.evaluate(tasks, episodes, steps, seed)

        def score() -> float:
            return float(experiment.evaluate(tasks, episodes, steps, seed).episodes[steps].returns().mean())

        return Look(
            experiment.meta.inspect(rollouts),
            from_json(REINFORCEMENT[launcher], read_config(run)["options"]).pictures(rollouts, tasks),
            manual_attenuation(experiment.learner, FACTORS, score) if manual else {},
        )
    finally:
        experiment.close()


def look_at_network(run: Path, launcher: str, options: Options, manual: bool) -> Look:
    """A supervised run on held-out tasks."""
    chosen, experiment = supervised.load_run(SUPERVISED[launcher], run, threads=options.threads)
    steps = experiment.settings.inner.inner_steps
    random = generator(experiment.settings.seed, Stream.EVALUATION, 0)
    tasks = experiment.problem.sample("test", random, options.tasks)
    try:

        def score() -> float:
            return float(experiment.meta_loss.evaluate(tasks, steps)[0][:, steps].mean())

        return Look(
            experiment.meta_loss.inspect(tasks, steps),
            chosen.pictures(experiment),
            manual_attenuation(experiment.learner, FACTORS, score) if manual else {},
        )
    finally:
        experiment.close()


def label_of(run: Path) -> str:
    """What pictures call a run's method."""
    return str(read_config(run)["options"]["settings"]["method"]).upper()


def problem_of(run: Path) -> dict[str, Any]:
    """What must be equal for runs to stand in one picture."""
    config = read_config(run)
    kept = ("environment", "launcher", "vary_frequency", "disjoint", "shots", "images", "shape")
    return {name: value for name, value in {**config["options"], **config}.items() if name in kept}


def checked(runs: tuple[Path, ...]) -> str:
    """The launcher of all runs.

    Raises:
        ValueError: they are runs of different problems, or not done.
    """
    launchers = [launcher_of(run) for run in runs]
    for run in runs:
        if problem_of(run) != problem_of(runs[0]):
            first, other = problem_of(runs[0]), problem_of(run)
            differ = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
            raise ValueError(
                f"runs in one picture must share their problem, but {runs[0]} and {run} differ in "
                f"{', '.join(f'{name} ({first.get(name)}, {other.get(name)})' for name in differ)}; draw them apart"
            )
        if not (run / "evaluation.json").exists():
            raise ValueError(f"{run} has no evaluation.json; finish it, or run: python launchers/evaluate.py {run}")
    return launchers[0]


def means(values: Mapping) -> dict[str, float]:
    """The mean over tasks (and entries) of every layer or tensor."""
    return {name: float(tasks.mean()) for name, tasks in values.items()}


def draw(options: Options) -> tuple[dict[str, Figure], list[list[object]]]:
    """Every picture that applies, by name, and the numbers in them as rows: figure, method, seed, what, value."""
    launcher = checked(options.runs)
    look = look_at_policy if launcher in REINFORCEMENT else look_at_network
    by_method: dict[str, list[Path]] = defaultdict(list)
    for run in options.runs:
        by_method[label_of(run)].append(run)
    looks: dict[str, list[Look]] = {}
    with tqdm(total=len(options.runs), unit="run", desc="looking") as bar:
        for label, runs in by_method.items():
            looks[label] = []
            for number, run in enumerate(runs):
                looks[label].append(look(run, launcher, options, options.manual and number == 0))
                bar.update()
    evaluations = {
        label: [load_evaluation(run / "evaluation.json") for run in runs] for label, runs in by_method.items()
    }
    score = next(iter(evaluations.values()))[0].score
    labels = [label_of(run) for run in options.runs]
    tag = score if launcher in REINFORCEMENT else f"validation/{score}"
    logs = {label: [metrics.read(run) for run in runs] for label, runs in by_method.items()}

    scores = {label: [one.scores.mean(0) for one in found] for label, found in evaluations.items()}
    conflict = {label: [means(one.found.conflict) for one in found] for label, found in looks.items()}
    cosine = {label: [means(one.found.cosine) for one in found] for label, found in looks.items()}
    gamma = {label: [means(one.found.gamma) for one in found] for label, found in looks.items() if found[0].found.gamma}
    unrelated = math.acos(1 / math.sqrt(options.tasks))
    pictures = {
        "learning_curve": learning_curve(options.runs, labels if len(labels) > 1 else None, score=tag),
        "scores_by_step": diagnostic_figures.scores_by_step(scores, score),
        "conflict": diagnostic_figures.by_layer(conflict, "conflict, rad", reference=unrelated),
        "gradient_cosine": diagnostic_figures.by_layer(cosine, "cosine of ∇L before and after"),
    }
    if gamma:
        pictures["gamma"] = diagnostic_figures.by_layer(gamma, "γ, mean over tasks", reference=1.0)
    for label, found in looks.items():
        if found[0].found.gamma:
            pictures[f"gamma_by_task_{label.lower()}"] = gamma_heatmap(found[0].found.gamma)
        for name, picture in found[0].pictures.items():
            pictures[f"{name}_{label.lower()}"] = picture
    if launcher == "sinusoid":  # Figure 4: the methods' fits of the same curves below each other
        pictures = {name: picture for name, picture in pictures.items() if not name.startswith("sinusoid_fit")}
        loaded = [supervised.load_run(sinusoid.Sinusoid, runs[0]) for runs in by_method.values()]
        pictures["sinusoid_fit"] = sinusoid_fit(*loaded[0][0].fits([experiment for _, experiment in loaded]))
    attenuated = {label: found[0].attenuated for label, found in looks.items() if found[0].attenuated}
    if attenuated:
        pictures["manual_attenuation"] = diagnostic_figures.manual_attenuation(attenuated, FACTORS, score)
    if all(any("landscape/smoothness" in line for line in log) for seeds in logs.values() for log in seeds):
        pictures["landscape"] = diagnostic_figures.landscape_curves(logs)

    measured = {"conflict": conflict, "gradient_cosine": cosine, "gamma": gamma}
    rows: list[list[object]] = []
    for label, runs in by_method.items():
        seeds = [read_config(run)["options"]["settings"]["seed"] for run in runs]
        for number, seed in enumerate(seeds):
            by_step = {f"{score} after {k}": float(v) for k, v in enumerate(scores[label][number])}
            drawn = {"scores_by_step": by_step}
            drawn |= {name: by_label[label][number] for name, by_label in measured.items() if label in by_label}
            rows += [[name, label, seed, what, v] for name, values in drawn.items() for what, v in values.items()]
        for layer, by_factor in attenuated.get(label, {}).items():
            named = zip(FACTORS, by_factor, strict=True)
            rows += [["manual_attenuation", label, seeds[0], f"{layer} × {factor}", v] for factor, v in named]
    return pictures, rows


def main(arguments: list[str] | None = None) -> int:
    """Parse, look, draw, save."""
    try:
        options = tyro.cli(Options, args=arguments)
        quiet_machine()
        pictures, rows = draw(options)
        options.out.mkdir(parents=True, exist_ok=True)
        for name, figure in pictures.items():
            for suffix in FORMATS:
                save(figure, options.out / f"{name}{suffix}")
        with open(options.out / "numbers.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["figure", "method", "seed", "what", "value"])
            writer.writerows([*row[:-1], f"{float(np.asarray(row[-1])):.5g}"] for row in rows)
        print(f"wrote {', '.join(sorted(pictures))} and numbers.csv to {options.out}")
    except USER_ERRORS as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
