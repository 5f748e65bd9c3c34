"""Numbers of the figures in docs/findings.md: means over seeds with intervals, and paired differences."""

from metarl_l2f.program import as_program

import csv
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from metarl_l2f.reports.evaluation import mean_interval


@dataclass(frozen=True)
class Options:
    """One line for each number of a figure and each method, and one for the methods' difference, paired by seed."""

    numbers: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The numbers.csv files that launchers/figures.py wrote."""
    figure: str | None = None
    """Print this figure's numbers only, such as `conflict`."""


def seeds_of(path: Path) -> dict[tuple[str, str], dict[str, dict[int, float]]]:
    """(figure, what) → method → seed → value."""
    table: dict[tuple[str, str], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            table[row["figure"], row["what"]][row["method"]][int(row["seed"])] = float(row["value"])
    return table


def lines_of(path: Path, figure: str | None = None) -> list[str]:
    """Tab-separated lines: figure, number, method or difference, seeds, and mean ± 95 % interval over seeds."""
    lines = []
    for (drawn, what), methods in seeds_of(path).items():
        if figure not in (None, drawn):
            continue
        named = [(method, list(values.values())) for method, values in methods.items()]
        if len(methods) == 2:
            (first, ours), (second, theirs) = methods.items()
            shared = sorted(ours.keys() & theirs.keys())
            named.append((f"{first} − {second}", [ours[seed] - theirs[seed] for seed in shared]))
        for name, values in named:
            mean, half_width = mean_interval(np.array(values))
            lines.append("\t".join([drawn, what, name, str(len(values)), f"{mean:.3f} ± {half_width:.3f}"]))
    return lines


@as_program
def main() -> None:
    """Parse and print."""
    options = tyro.cli(Options)
    for path in options.numbers:
        print("\n".join(lines_of(path, options.figure)))


if __name__ == "__main__":
    sys.exit(main())
