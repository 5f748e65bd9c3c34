"""Train a prototypical network, whose class prototypes L2F can condition γ on (Table 5)."""

from metarl_l2f.program import as_program

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from metarl_l2f.launchers.image_data import ImageData
from metarl_l2f.launchers.run import (
    USER_ERRORS,
    RunOptions,
    checkpoint_of,
    draw,
    fail,
    placed,
    read_config,
    read_state,
    started,
    train_and_report,
)
from metarl_l2f.parallel.ranks import Group
from metarl_l2f.reports.curves import learning_curve
from metarl_l2f.reports.evaluation import Evaluation
from metarl_l2f.supervised.prototypes import PrototypeSettings, PrototypicalNetwork
from metarl_l2f.training.checkpoint import load as load_checkpoint
from metarl_l2f.training.config import from_json

NAME = "prototypes"
SCORE = "accuracy/step_0"


@dataclass(frozen=True)
class Prototypes(RunOptions):
    """Train an embedding in which images of a class lie together (Snell et al. 2017).

    Its run is named to the image classifier: python launchers/image_classification.py --conditioning prototype
    --prototypes RUN
    """

    settings: PrototypeSettings = field(default_factory=PrototypeSettings)
    """What is learned, and how."""
    images: ImageData = field(default_factory=ImageData)
    """Which images."""
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

    def experiment(self) -> PrototypicalNetwork:
        """A new network of these options."""
        return PrototypicalNetwork(self.images.load(), self.settings)

    def evaluate(self, experiment: PrototypicalNetwork, seed: int) -> Evaluation:
        """Accuracy of the nearest prototype on held-out classes."""
        protocol = {
            "problem": f"images: {self.images.name}",
            **dataclasses.asdict(experiment.shapes["test"]),
            "held_out_tasks": self.evaluation_tasks,
            "seed": seed,
        }
        model = {"method": "prototypical network", "training_seed": self.settings.seed}
        return Evaluation(experiment.evaluate("test", self.evaluation_tasks, seed), protocol, model, score="accuracy")


def load_network(folder: Path) -> PrototypicalNetwork:
    """A trained network from its run's folder: the best by validation.

    Raises:
        ValueError: the folder holds no such run, or a damaged one.
    """
    config = read_config(folder)
    if config["launcher"] != NAME:
        raise ValueError(f"{folder} holds a run of {config['launcher']}.py; give one of prototypes.py")
    options = from_json(Prototypes, config["options"])
    network = options.experiment()
    network.load_state_dict(read_state(checkpoint_of(folder, "best"), "launcher", NAME))
    return network


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, train, evaluate, draw."""
    try:
        with started(Prototypes(), arguments) as (options, group):
            if group.size > 1:
                raise ValueError(
                    f"{NAME}.py learns from one episode at a time, which {group.size} ranks cannot share; start it "
                    "without torchrun"
                )
            return launch(*placed(options, group, NAME, "prototypical", options.settings.seed), group)
    except USER_ERRORS as error:
        return fail(error)


def launch(options: Prototypes, folder: Path, group: Group) -> int:
    """Train, or continue, one run; then evaluate it on held-out episodes."""
    experiment = options.experiment()
    if options.evaluation_tasks:
        experiment.check("test")
    print(f"prototypical network on {options.images.name}, seed {options.settings.seed}; writing to {folder}")

    def report() -> None:
        draw(folder, lambda: {"learning_curve": learning_curve([folder], score="validation/accuracy")})
        if not options.evaluation_tasks:
            return
        experiment.load_state_dict(load_checkpoint(checkpoint_of(folder, "best"))["experiment"])
        evaluation = options.evaluate(experiment, options.settings.seed)
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
        validation_key=f"validation/{SCORE}",
        progress_key=SCORE,
        log_every=options.log_every,
    )


if __name__ == "__main__":
    sys.exit(main())
