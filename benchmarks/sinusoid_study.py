"""L2F against MAML on sinusoids (Table 7): each cell's error, and the paired difference, from runs' evaluations."""

import csv
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from metarl_l2f.evaluation import Evaluation, Interval, load_evaluation, mean_interval, paired_differences
from metarl_l2f.training import metrics

PAPER = {
    # Table 7 of L2F: MSE by shots and steps, of MAML and of L2F.
    (5, 1): (1.2247, 1.0537),
    (5, 2): (1.0268, 0.8426),
    (5, 5): (0.8995, 0.7096),
    (10, 1): (0.9884, 0.8069),
    (10, 2): (0.6192, 0.5317),
    (10, 5): (0.4072, 0.3696),
    (20, 1): (0.6144, 0.5475),
    (20, 2): (0.3346, 0.2805),
    (20, 5): (0.1817, 0.1629),
}

Cell = tuple[bool, int, int]
"""Whether ranges are disjoint, shots, inner steps."""


@dataclass(frozen=True)
class Options:
    """Collect runs of launchers/sinusoid.py into a table: pairs of L2F and MAML share seed, tasks and noise."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs."""
    out: Path
    """Folder for table.csv and runs.csv; made if missing."""


def read(folder: Path) -> tuple[Cell, str, int, Evaluation, dict[str, Any]]:
    """A run's cell, method, seed, evaluation, and its line of runs.csv."""
    evaluation = load_evaluation(folder / "evaluation.json")
    config = json.loads((folder / "config.json").read_text())
    log = metrics.read(folder)
    settings, protocol = config["options"]["settings"], evaluation.protocol
    steps = settings["inner"]["inner_steps"]
    seconds = sum(line["time/iteration"] for line in log) * config["options"]["log_every"]
    line = {
        "run": folder.name,
        "iterations": log[-1]["iteration"],
        "minutes": round(seconds / 60, 1),
        "command": config["command"],
        "commit": config["git_commit"],
        **config["versions"],
    }
    return (protocol["disjoint"], protocol["shots"], steps), settings["method"], settings["seed"], evaluation, line


def over_seeds(values: list[float]) -> Interval:
    """Mean and 95 % interval over seeds."""
    return mean_interval(np.array(values))


def main() -> None:
    """Read, pair, write, print."""
    options = tyro.cli(Options)
    cells: dict[Cell, dict[str, dict[int, Evaluation]]] = defaultdict(lambda: {"l2f": {}, "maml": {}})
    lines = []
    for folder in options.runs:
        cell, method, seed, evaluation, line = read(folder)
        cells[cell][method][seed] = evaluation
        lines.append(line)
    rows = []
    for cell, by_method in sorted(cells.items()):
        (disjoint, shots, steps), seeds = cell, sorted(by_method["l2f"].keys() & by_method["maml"].keys())
        if not seeds:
            continue
        errors = {
            method: [float(by_method[method][seed].scores[:, steps].mean()) for seed in seeds] for method in by_method
        }
        differences = [paired_differences(by_method["l2f"][seed], by_method["maml"][seed])[steps] for seed in seeds]
        pooled = np.concatenate(
            [by_method["l2f"][s].scores[:, steps] - by_method["maml"][s].scores[:, steps] for s in seeds]
        )
        row: dict[str, Any] = {"disjoint": disjoint, "shots": shots, "steps": steps, "seeds": len(seeds)}
        for name, interval in (
            ("l2f", over_seeds(errors["l2f"])),
            ("maml", over_seeds(errors["maml"])),
            ("l2f_minus_maml", over_seeds([difference.mean for difference in differences])),
        ):
            row[name], row[f"{name}_95_over_seeds"] = round(interval.mean, 4), round(interval.half_width, 4)
        row["l2f_minus_maml_95_over_tasks"] = round(mean_interval(pooled).half_width, 4)
        row["paper_maml"], row["paper_l2f"] = PAPER.get((shots, steps), (None, None)) if not disjoint else (None, None)
        rows.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, table in (("table.csv", rows), ("runs.csv", lines)):
        with open(options.out / name, "w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
