"""Runs of one problem side by side: gathered by method, looked at on held-out tasks, drawn, and their numbers."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from ..core.parameters import Params
from ..diagnostics import manual_attenuation
from ..inspection import Inspection
from ..methods import label_of
from ..reports import diagnostics as diagnostic_figures
from ..reports.curves import learning_curve
from ..reports.diagnostics import gamma_heatmap
from ..reports.evaluation import Evaluation, load_evaluation
from ..reports.page import EVALUATION_FILE
from ..reports.style import COLUMN
from ..training import metrics
from ..training.checkpoint import load as load_checkpoint
from ..training.config import command, flat
from ..training.metrics import Log
from ..training.run_folder import CHECKPOINT_FILE
from .load import kind_of, load_options, load_run, read_config
from .options import RunOptions

FACTORS = tuple(round(0.1 * number, 1) for number in range(1, 11))
"""Factors by which layers are shrunk, one at a time."""
NO_OTHER_METHOD = ("settings.seed", "batching", "task_chunk", "compile", "log_every", "settings.diagnostics_every")
"""Options in which runs may differ and still be of one method, beside those that may change on resume."""


class Shown(NamedTuple):
    """One run on held-out tasks: measures and pictures."""

    found: Inspection
    """Conflict, γ, gradients before and after adaptation."""
    pictures: dict[str, Figure]
    """The domain's own pictures, by name."""
    attenuated: dict[str, list[float]]
    """By layer, the score for each of FACTORS; empty where layers were not attenuated by hand."""


def looked_at(run: Path, tasks: int, manual: bool = True, width: float = COLUMN, threads: int = 1) -> Shown:
    """A run on held-out tasks.

    Args:
        run: its folder; of a launcher whose runs are `inspectable`.
        tasks: the number of held-out tasks.
        manual: attenuate layers by hand, too, which takes ten evaluations of every layer.
        width: width of the pictures, inches.
        threads: CPU threads; changes no number.
    """
    stored, experiment = load_run(run, threads=threads)
    try:
        look = stored.look_at_held_out(experiment, tasks)
        assert look is not None
        return Shown(
            look.inspection(),
            dict(look.pictures(width)),
            manual_attenuation(experiment.learner, FACTORS, look.score) if manual else {},
        )
    finally:
        experiment.close()


def labels_of(runs: Sequence[Path], kind: type[RunOptions]) -> list[str]:
    """A label for each run: its method, and the options in which it differs from other runs of that method."""
    options = [flat(read_config(run)["options"]) for run in runs]
    ignored = {*NO_OTHER_METHOD, *kind.may_change_on_resume}
    labels = []
    for own in options:
        alike = [other for other in options if other["settings.method"] == own["settings.method"]]
        differ = [n for n in own if n not in ignored and any(other.get(n) != own[n] for other in alike)]
        choices = [f"{name.rpartition('.')[-1].replace('_', ' ')} {own[name]}" for name in differ]
        labels.append(", ".join([label_of(str(own["settings.method"])), *choices]))
    return labels


def problem_of(run: Path) -> dict[str, Any]:
    """The entries of config.json that must be equal for runs to stand in one picture."""
    config = read_config(run)
    kept = ("environment", "launcher", "vary_frequency", "disjoint", "shots", "images", "shape")
    return {name: value for name, value in {**config["options"], **config}.items() if name in kept}


def protocol_of(evaluation: Evaluation) -> dict[str, Any]:
    """The protocol of a run's evaluation, without the seed, which differs from run to run."""
    protocol = {**evaluation.protocol, "steps": evaluation.scores.shape[1] - 1}
    return {name: value for name, value in protocol.items() if name != "seed"}


def differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """A list of the entries in which two differ, in words."""
    names = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
    return ", ".join(f"{name} ({first.get(name)}, {other.get(name)})" for name in names)


def checked(runs: tuple[Path, ...]) -> RunOptions:
    """The options of the first run, whose launcher is that of all.

    Raises:
        ValueError: they are runs of different problems, not done, evaluated differently, or one is named twice.
    """
    for run in runs:
        if not kind_of(run).inspectable:
            raise ValueError(
                f"{run} is a run of {read_config(run)['launcher']}.py, which these figures know nothing of; its "
                "learning_curve.png and report.html show what there is"
            )
    if len({run.resolve() for run in runs}) < len(runs):
        raise ValueError("a run is named twice; it would count as two seeds: name it once")
    for run in runs:
        if found := differences(problem_of(runs[0]), problem_of(run)):
            raise ValueError(
                f"runs in one picture must share their problem, but {runs[0]} and {run} differ in {found}; draw them "
                "apart"
            )
        if not (run / EVALUATION_FILE).exists():
            raise ValueError(f"{run} has no {EVALUATION_FILE}; finish it, or run: {command('evaluate', run)}")
        evaluated = [protocol_of(load_evaluation(one / EVALUATION_FILE)) for one in (runs[0], run)]
        if found := differences(*evaluated):
            raise ValueError(
                f"runs in one picture must be evaluated alike, but {runs[0]} and {run} differ in {found}; evaluate "
                f"both with the same flags: {command('evaluate', run)}"
            )
    return load_options(runs[0])


@dataclass(frozen=True)
class Method:
    """The runs of one method, which are its seeds; a list has one entry a run."""

    runs: list[Path]
    seeds: list[int]
    logs: list[Log]
    """Lines of metrics."""
    scores: list[np.ndarray]
    """(k + 1,) each, the mean over held-out tasks after 0 … k steps, as evaluated."""
    looks: list[Shown]


def means_of(values: Params) -> dict[str, float]:
    """By layer or tensor, the mean over tasks."""
    return {name: float(value.mean()) for name, value in values.items()}


def gather(runs: Sequence[Path], kind: type[RunOptions], look: Callable[[Path], Shown]) -> dict[str, Method]:
    """The runs by method, and what each shows.

    Args:
        runs: their folders.
        kind: the class of their launcher's options.
        look: a function that looks at one of them.
    Raises:
        ValueError: two runs of one method have the same seed.
    """
    by_method: dict[str, list[Path]] = defaultdict(list)
    for run, label in zip(runs, labels_of(runs, kind), strict=True):
        by_method[label].append(run)
    seeds = {label: [load_options(run).seed for run in own] for label, own in by_method.items()}
    for label, found in seeds.items():
        if len(set(found)) < len(found):
            raise ValueError(f"runs of {label} must be of different seeds, got {found}; drop the repeated ones")
    looks = {run: look(run) for run in tqdm(runs, unit="run", desc="looking")}
    return {
        label: Method(
            own,
            seeds[label],
            [metrics.read(run) for run in own],
            [load_evaluation(run / EVALUATION_FILE).scores.mean(0) for run in own],
            [looks[run] for run in own],
        )
        for label, own in by_method.items()
    }


def draw(methods: Mapping[str, Method], stored: RunOptions, score: str, width: float) -> dict[str, Figure]:
    """Every picture that applies, by name.

    Args:
        methods: as `gather` returns them.
        stored: the options of a run.
        score: name of the evaluated score, for the axes.
        width: width of the pictures, inches.
    """

    def means(what: str) -> dict[str, list[dict[str, float]]]:
        found = {label: [means_of(getattr(look.found, what)) for look in m.looks] for label, m in methods.items()}
        return {label: seeds for label, seeds in found.items() if all(seeds)}

    runs = [run for method in methods.values() for run in method.runs]
    labels = [label for label, method in methods.items() for _ in method.runs]
    scores = {n: m.scores for n, m in methods.items()}
    looks = [look for method in methods.values() for look in method.looks]
    unrelated = math.acos(1 / math.sqrt(len(looks[0].found.conflict["network"])))
    by_layer = partial(diagnostic_figures.by_layer, width=width)
    pictures = {
        "learning_curve": learning_curve(
            runs, labels if len(runs) > 1 else None, score=stored.judged().drawn, width=width
        ),
        "scores_by_step": diagnostic_figures.scores_by_step(scores, score, width=width),
        "conflict": by_layer(means("conflict"), "conflict, rad", reference=unrelated),
        "gradient_cosine": by_layer(means("cosine"), "cosine of ∇L before and after"),
    }
    if gammas := means("gamma"):
        pictures["gamma"] = by_layer(gammas, "γ, mean over tasks", reference=1.0)
    if looks[0].attenuated:
        attenuated = {n: [look.attenuated for look in method.looks] for n, method in methods.items()}
        pictures["manual_attenuation"] = diagnostic_figures.manual_attenuation(attenuated, FACTORS, score, width=width)
    if not unseen(methods):
        logs = {n: method.logs for n, method in methods.items()}
        pictures["landscape"] = diagnostic_figures.landscape_curves(logs, width=width)
    for label, method in methods.items():
        own, gamma = dict(method.looks[0].pictures), method.looks[0].found.gamma
        if gamma:
            own["gamma_by_task"] = gamma_heatmap(gamma, width=width)
        pictures |= {f"{name}_{re.sub(r'[^a-z0-9]+', '_', label.lower())}": picture for name, picture in own.items()}
    together = stored.side_by_side({label: method.runs[0] for label, method in methods.items()}, width)
    alone = tuple(f"{name}_" for name in together)
    return {name: picture for name, picture in pictures.items() if not name.startswith(alone)} | together


def unseen(methods: Mapping[str, Method]) -> list[Path]:
    """Runs whose landscape was not looked at while they trained."""
    return [
        run
        for method in methods.values()
        for run, log in zip(method.runs, method.logs, strict=True)
        if not any("landscape/smoothness" in line for line in log)
    ]


def numbers(methods: Mapping[str, Method], score: str) -> list[list[object]]:
    """The numbers in the pictures, as rows: figure, method, seed, what, value.

    Two of them no picture shows: how much γ differs between tasks, and the landscape at the end of training.
    """
    rows: list[list[object]] = []
    for label, method in methods.items():
        for seed, scores, look in zip(method.seeds, method.scores, method.looks, strict=True):
            inspected = look.found.metrics()
            found = {
                "scores_by_step": {f"{score} after {step}": value for step, value in enumerate(scores)},
                "conflict": means_of(look.found.conflict),
                "gradient_cosine": means_of(look.found.cosine),
                "gamma": means_of(look.found.gamma),
                "gamma_over_tasks": {
                    name: float(g.std(0, unbiased=False).mean()) for name, g in look.found.gamma.items()
                },
                "manual_attenuation": {
                    f"{layer} × {factor}": value
                    for layer, values in look.attenuated.items()
                    for factor, value in zip(FACTORS, values, strict=True)
                },
                "landscape_at_end": {n: v for n, v in inspected.items() if n.startswith("landscape/")},
            }
            rows += [[figure, label, seed, what, v] for figure, values in found.items() for what, v in values.items()]
    return rows


def lacks(run: Path, log: Log) -> str | None:
    """A sentence on the lines that a run's metrics lack, or None if they are whole."""
    every = read_config(run)["options"].get("log_every", 1)
    lacking = metrics.gap(log, load_checkpoint(run / CHECKPOINT_FILE)["iteration"], every)
    return lacking and f"{run}: {lacking}, and its curve with it"


def notes(methods: Mapping[str, Method]) -> list[str]:
    """Sentences that a reader of the pictures must know."""
    found = []
    for label, method in methods.items():
        found += [lacking for run, log in zip(method.runs, method.logs, strict=True) if (lacking := lacks(run, log))]
        lengths = {log[-1]["iteration"] if log else 0 for log in method.logs}
        if len(lengths) > 1:
            found.append(f"runs of {label} differ in length: {min(lengths)} to {max(lengths)} meta-iterations")
    if missing := unseen(methods):
        found.append(f"no landscape over training: not looked at in {', '.join(map(str, missing))} (--inspect-every)")
    return found
