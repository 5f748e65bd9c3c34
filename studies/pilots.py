"""Pilots of the named methods: every score and curve, and the tables and pictures of the methods' pages from them."""

from metarl_l2f.program import as_program

import csv
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from metarl_l2f.methods import METHODS, label_of
from metarl_l2f.reports.curves import learning_panels
from metarl_l2f.reports.evaluation import (
    SCORES_FILE,
    Evaluation,
    load_evaluation,
    mean_interval,
    read_scores,
    write_scores,
)
from metarl_l2f.reports.style import minus, save
from metarl_l2f.rl.settings import MetaRLSettings
from metarl_l2f.runs.command_line import USER_ERRORS, fail
from metarl_l2f.runs.load import read_config
from metarl_l2f.training import metrics
from metarl_l2f.training.config import flat, to_json
from metarl_l2f.training.files import write_atomically
from metarl_l2f.training.metrics import Log

LAUNCHER = "navigation"
BAR = -16.0
"""Return after one step of MAML before it was tuned, which no method may be below."""
SECTION = re.compile(r"(<!-- pilots: ([\w -]+) -->\n).*?(<!-- end of pilots -->)", re.DOTALL)
"""A part of a page that is written here; its comment names the methods, or `all`, `others` or `overview`."""
REFERENCE_FILE = "maml.json"
NOT_TOLD = ("method", "seed", "policy.filters")
"""Settings that are no constant of a method here: navigation shows no pictures, which filters are for."""
CURVES = ("iteration", "env_steps", "return/step_0", "return/step_1")

Key = tuple[str, str, str]
"""Method, changes and seed of a run."""


@dataclass(frozen=True)
class Options:
    """Collect runs of launchers/navigation.py, of any named methods with any pilot seeds, and print their table.

    A run whose settings are not those that its method's name sets today is listed apart, among the pilots with other
    constants. Runs without an evaluation are left out, so that the study can be repeated as more of them are finished.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of runs."""
    again: Path | None = None
    """Instead of runs, the folder of an earlier study: everything is made again from its files."""
    out: Path | None = None
    """Folder for runs.csv, curves.csv, every task's scores (scores.csv.gz), and MAML's settings (maml.json)."""
    docs: Path | None = None
    """Folder that holds methods.md and methods/: these pages and results/methods/README.md beside it get their tables
    and pictures."""

    def __post_init__(self) -> None:
        if bool(self.runs) == (self.again is not None):
            raise ValueError("name runs, or an earlier study's folder with --again")


class Pilot(NamedTuple):
    """The line of a run in runs.csv."""

    method: str
    changes: str
    """The flags by which its settings differ from MAML's."""
    seed: int
    iterations: int
    best: int
    """The iteration after which its evaluated model was saved, the best by validation."""
    env_steps: int
    seconds: float
    """The time of all meta-iterations, on a machine that did other work beside."""
    git_commit: str

    @property
    def key(self) -> Key:
        """What tells it from other runs."""
        return self.method, self.changes, str(self.seed)


class Study(NamedTuple):
    """Pilots with their scores on held-out tasks and their learning curves."""

    pilots: list[Pilot]
    evaluations: dict[Key, Evaluation]
    logs: dict[Key, Log]
    reference: Mapping[str, Any]
    """MAML's settings, which changes are told from, by their dotted names."""

    def of(self, method: str) -> list[Pilot]:
        """The pilots of a method with the settings that its name sets today."""
        today = changes_of(to_json(MetaRLSettings.for_domain(LAUNCHER, method)), self.reference)
        return [pilot for pilot in self.pilots if (pilot.method, pilot.changes) == (method, today)]

    def methods(self) -> list[str]:
        """The methods that have such pilots, in the order of the family's table."""
        return [name for name in named_in_order() if self.of(name)]


def named_in_order() -> list[str]:
    """Every method without a +l2f behind it, and l2f itself, which stands after MAML."""
    maml, *others = METHODS
    return [maml, "l2f", *others]


def settings_of_maml() -> dict[str, Any]:
    """The settings that `--method maml` has today, by their dotted names."""
    return flat(to_json(MetaRLSettings.for_domain(LAUNCHER, "maml")))


def changes_of(settings: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """The flags that turn MAML's settings into these, but for NOT_TOLD.

    Args:
        settings: as config.json has them.
        reference: MAML's, by their dotted names; what they do not have is left out.
    """
    told = {name: value for name, value in flat(settings).items() if name in reference}
    differing = {name: value for name, value in told.items() if value != reference[name]}
    return " ".join(_flag(name, value) for name, value in differing.items() if name not in NOT_TOLD)


def _flag(name: str, value: bool | float | str) -> str:
    flag = name.rpartition(".")[2].replace("_", "-")
    if isinstance(value, bool):
        return f"--{'' if value else 'no-'}{flag}"
    text = "None" if value == "null" else str(value)
    return f"--{flag} {text.strip('[]').replace(',', '')}"


# --- Reading and writing ---


def collected(folders: Sequence[Path]) -> Study:
    """The study of finished runs.

    Raises:
        ValueError: a run is of another launcher, or none is finished.
    """
    study = Study([], {}, {}, settings_of_maml())
    for folder in folders:
        if not (folder / "evaluation.json").exists():
            print(f"{folder} is left out: it has no evaluation.json", file=sys.stderr)
            continue
        config, log = read_config(folder), metrics.read(folder)
        if config["launcher"] != LAUNCHER:
            raise ValueError(f"runs must be of launchers/{LAUNCHER}.py, but {folder} is of {config['launcher']}.py")
        settings = config["options"]["settings"]
        evaluation, seconds = load_evaluation(folder / "evaluation.json"), sum(line["time/iteration"] for line in log)
        iterations = {line["env_steps"]: line["iteration"] for line in log}
        pilot = Pilot(
            method=settings["method"],
            changes=changes_of(settings, study.reference),
            seed=settings["seed"],
            iterations=log[-1]["iteration"],
            best=iterations[evaluation.model["env_steps_trained"]],
            env_steps=log[-1]["env_steps"],
            seconds=round(seconds, 1),
            git_commit=config["git_commit"] or "",
        )
        study.pilots.append(pilot)
        study.evaluations[pilot.key] = evaluation
        study.logs[pilot.key] = [{key: line[key] for key in CURVES} for line in log]
    if not study.pilots:
        raise ValueError("none of the runs is finished; name one that has an evaluation.json")
    order = named_in_order()
    study.pilots.sort(key=lambda pilot: (order.index(pilot.method) if pilot.method in order else len(order), pilot.key))
    return study


def write(study: Study, folder: Path) -> None:
    """Write the files that `read` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / REFERENCE_FILE, (json.dumps(study.reference, indent=2) + "\n").encode())
    with open(folder / "runs.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        steps = max(one.scores.shape[1] for one in study.evaluations.values())
        writer.writerow([*Pilot._fields, "held_out_tasks", *(f"step_{step}" for step in range(steps))])
        for pilot in study.pilots:
            scores = study.evaluations[pilot.key].scores
            writer.writerow([*pilot, len(scores), *scores.mean(0).tolist()])
    with open(folder / "curves.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*Pilot._fields[:3], *CURVES])
        for pilot in study.pilots:
            for line in study.logs[pilot.key]:
                returns = (f"{line[key]:.2f}" for key in CURVES[2:])
                writer.writerow([*pilot.key, line["iteration"], line["env_steps"], *returns])
    write_scores(folder / SCORES_FILE, Pilot._fields[:3], {p.key: study.evaluations[p.key] for p in study.pilots})


def read(folder: Path) -> Study:
    """The study that `write` wrote."""
    study = Study([], {}, {}, json.loads((folder / REFERENCE_FILE).read_text("utf-8")))
    with open(folder / "runs.csv", newline="") as file:
        for row in csv.DictReader(file):
            seed, iterations, best, steps = (int(row[name]) for name in ("seed", "iterations", "best", "env_steps"))
            counts = seed, iterations, best, steps, float(row["seconds"])
            study.pilots.append(Pilot(row["method"], row["changes"], *counts, row["git_commit"]))
    with open(folder / "curves.csv", newline="") as file:
        for row in csv.DictReader(file):
            lines = study.logs.setdefault((row["method"], row["changes"], row["seed"]), [])
            assert isinstance(lines, list)
            lines.append({key: json.loads(row[key]) for key in CURVES})
    scores: dict[Any, Evaluation] = read_scores(folder / SCORES_FILE)
    return study._replace(evaluations={pilot.key: scores[pilot.key] for pilot in study.pilots})


# --- Tables ---


def mean_by_step(study: Study, pilots: Sequence[Pilot]) -> list[str]:
    """The mean over seeds with its 95 % interval, before adaptation and after every step."""
    by_seed = np.array([study.evaluations[pilot.key].scores.mean(0) for pilot in pilots])
    intervals = [mean_interval(column) for column in by_seed.T]
    return [minus(f"{interval.mean:.2f}") + interval.margin(2) for interval in intervals]


def heading(*names: str) -> list[str]:
    """The first two lines of a table."""
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def steps(study: Study) -> list[str]:
    """The headings of the columns of `mean_by_step`."""
    number = next(iter(study.evaluations.values())).scores.shape[1]
    return ["before", *(f"{step} step{'s' if step > 1 else ''}" for step in range(1, number))]


def after_one_step(study: Study, method: str) -> float:
    """A method's mean return after one step over its pilots."""
    return float(np.mean([study.evaluations[pilot.key].scores[:, 1].mean() for pilot in study.of(method)]))


def table(study: Study, methods: Sequence[str]) -> list[str]:
    """A row for each method that has pilots."""
    rows = heading("", "Seeds", *steps(study), "Environment steps", "Minutes, fastest")
    for method in methods:
        if pilots := study.of(method):
            cells = [f"`{method}`", str(len(pilots)), *mean_by_step(study, pilots)]
            cells.append(f"{np.mean([pilot.env_steps for pilot in pilots]) / 1e6:.2f} M")
            rows.append("| " + " | ".join([*cells, f"{min(pilot.seconds for pilot in pilots) / 60:.1f}"]) + " |")
    return rows


def everything(study: Study) -> list[str]:
    """The table of all methods, and which of them are below the bar."""
    scores = {method: after_one_step(study, method) for method in study.methods()}
    if not scores:
        return ["There are no pilots yet."]
    below = [f"`{method}` ({minus(f'{score:.2f}')})" for method, score in scores.items() if score < BAR]
    bar = f"The bar is the return of untuned MAML after one step, {minus(f'{BAR:.0f}')}"
    verdict = f"{bar}. Below it: {', '.join(below)}." if below else f"{bar}: no method is below it."
    early = [
        f"`{pilot.method}` {pilot.seed} ({pilot.best})"
        for method in scores
        for pilot in study.of(method)
        if pilot.best < pilot.iterations
    ]
    earlier = (
        [f"Evaluated at an earlier iteration than the last, for it validated better: {', '.join(early)}."]
        if early
        else []
    )
    missing = [f"`{method}`" for method in named_in_order() if method not in scores]
    lacking = [f"Without pilots yet: {', '.join(missing)}."] if missing else []
    return [*table(study, study.methods()), "", verdict, *earlier, *lacking]


def others(study: Study) -> list[str]:
    """A row for each pilot whose constants its method does not have today."""
    reported = {pilot for method in study.methods() for pilot in study.of(method)}
    rows = heading("Method", "Beside MAML's settings", "Seed", "Iterations", *steps(study))
    for pilot in study.pilots:
        if pilot not in reported:
            cells = [f"`{pilot.method}`", f"`{pilot.changes}`", str(pilot.seed), str(pilot.iterations)]
            rows.append("| " + " | ".join([*cells, *mean_by_step(study, [pilot])]) + " |")
    return rows if len(rows) > 2 else ["There are none."]


def overview(study: Study, picture: str) -> list[str]:
    """The picture of all methods, once there is a method to show beside MAML."""
    if not draws_overview(study):
        return ["There are no pilots of several methods yet."]
    return [f"![Returns after one step over training, each method beside MAML]({picture})"]


def draws_overview(study: Study) -> bool:
    """Whether there are pilots of MAML and of another method."""
    return "maml" in study.methods() and len(study.methods()) > 1


def of_page(study: Study, picture: str, methods: Sequence[str]) -> list[str]:
    """A page's picture and table, of its methods beside MAML."""
    shown = ["maml", *(method for method in methods if method != "maml")]
    if not any(study.of(method) for method in methods):
        return ["There are no pilots yet."]
    labels = [label_of(method) for method in shown if study.of(method)]
    pilots = [pilot for method in shown for pilot in study.of(method)]
    seeds = ", ".join(map(str, sorted({pilot.seed for pilot in pilots})))
    iterations = max(pilot.iterations for pilot in pilots)
    tasks = max(len(study.evaluations[pilot.key].scores) for pilot in pilots)
    what = f"2D navigation, pilot seeds {seeds}, {iterations} meta-iterations"
    text = f"{what}; mean return on {tasks} held-out tasks ± 95 % interval over seeds:"
    return [f"![Learning curves of {' and '.join(labels)}]({picture})", "", text, "", *table(study, shown)]


# --- Pages and pictures ---


def renewed(study: Study, page: Path, docs: Path) -> str:
    """The text of a page with its sections of pilots written anew.

    Args:
        study: the pilots.
        page: the page's file.
        docs: the folder whose methods/ holds the pictures.
    """

    def section(found: re.Match[str]) -> str:
        kind = found[2]
        if kind in ("all", "others"):
            lines = everything(study) if kind == "all" else others(study)
        else:
            name = "overview" if kind == "overview" else page.stem
            picture = os.path.relpath(docs / "methods" / f"{name}.png", page.parent)
            lines = overview(study, picture) if kind == "overview" else of_page(study, picture, kind.split())
        return found[1] + "\n".join(lines) + "\n" + found[3]

    return SECTION.sub(section, page.read_text("utf-8"))


def pages(docs: Path) -> list[Path]:
    """The pages that have sections of pilots."""
    return [
        *(docs / "methods.md", *sorted((docs / "methods").glob("*.md"))),
        docs.parent / "results" / "methods" / "README.md",
    ]


def draw(study: Study, docs: Path) -> None:
    """Draw a picture for each page, of its methods' curves beside MAML's, and one of all methods."""
    folder = docs / "methods"
    for page in sorted(folder.glob("*.md")):
        found = SECTION.search(page.read_text("utf-8"))
        if found and any(study.of(name) for name in found[2].split()):
            drawn = curves(study, ["maml", *found[2].split()])
            save(learning_panels(drawn, next(iter(drawn)), before=True, size=(3.4, 2.4)), folder / f"{page.stem}.png")
    if draws_overview(study):
        save(learning_panels(curves(study, study.methods()), label_of("maml")), folder / "overview.png")


def curves(study: Study, methods: Sequence[str]) -> dict[str, list[Log]]:
    """The learning curves of those methods that have pilots, by the methods' labels."""
    return {label_of(name): [study.logs[p.key] for p in study.of(name)] for name in methods if study.of(name)}


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Collect or read; print; write what is asked for."""
    try:
        options = tyro.cli(Options, args=arguments)
        study = collected(options.runs) if options.again is None else read(options.again)
        print("\n".join([*everything(study), "", *others(study)]))
        if options.out is not None:
            write(study, options.out)
        if options.docs is not None:
            for page in pages(options.docs):
                write_atomically(page, renewed(study, page, options.docs).encode())
            draw(study, options.docs)
    except USER_ERRORS as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
