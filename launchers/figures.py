"""Draw what runs learned and how: the paper's figures that apply, L2F beside MAML, from run folders alone."""

from metarl_l2f.program import as_program

import csv
import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from metarl_l2f.parallel.memory import quiet_machine
from metarl_l2f.reports.evaluation import load_evaluation
from metarl_l2f.reports.page import EVALUATION_FILE
from metarl_l2f.reports.style import COLUMN, FORMATS, save
from metarl_l2f.runs.command_line import USER_ERRORS, fail, read_alone
from metarl_l2f.runs.comparison import checked, draw, gather, looked_at, notes, numbers

NARROWEST = 2.0  # Inches.


@dataclass(frozen=True)
class Options:
    """Pictures of finished runs of one problem, as .png and .pdf, and their numbers as .csv.

    Runs that differ in their seed alone are one method: means over them with 95 % intervals. Where options differ, each
    choice is a method of its own. Drawn are learning curves, scores against gradient steps (Figure 5 of the L2F paper),
    the domain's own pictures (Figure 4 for sinusoids), conflict by layer (Figure 3a, c), attenuation by hand (3b), γ by
    tensor (3d) and, of runs that were looked at while they trained (--inspect-every), the landscape of the inner loss
    (Figure 2).
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs, of one problem."""
    out: Path
    """Folder for the pictures; made if missing."""
    tasks: int = 40
    """Held-out tasks that conflict, γ and attenuation by hand are measured on."""
    manual: bool = True
    """Attenuate layers by hand, which takes ten evaluations of every layer of every run."""
    width: float = COLUMN
    """Width of the pictures, inches; by default a column of a paper."""
    threads: int = 1
    """CPU threads; changes no number."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("name at least one run's folder")
        if self.tasks < 2:
            raise ValueError(f"tasks must be 2 or more, for one task alone has no conflict; got {self.tasks}")
        if not NARROWEST <= self.width < math.inf:
            raise ValueError(f"width must be {NARROWEST:g} inches or more, got {self.width}")


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, look, draw, save."""
    try:
        options = read_alone(Options, arguments)
        quiet_machine()
        stored = checked(options.runs)
        look = partial(
            looked_at, tasks=options.tasks, manual=options.manual, width=options.width, threads=options.threads
        )
        methods = gather(options.runs, type(stored), look)
        score = load_evaluation(options.runs[0] / EVALUATION_FILE).score
        pictures, rows = draw(methods, stored, score, options.width), numbers(methods, score)
        options.out.mkdir(parents=True, exist_ok=True)
        for name, figure in pictures.items():
            for suffix in FORMATS:
                save(figure, options.out / f"{name}{suffix}")
        with open(options.out / "numbers.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["figure", "method", "seed", "what", "value"])
            writer.writerows(rows)  # Every digit.
        print("\n".join([*notes(methods), f"wrote {', '.join(sorted(pictures))} and numbers.csv to {options.out}"]))
    except USER_ERRORS as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
