"""Meta-train LEO, or LEO + L2F, on embeddings of images."""

from metarl_l2f.program import as_program

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from metarl_l2f.parallel.ranks import Group
from metarl_l2f.reports.evaluation import Evaluation
from metarl_l2f.runs.launch import launch
from metarl_l2f.runs.options import Judged, RunOptions
from metarl_l2f.supervised.leo.embeddings import load_embeddings
from metarl_l2f.supervised.leo.experiment import PUBLISHED, LEOExperiment, LEOSettings
from metarl_l2f.training.config import command


@dataclass(frozen=True)
class LEORun(RunOptions):
    """Meta-train LEO + L2F (--method l2f), or plain LEO (--method leo), on files of embeddings.

    The published embeddings of miniImageNet and tieredImageNet are one source of such files; launchers/embeddings.py,
    which makes them of images with a network trained here, is another.
    """

    embeddings: Path | None = None
    """Folder of {train,val,test}_embeddings.pkl in LEO's published format, such as embeddings/miniImageNet/center."""
    settings: LEOSettings = field(default_factory=LEOSettings)
    """Settings of the method and of its training."""
    published: str | None = None
    """Take step size and regularisers that LEO's authors published for miniImageNet or tieredImageNet."""
    iterations: int = 2_000
    """Meta-iterations in all; may be raised when resuming."""
    validate_every: int = 100
    """Meta-iterations between validations; best.pt keeps the best."""
    checkpoint_every: int = 100
    """Meta-iterations between checkpoints."""
    log_every: int = 20
    """Meta-iterations that one line of metrics averages."""
    evaluation_tasks: int = 600
    """Held-out tasks of the evaluation at the end; 0 skips it."""
    evaluation_steps: tyro.conf.Suppress[tyro.conf.Fixed[int]] = 0
    """No option: LEO's inner steps are part of its model."""

    retired = ("threads",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embeddings is not None:  # A run must find them again, from whichever folder it is resumed or evaluated.
            object.__setattr__(self, "embeddings", self.embeddings.expanduser().absolute())

    def title(self) -> str:
        return f"LEO ({self.method}) on {self.embeddings}"

    def experiment(self, group: Group | None = None) -> LEOExperiment:
        """A new experiment of these options, shared by a group of processes, or of this one alone."""
        settings = self.resolved()
        if self.embeddings is None:
            raise ValueError(
                "name a folder of embeddings with --embeddings; it is made by: "
                + command("embeddings", "RUN", "--out", "FOLDER")
            )
        return LEOExperiment(load_embeddings(self.embeddings), settings, group=group)

    def resolved(self) -> LEOSettings:
        """The settings, with the published numbers if `published` names them."""
        if self.published is None:
            return self.settings
        case = (self.published, self.settings.shots)
        if case not in PUBLISHED:
            known = ", ".join(f"{name} with {shots} shot{'s' if shots > 1 else ''}" for name, shots in PUBLISHED)
            raise ValueError(f"published must be one of {known}; got {self.published} with {self.settings.shots}")
        changes: dict[str, Any] = dict(PUBLISHED[case])
        return dataclasses.replace(self.settings, **changes)

    def judged(self) -> Judged:
        settings = self.resolved()
        return Judged("accuracy", settings.inner_steps + settings.finetuning_steps)

    def evaluate(
        self, experiment: LEOExperiment, folder: Path, seed: int, episodes: int | None = None
    ) -> tuple[Evaluation, None]:
        """Accuracy on held-out classes: of the decoded classifier, after each latent and each fine-tuning step."""
        settings = self.resolved()
        protocol = {
            "problem": f"embeddings: {self.embeddings}",
            "ways": settings.ways,
            "shots": settings.shots,
            "queries": settings.queries,
            "held_out_tasks": self.evaluation_tasks,
            "seed": seed,
        }
        model = {
            "method": settings.method,
            "training_seed": settings.seed,
            "latent_steps": settings.inner_steps,
            "finetuning_steps": settings.finetuning_steps,
        }
        scores = experiment.evaluate("test", self.evaluation_tasks, seed)
        return Evaluation(scores, protocol, model, score="accuracy", digits=4), None


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, train, evaluate, draw."""
    return launch(LEORun(), arguments)


if __name__ == "__main__":
    sys.exit(main())
