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
from metarl_l2f.figures import FORMATS, Log, gamma_heatmap, learning_curve, save, sinusoid_fit
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


@dataclass(frozen=True)
class Method:
    """The runs of one method, which are its seeds; a list has one entry a run."""

    runs: list[Path]
    seeds: list[int]
    logs: list[Log]
    """Lines of metrics."""
    scores: list[np.ndarray]
    """(k + 1,) each: the mean over held-out tasks after 0 … k steps, as evaluated."""
    looks: list[Look]

    def means(self, what: str) -> list[dict[str, float]]:
        """Of each run, by layer or tensor, the mean over tasks of a field of its `Inspection`."""
        return [{n: float(v.mean()) for n, v in getattr(look.found, what).items()} for look in self.looks]


def gather(options: Options, launcher: str) -> dict[str, Method]:
    """The runs by method, and what each shows."""
    by_method: dict[str, list[Path]] = defaultdict(list)
    for run in options.runs:
        by_method[label_of(run)].append(run)
    look = look_at_policy if launcher in REINFORCEMENT else look_at_network
    with tqdm(total=len(options.runs), unit="run", desc="looking") as bar:

        def looked(run: Path, first: bool) -> Look:
            found = look(run, launcher, options, manual=options.manual and first)
            bar.update()
            return found

        return {
            label: Method(
                runs,
                [read_config(run)["options"]["settings"]["seed"] for run in runs],
                [metrics.read(run) for run in runs],
                [load_evaluation(run / "evaluation.json").scores.mean(0) for run in runs],
                [looked(run, first=run == runs[0]) for run in runs],
            )
            for label, runs in by_method.items()
        }


def draw(methods: Mapping[str, Method], options: Options, launcher: str, score: str) -> dict[str, Figure]:
    """Every picture that applies, by name."""

    def means(what: str) -> dict[str, list[dict[str, float]]]:
        return {label: method.means(what) for label, method in methods.items() if getattr(method.looks[0].found, what)}

    runs = [run for method in methods.values() for run in method.runs]
    labels = [label for label, method in methods.items() for _ in method.runs]
    tag = score if launcher in REINFORCEMENT else f"validation/{score}"
    unrelated = math.acos(1 / math.sqrt(options.tasks))
    pictures = {
        "learning_curve": learning_curve(runs, labels if len(runs) > 1 else None, score=tag),
        "scores_by_step": diagnostic_figures.scores_by_step({n: method.scores for n, method in methods.items()}, score),
        "conflict": diagnostic_figures.by_layer(means("conflict"), "conflict, rad", reference=unrelated),
        "gradient_cosine": diagnostic_figures.by_layer(means("cosine"), "cosine of ∇L before and after"),
    }
    if gamma := means("gamma"):
        pictures["gamma"] = diagnostic_figures.by_layer(gamma, "γ, mean over tasks", reference=1.0)
    if attenuated := {n: method.looks[0].attenuated for n, method in methods.items() if method.looks[0].attenuated}:
        pictures["manual_attenuation"] = diagnostic_figures.manual_attenuation(attenuated, FACTORS, score)
    if all(any("landscape/smoothness" in line for line in log) for method in methods.values() for log in method.logs):
        pictures["landscape"] = diagnostic_figures.landscape_curves({n: method.logs for n, method in methods.items()})
    for label, method in methods.items():
        first = method.looks[0]
        own = first.pictures | ({"gamma_by_task": gamma_heatmap(first.found.gamma)} if first.found.gamma else {})
        pictures |= {f"{name}_{label.lower()}": picture for name, picture in own.items()}
    if launcher == "sinusoid":  # Figure 4: the methods' fits of the same curves, below each other.
        loaded = {name: supervised.load_run(sinusoid.Sinusoid, method.runs[0]) for name, method in methods.items()}
        pictures = {name: picture for name, picture in pictures.items() if not name.startswith("sinusoid_fit")}
        first_run = next(iter(loaded.values()))[0]
        fits = first_run.fits({name: experiment for name, (_, experiment) in loaded.items()})
        pictures["sinusoid_fit"] = sinusoid_fit(*fits)
    return pictures


def numbers(methods: Mapping[str, Method], score: str) -> list[list[object]]:
    """The numbers in the pictures, as rows: figure, method, seed, what, value."""
    rows: list[list[object]] = []
    for label, method in methods.items():
        for number, seed in enumerate(method.seeds):
            found = {"scores_by_step": {f"{score} after {k}": v for k, v in enumerate(method.scores[number])}}
            found |= {
                figure: method.means(what)[number]
                for figure, what in (("conflict", "conflict"), ("gradient_cosine", "cosine"), ("gamma", "gamma"))
            }
            found["manual_attenuation"] = {
                f"{layer} × {factor}": value
                for layer, values in method.looks[number].attenuated.items()
                for factor, value in zip(FACTORS, values, strict=True)
            }
            rows += [[figure, label, seed, what, v] for figure, values in found.items() for what, v in values.items()]
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Parse, look, draw, save."""
    try:
        options = tyro.cli(Options, args=arguments)
        quiet_machine()
        launcher = checked(options.runs)
        methods = gather(options, launcher)
        score = load_evaluation(options.runs[0] / "evaluation.json").score
        pictures, rows = draw(methods, options, launcher, score), numbers(methods, score)
        options.out.mkdir(parents=True, exist_ok=True)
        for name, figure in pictures.items():
            for suffix in FORMATS:
                save(figure, options.out / f"{name}{suffix}")
        with open(options.out / "numbers.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["figure", "method", "seed", "what", "value"])
            writer.writerows([*row[:-1], f"{row[-1]:.5g}"] for row in rows)
        print(f"wrote {', '.join(sorted(pictures))} and numbers.csv to {options.out}")
    except USER_ERRORS as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
