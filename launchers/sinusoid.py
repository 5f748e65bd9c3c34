"""Meta-train a network on sinusoid regression: fit a curve from a few points."""

from metarl_l2f.program import as_program

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from metarl_l2f.methods import label_of
from metarl_l2f.parallel.ranks import Group
from metarl_l2f.reports.fits import sinusoid_fit
from metarl_l2f.runs.launch import launch
from metarl_l2f.runs.load import load_run_of
from metarl_l2f.runs.supervised import NetworkOptions
from metarl_l2f.supervised.experiment import MetaSupervised
from metarl_l2f.supervised.settings import SupervisedSettings
from metarl_l2f.supervised.sinusoid import FREQUENCIES, Disjoint, SinusoidProblem, draw_tasks, train_and_test_curves
from metarl_l2f.training.seeding import Stream, generator

CURVES_DRAWN, POINTS_DRAWN = 4, 200


@dataclass(frozen=True)
class Sinusoid(NetworkOptions):
    """Meta-train a network to fit y = A sin(ω x − b) from K points.

    Without flags this is L2F on 10-shot curves of varying amplitude, phase and frequency (Table 7), one inner step,
    60,000 meta-iterations of 25 tasks: some minutes. It departs from the paper in three things: one γ per unit instead
    of per tensor, read off normalised gradients, from 0.9. --compile halves the time where a C++ compiler is installed.

    --method NAME alone sets a method's own parts and constants, which further flags override: l2f (the default), maml,
    promp+l2f and many more, which launchers/methods.py lists.
    """

    settings: SupervisedSettings = field(default_factory=lambda: SupervisedSettings.for_problem("sinusoid"))
    """Settings of the method and of its training."""
    iterations: int = 60_000
    """Meta-iterations in all; may be raised when resuming."""
    shots: int = 10
    """Support points K per curve."""
    queries: int | None = None
    """Query points per curve in training; by default as many as shots. Evaluation takes 100."""
    hidden_sizes: tuple[int, ...] = (40, 40)
    """Units of the network's hidden layers."""
    vary_frequency: bool = True
    """Draw frequencies from [0.8, 1.2] (Meta-SGD's protocol, which L2F follows), instead of 1 (MAML's)."""
    disjoint: Disjoint = "none"
    """Quantities that are tested on values that training never meets (Figure 4b): training draws them from the lower
    halves of their ranges, testing from the upper ones."""
    evaluation_tasks: int = 100
    """Curves of every repetition of the evaluation at the end; 0 skips it."""
    evaluation_repeats: int = 100
    """Repetitions of the evaluation, each with curves of its own."""
    evaluation_steps: int = 5
    """Inner steps of the evaluation at the end."""
    beside: Path | None = None
    """Folder of another run, such as MAML's, whose fits are drawn below this one's."""

    problem_class = SinusoidProblem
    of_report = (*NetworkOptions.of_report, "evaluation_repeats", "beside")
    may_change_on_resume = (*NetworkOptions.may_change_on_resume, *of_report)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(evaluation_repeats=1, evaluation_steps=1)

    def problem(self) -> SinusoidProblem:
        frequency = FREQUENCIES if self.vary_frequency else (1.0, 1.0)
        train, test = train_and_test_curves(self.disjoint, frequency)
        queries = self.shots if self.queries is None else self.queries
        return SinusoidProblem(train, test, self.shots, queries, self.hidden_sizes, self.settings.context_size)

    def scores(self, experiment: MetaSupervised, folder: Path, seed: int) -> tuple[Tensor, dict[str, Any]]:
        """Meta-SGD's protocol: the mean over 100 points of each of 100 curves, 100 times over."""
        scores = experiment.evaluate(self.evaluation_tasks * self.evaluation_repeats, self.evaluation_steps, seed)
        protocol = {
            "problem": "sinusoid",
            "shots": self.shots,
            "vary_frequency": self.vary_frequency,
            "disjoint": self.disjoint,
            "curves": self.evaluation_tasks,
            "repeats": self.evaluation_repeats,
            "seed": seed,
        }
        return scores, protocol

    def check_report(self, experiment: MetaSupervised, group: Group) -> None:
        if (beside := self.beside) is not None:
            group.from_first(lambda: load_run_of("sinusoid", beside).close())

    def pictures(self, experiment: MetaSupervised, width: float | None = None) -> dict[str, Figure]:
        """Fits of some test curves, before adaptation and after every step; another run's below, if one is named."""
        drawn = {label_of(self.method): experiment}
        if self.beside is not None:
            other = load_run_of("sinusoid", self.beside)
            name = label_of(other.settings.method)
            drawn[name if name not in drawn else self.beside.name] = other
        return {"sinusoid_fit": self._fits(drawn, width)}

    def side_by_side(self, runs: Mapping[str, Path], width: float) -> dict[str, Figure]:
        """Fits of the same curves, run below run (Figure 4)."""
        return {"sinusoid_fit": self._fits({name: load_run_of("sinusoid", run) for name, run in runs.items()}, width)}

    def _fits(self, experiments: Mapping[str, MetaSupervised], width: float | None) -> Figure:
        """Draw the fits of trained networks to some test curves after 0 … k steps, by the networks' names."""
        random = generator(self.seed, Stream.EVALUATION)
        family = self.problem().families["test"]
        tasks = draw_tasks(family, random, CURVES_DRAWN, self.shots, POINTS_DRAWN, spread_evenly=True)
        fits = {
            name: one.meta_loss.evaluate(tasks, one.settings.inner.inner_steps)[2] for name, one in experiments.items()
        }
        return sinusoid_fit(tasks, fits, width=width)


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, train, evaluate, draw."""
    return launch(Sinusoid(), arguments)


if __name__ == "__main__":
    sys.exit(main())
