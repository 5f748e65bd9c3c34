"""Train a prototypical network, whose class prototypes L2F can condition γ on (Table 5)."""

from metarl_l2f.program import as_program

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from metarl_l2f.parallel.ranks import Group
from metarl_l2f.reports.evaluation import Evaluation
from metarl_l2f.runs.images import ImageData
from metarl_l2f.runs.launch import launch
from metarl_l2f.runs.options import Judged, RunOptions
from metarl_l2f.supervised.prototypes import PrototypeSettings, PrototypicalNetwork


@dataclass(frozen=True)
class Prototypes(RunOptions):
    """Train an embedding in which images of a class lie together (Snell et al. 2017).

    Its run is named to the image classifier: python launchers/image_classification.py --conditioning prototype
    --prototypes RUN
    """

    settings: PrototypeSettings = field(default_factory=PrototypeSettings)
    """Settings of the method and of its training."""
    images: ImageData = field(default_factory=ImageData)
    """The data set."""
    iterations: int = 5_000
    """Training episodes in all; may be raised when resuming."""
    validate_every: int = 250
    """Training episodes between validations; best.pt keeps the best."""
    checkpoint_every: int = 250
    """Training episodes between checkpoints."""
    log_every: int = 50
    """Training episodes that one line of metrics averages."""
    evaluation_tasks: int = 600
    """Held-out episodes of the evaluation at the end; 0 skips it."""
    evaluation_steps: tyro.conf.Suppress[tyro.conf.Fixed[int]] = 0
    """No option: prototypes are not adapted."""

    retired = ("threads",)

    @property
    def method(self) -> str:
        return "prototypical"

    def title(self) -> str:
        return f"prototypical network on {self.images.name}"

    def experiment(self, group: Group | None = None) -> PrototypicalNetwork:
        if group is not None and group.size > 1:
            raise ValueError(
                f"{self.launcher}.py learns from one episode at a time, which {group.size} ranks cannot share; start "
                "it without torchrun"
            )
        return PrototypicalNetwork(self.images.load(), self.settings)

    def judged(self) -> Judged:
        return Judged("accuracy", 0)

    def check_report(self, experiment: PrototypicalNetwork, group: Group) -> None:
        if self.evaluation_tasks:
            experiment.check("test")

    def evaluate(
        self, experiment: PrototypicalNetwork, folder: Path, seed: int, episodes: int | None = None
    ) -> tuple[Evaluation, None]:
        """Accuracy of the nearest prototype on held-out classes."""
        protocol = {
            "problem": f"images: {self.images.name}",
            **dataclasses.asdict(experiment.shapes["test"]),
            "held_out_tasks": self.evaluation_tasks,
            "seed": seed,
        }
        model = {"method": "prototypical network", "training_seed": self.seed}
        scores = experiment.evaluate("test", self.evaluation_tasks, seed)
        return Evaluation(scores, protocol, model, score="accuracy", digits=4), None


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, train, evaluate, draw."""
    return launch(Prototypes(), arguments)


if __name__ == "__main__":
    sys.exit(main())
