"""Runs of launchers/sinusoid.py --disjoint both, tested on curves that leave the training range in one way or both."""

from metarl_l2f.program import as_program

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from metarl_l2f.reports.evaluation import mean_interval
from metarl_l2f.runs.load import load_run
from metarl_l2f.supervised.sinusoid import FREQUENCIES, Curves, draw_tasks, train_and_test_curves


@dataclass(frozen=True)
class Options:
    """Mean squared errors after the trained number of steps, on the same curves for every run."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs that are done."""
    out: Path
    """A csv file."""
    curves: int = 2000
    """Curves per family, drawn with seed 0."""


@as_program
def main() -> None:
    """Draw, adapt, write."""
    options = tyro.cli(Options)
    low, high = train_and_test_curves("both", FREQUENCIES)
    families = {
        "none": low,
        "amplitude": Curves(high.amplitude, low.phase, FREQUENCIES),
        "phase": Curves(low.amplitude, high.phase, FREQUENCIES),
        "both": high,
    }
    with open(options.out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "seed", "method", "leaves", "mse", "interval_95_over_curves"])
        for folder in options.runs:
            _, experiment = load_run(folder)
            settings, shots = experiment.settings, experiment.problem.shots
            for leaves, family in families.items():
                tasks = draw_tasks(family, np.random.default_rng(0), options.curves, shots, queries=100)
                scores, _, _ = experiment.meta_loss.evaluate(tasks, settings.inner.inner_steps)
                mse = mean_interval(scores[:, -1].numpy())
                writer.writerow([folder.name, settings.seed, settings.method, leaves, *mse])


if __name__ == "__main__":
    sys.exit(main())
