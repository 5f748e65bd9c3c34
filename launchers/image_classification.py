"""Meta-train a few-shot image classifier: tell N classes apart from K images each."""

from metarl_l2f.program import as_program

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure
from torch import Tensor

from metarl_l2f.reports.evaluation import Evaluation
from metarl_l2f.reports.fits import few_shot_episode
from metarl_l2f.runs.images import ImageData
from metarl_l2f.runs.launch import launch
from metarl_l2f.runs.load import load_run_of
from metarl_l2f.runs.supervised import NetworkOptions, best_states
from metarl_l2f.supervised.classification import Classifier, ImageProblem, in_inner_loop, is_head
from metarl_l2f.supervised.episodes import Shape
from metarl_l2f.supervised.experiment import MetaSupervised
from metarl_l2f.supervised.settings import SupervisedSettings
from metarl_l2f.training.seeding import Stream, generator

Protocol = Literal["best", "official"]


@dataclass(frozen=True)
class ImageClassification(NetworkOptions):
    """Meta-train a classifier that learns N new classes from K images of each.

    Without flags this is L2F, with γ read off normalised gradients from 0.9, on Glyphs, letters of many scripts that
    come with the package, 5-way 1-shot. First-order MAML is --method maml --first-order; Meta-SGD --method maml
    --learn-inner-lr --inner-lr-scope weight; ANIL --adapt head; MAML++ --learn-inner-lr --per-step-norm
    --multi-step-iterations 5000 --first-order-iterations 2000 --inner-steps 5

    --method NAME alone sets a method's own parts and constants, which further flags override: l2f (the default), maml,
    promp+l2f and many more, which launchers/methods.py lists.
    """

    settings: SupervisedSettings = field(default_factory=lambda: SupervisedSettings.for_problem("image_classification"))
    """Settings of the method and of its training."""
    images: ImageData = field(default_factory=ImageData)
    """The data set."""
    shape: Shape = field(default_factory=Shape)
    """Numbers of classes and images of an episode."""
    classifier: Classifier = field(default_factory=Classifier)
    """The network."""
    distort: bool = False
    """Turn, stretch, shear and shift the images of training tasks a little, differently each time they are drawn."""
    adapt: Literal["all", "head"] = "all"
    """Parameters that the inner loop moves: everything but the normalisation, or the last layer alone (ANIL)."""
    prototypes: Path | None = None
    """Run of launchers/prototypes.py whose class prototypes γ is read off; with --conditioning prototype (Table 5)."""
    iterations: int = 5_000
    """Meta-iterations in all; may be raised when resuming, unless the schedule depends on it."""
    validate_every: int = 250
    """Meta-iterations between validations; best.pt keeps the best."""
    checkpoint_every: int = 50
    """Meta-iterations between checkpoints."""
    inspect_every: int = 1_000
    """Meta-iterations between two looks at conflict, attenuation and the landscape of the inner loss on the validation
    tasks, with pictures in TensorBoard; 0 looks never."""
    log_every: int = 10
    """Meta-iterations that one line of metrics averages."""
    evaluation_tasks: int = 600
    """Held-out tasks of the evaluation at the end; 0 skips it."""
    evaluation_steps: int = 0
    """Inner steps of the evaluation at the end; 0 takes as many as in training."""
    protocol: Protocol = "best"
    """Protocol of the evaluation: the `best` model by validation, or the `official` code's, which averages the logits
    of the three best. Both print honest 95 % intervals over tasks, the second the official code's ± too."""

    problem_class = ImageProblem
    convolves = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapt == "head" and self.settings.inner.adapts in ("body", "context"):
            raise ValueError(
                f"adapt='head' moves the last layer alone, but method {self.settings.method!r} adapts the "
                f"{self.settings.inner.adapts}; leave out --adapt head, or choose another method"
            )

    @property
    def keep_best(self) -> int:
        """The number of best models that validation keeps."""
        return 3 if self.protocol == "official" else 1

    def problem(self) -> ImageProblem:
        prototypical = None if self.prototypes is None else load_run_of("prototypes", self.prototypes)
        return ImageProblem(
            *(self.images.load(), self.shape, self.classifier, self.settings.inner.inner_steps),
            *(prototypical, self.distort, self.settings.context_size),
        )

    def adapted(self, name: str) -> bool:
        return is_head(name) if self.adapt == "head" else in_inner_loop(name)

    def attenuated(self, name: str) -> bool:
        return in_inner_loop(name)

    def scores(self, experiment: MetaSupervised, folder: Path, seed: int) -> tuple[Tensor, dict[str, Any]]:
        """Accuracy on held-out classes."""
        steps = self.evaluation_steps or self.settings.inner.inner_steps
        states = best_states(folder) if self.protocol == "official" else []
        scores = experiment.evaluate(self.evaluation_tasks, steps, seed, states=states)
        protocol = {
            "problem": f"images: {self.images.name}",
            **dataclasses.asdict(self.shape),
            "held_out_tasks": self.evaluation_tasks,
            "protocol": self.protocol,
            "seed": seed,
        }
        return scores, protocol

    def notes(self, evaluation: Evaluation) -> str:
        """The ± of the official protocol, if chosen: the standard deviation of single answers, right or wrong."""
        if self.protocol != "official":
            return ""
        accuracy = float(evaluation.scores[:, -1].mean())
        deviation = math.sqrt(accuracy * (1 - accuracy))
        return (
            f"official protocol, three models: {100 * accuracy:.2f} ± {100 * deviation:.2f} % (its ± is "
            "the standard deviation of single answers, not an interval)"
        )

    def pictures(self, experiment: MetaSupervised, width: float | None = None) -> dict[str, Figure]:
        """One held-out episode: the images that it learns from, and how it classifies new ones."""
        random = generator(self.settings.seed, Stream.EVALUATION)
        task = experiment.problem.sample("test", random, 1)
        _, _, outputs = experiment.meta_loss.evaluate(task, self.settings.inner.inner_steps)
        return {"episode": few_shot_episode(task, outputs, width=width)}


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, train, evaluate, draw."""
    return launch(ImageClassification(), arguments)


if __name__ == "__main__":
    sys.exit(main())
