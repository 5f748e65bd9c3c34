"""Supervised runs collected into tables: every method's score, and its paired difference to MAML's."""

from metarl_l2f.program import as_program

import csv
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from metarl_l2f.reports.evaluation import (
    SCORES_FILE,
    Evaluation,
    load_evaluation,
    mean_interval,
    paired_differences,
    read_scores,
    write_scores,
)
from metarl_l2f.runs.command_line import USER_ERRORS, fail
from metarl_l2f.runs.load import read_config
from metarl_l2f.training import metrics

PAPER = {
    # Table 7 of L2F: MSE by shots and steps, of MAML and of L2F.
    (5, 1): {"maml": 1.2247, "l2f": 1.0537},
    (5, 2): {"maml": 1.0268, "l2f": 0.8426},
    (5, 5): {"maml": 0.8995, "l2f": 0.7096},
    (10, 1): {"maml": 0.9884, "l2f": 0.8069},
    (10, 2): {"maml": 0.6192, "l2f": 0.5317},
    (10, 5): {"maml": 0.4072, "l2f": 0.3696},
    (20, 1): {"maml": 0.6144, "l2f": 0.5475},
    (20, 2): {"maml": 0.3346, "l2f": 0.2805},
    (20, 5): {"maml": 0.1817, "l2f": 0.1629},
}

PROTOCOL = ("problem", "disjoint", "ways", "shots")
VARIANT = ("iterations", "method", "adapt", "first_order", "learn_inner_lr", "inner_lr", "inner_steps")
OF_L2F = ("scope", "conditioning", "transform", "embedding", "initial_gamma")
CELL = PROTOCOL + VARIANT + OF_L2F
"""Columns that tell runs apart; runs that differ in their seed alone share a cell."""
SCORES = ("score", "minus_maml")
VALUES = {*CELL, "seed", "score", "score_95", "minus_maml", "minus_maml_95"}
"""Columns that are read back as numbers and truth values; the others stay text."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Collect runs of launchers/sinusoid.py or launchers/image_classification.py: a line per run, a row per cell.

    Runs collected into the same folder before are kept, so a study may grow run by run. A run is paired with the run
    of MAML (second order, whole network, fixed step size) that shares its seed, problem, shots, length and inner
    steps, if that is given with it.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of runs that are done."""
    again: Path | None = None
    """Instead of runs, the folder of an earlier study: its table is computed again from every task's scores."""
    out: Path | None = None
    """Folder for runs.csv, table.csv and every task's scores (scores.csv.gz); by default nothing is written."""

    def check(self) -> None:
        """Refuse flags that do not go together."""
        if bool(self.runs) == (self.again is not None):
            raise ValueError("name runs, or an earlier study's folder with --again")
        if self.again is not None and self.out is not None:
            raise ValueError("--again computes the table of an earlier study; drop --out")


def read(folder: Path) -> tuple[Row, Evaluation]:
    """A run's line, and its evaluation."""
    config, log, evaluation = read_config(folder), metrics.read(folder), load_evaluation(folder / "evaluation.json")
    options = config["options"]
    settings = options["settings"]
    everything = {
        **evaluation.protocol,
        "iterations": log[-1]["iteration"],
        "adapt": options.get("adapt", "all"),
        **settings["inner"],
    }
    everything |= {"method": settings["method"], **(settings["attenuation"] if settings["method"] == "l2f" else {})}
    return {
        "run": folder.name,
        **{name: everything.get(name, "") for name in CELL},
        "seed": settings["seed"],
        **score_of(evaluation, settings["inner"]["inner_steps"]),
        "minus_maml": "",
        "minus_maml_95": "",
        "tasks": len(evaluation.scores),
        "best_iteration": best_iteration(log, f"validation/{evaluation.score}/step_{settings['inner']['inner_steps']}"),
        "minutes": round(sum(line["time/iteration"] for line in log) * options["log_every"] / 60, 1),
        "command": config["command"],
        "commit": config["git_commit"],
        **config["versions"],
    }, evaluation


def score_of(evaluation: Evaluation, step: int) -> Row:
    """The mean over tasks after so many steps, and its interval."""
    score = evaluation.intervals()[step]
    return {"score": score.mean, "score_95": score.half_width}


def best_iteration(log: list[dict[str, Any]], key: str) -> int:
    """The iteration with the best validation, the first of equals, as in training's own best.pt."""
    validated = [line for line in log if key in line]
    best = (max if "accuracy" in key else min)(validated, key=lambda line: line[key])
    return best["iteration"]


def is_baseline(row: Row) -> bool:
    """Plain MAML."""
    return (row["method"], row["adapt"], row["first_order"], row["learn_inner_lr"]) == ("maml", "all", False, False)


def pair(runs: Iterable[tuple[Row, Evaluation]]) -> list[Row]:
    """The lines, with every run's paired difference to MAML's."""
    runs = list(runs)
    shared = ("seed", *PROTOCOL, "iterations", "inner_lr", "inner_steps")
    baselines = {tuple(row[name] for name in shared): evaluation for row, evaluation in runs if is_baseline(row)}
    for row, evaluation in runs:
        baseline = baselines.get(tuple(row[name] for name in shared))
        if baseline is not None and not is_baseline(row):
            difference = paired_differences(evaluation, baseline)[row["inner_steps"]]
            row["minus_maml"], row["minus_maml_95"] = difference
    return [row for row, _ in runs]


def over_seeds(rows: list[Row]) -> Row:
    """One row of table.csv: means over seeds with 95 % intervals over seeds, and over all seeds' tasks."""
    row = {name: rows[0][name] for name in CELL} | {"seeds": len(rows)}
    for name in SCORES:
        values = np.array([row[name] for row in rows if row[name] != ""], float)
        widths = np.array([row[f"{name}_95"] for row in rows if row[name] != ""], float)
        row |= {name: "", f"{name}_95_over_seeds": "", f"{name}_95_over_tasks": ""}
        if len(values):
            interval = mean_interval(values)
            row[name] = interval.mean
            if len(values) > 1:
                row[f"{name}_95_over_seeds"] = interval.half_width
            # Widths of means of independent samples of one size are proportional to standard errors, and add up so.
            row[f"{name}_95_over_tasks"] = math.hypot(*widths) / len(widths)
    paper = PAPER.get((row["shots"], row["inner_steps"]), {}) if row["problem"] == "sinusoid" else {}
    row["paper"] = "" if row["disjoint"] != "none" else paper.get(row["method"], "")
    return row


def collected_before(path: Path) -> list[Row]:
    """The lines of runs.csv."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [
            {name: _value(text) if name in VALUES else text for name, text in line.items()}
            for line in csv.DictReader(file)
        ]


def _value(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    try:
        return json.loads(text)
    except ValueError:
        return text


def write(path: Path, rows: list[Row]) -> None:
    """Rows to csv."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def again(folder: Path) -> list[Row]:
    """The lines of an earlier study, scores and differences computed again from every task's, where they are kept."""
    rows, kept = collected_before(folder / "runs.csv"), read_scores(folder / SCORES_FILE)
    scored = [(row, kept[row["run"],]) for row in rows if (row["run"],) in kept]
    for row, evaluation in scored:
        row |= score_of(evaluation, row["inner_steps"])
    pair(scored)
    if missing := len(rows) - len(scored):
        print(f"{missing} runs have no scores in {folder / SCORES_FILE}; their lines are as they were written")
    return rows


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Read, pair, merge, print; write where a folder is named."""
    try:
        options = tyro.cli(Options, args=arguments)
        options.check()
        show_and_write(options)
    except USER_ERRORS as error:
        return fail(error)
    return 0


def show_and_write(options: Options) -> None:
    """Print the table of runs, or of a study on record, and write what a study leaves."""
    if options.again is not None:
        show(table_of(again(options.again)))
        return
    found = [read(folder) for folder in options.runs]
    lines = pair(found)
    scores: dict[tuple[str, ...], Evaluation] = {(row["run"],): evaluation for row, evaluation in found}
    if options.out is not None:
        names = {row["run"] for row in lines}
        lines += [row for row in collected_before(options.out / "runs.csv") if row["run"] not in names]
        if (options.out / SCORES_FILE).exists():
            scores = read_scores(options.out / SCORES_FILE) | scores
    lines.sort(key=lambda row: [str(row[name]) for name in (*CELL, "seed")])
    table = table_of(lines)
    show(table)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        write(options.out / "runs.csv", lines)
        write(options.out / "table.csv", table)
        write_scores(options.out / SCORES_FILE, ["run"], dict(sorted(scores.items())))


def table_of(lines: list[Row]) -> list[Row]:
    """One row for every cell."""
    cells: Mapping[tuple, list[Row]] = defaultdict(list)
    for line in lines:
        cells[tuple(line[name] for name in CELL)].append(line)
    return [over_seeds(rows) for rows in cells.values()]


def show(table: list[Row]) -> None:
    """Print a table, scores with four decimals."""
    for row in table:
        shown = {
            name: round(value, 4) if name.startswith(SCORES) else value for name, value in row.items() if value != ""
        }
        print("  ".join(f"{name} {value}" for name, value in shown.items()))


if __name__ == "__main__":
    sys.exit(main())
