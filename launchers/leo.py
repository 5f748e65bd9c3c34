"""Meta-train LEO, or LEO + L2F, on embeddings of images."""

from metarl_l2f.program import as_program

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from metarl_l2f.launchers.run import (
    USER_ERRORS,
    RunOptions,
    checkpoint_of,
    draw,
    fail,
    placed,
    started,
    train_and_report,
)
from metarl_l2f.parallel.ranks import Group
from metarl_l2f.reports.curves import learning_curve
from metarl_l2f.reports.evaluation import Evaluation
from metarl_l2f.supervised.leo.embeddings import load_embeddings
from metarl_l2f.supervised.leo.experiment import PUBLISHED, LEOExperiment, LEOSettings
from metarl_l2f.training.checkpoint import load as load_checkpoint
from metarl_l2f.training.config import command

NAME = "leo"


@dataclass(frozen=True)
class LEORun(RunOptions):
    """Meta-train LEO + L2F (--method l2f), or plain LEO (--method leo), on files of embeddings.

    The published embeddings of miniImageNet and tieredImageNet are one source of such files; launchers/embeddings.py,
    which makes them of images with a network trained here, is another.
    """

    embeddings: Path | None = None
    """Folder of {train,val,test}_embeddings.pkl in LEO's published format, such as embeddings/miniImageNet/center."""
    settings: LEOSettings = field(default_factory=LEOSettings)
    """What is learned, and how."""
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embeddings is not None:  # A run must find them again, from whichever folder it is resumed or evaluated.
            object.__setattr__(self, "embeddings", self.embeddings.expanduser().absolute())

    def experiment(self, group: Group | None = None) -> LEOExperiment:
        """A new experiment of these options, shared by a group of processes, or of this one alone."""
        if self.embeddings is None:
            raise ValueError(
                "name a folder of embeddings with --embeddings; it is made by: "
                + command("embeddings", "RUN", "--out", "FOLDER")
            )
        return LEOExperiment(load_embeddings(self.embeddings), self.resolved(), group=group)

    def resolved(self) -> LEOSettings:
        """The settings, with the published numbers where they were asked for."""
        if self.published is None:
            return self.settings
        case = (self.published, self.settings.shots)
        if case not in PUBLISHED:
            known = ", ".join(f"{name} with {shots} shot{'s' if shots > 1 else ''}" for name, shots in PUBLISHED)
            raise ValueError(f"published must be one of {known}; got {self.published} with {self.settings.shots}")
        changes: dict[str, Any] = dict(PUBLISHED[case])
        return dataclasses.replace(self.settings, **changes)

    def evaluate(self, experiment: LEOExperiment, seed: int) -> Evaluation:
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
        return Evaluation(experiment.evaluate("test", self.evaluation_tasks, seed), protocol, model, score="accuracy")


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, train, evaluate, draw."""
    try:
        with started(LEORun(), arguments) as (options, group):
            settings = options.resolved()
            return launch(*placed(options, group, NAME, settings.method, settings.seed), group)
    except USER_ERRORS as error:
        return fail(error)


def launch(options: LEORun, folder: Path, group: Group) -> int:
    """Train, or continue, one run; then evaluate it on held-out tasks."""
    settings = options.resolved()
    experiment = options.experiment(group)
    steps = settings.inner_steps + settings.finetuning_steps
    print(f"LEO ({settings.method}) on {options.embeddings}, seed {settings.seed}; writing to {folder}")

    def report() -> None:
        draw(folder, lambda: {"learning_curve": learning_curve([folder], score="validation/accuracy")})
        if not options.evaluation_tasks:
            return
        experiment.load_state_dict(load_checkpoint(checkpoint_of(folder, "best"))["experiment"])
        evaluation = options.evaluate(experiment, settings.seed)
        evaluation.save(folder / "evaluation.json")
        print(evaluation.table())

    return train_and_report(
        NAME,
        options,
        experiment,
        folder,
        {},
        report,
        group,
        validation_key=f"validation/accuracy/step_{steps}",
        progress_key=f"accuracy/step_{steps}",
        log_every=options.log_every,
    )


if __name__ == "__main__":
    sys.exit(main())
