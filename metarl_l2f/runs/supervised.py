"""Supervised runs that adapt by gradient steps: options of their launchers, and looks at their networks."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

from matplotlib.figure import Figure
from torch import Tensor

from ..inspection import Inspection
from ..parallel import devices
from ..parallel.ranks import Group
from ..parallel.trees import rows_of
from ..reports.evaluation import Evaluation
from ..supervised.episodes import Task
from ..supervised.experiment import MetaSupervised
from ..supervised.meta_loss import Batching, Problem
from ..supervised.settings import SupervisedSettings
from ..training.checkpoint import load as load_checkpoint
from ..training.run_folder import CHECKPOINT_FILE, RunFolder
from ..training.seeding import Stream, generator
from .options import DeviceOptions, Judged

INSPECTED_TASKS = 25
"""Validation tasks that a look at a run in training takes."""


class ReportedProblem(Problem, Protocol):
    """A problem that says how reports show it."""

    captions: Mapping[str, str]
    """Captions of its own pictures, by the pictures' names."""


@dataclass(frozen=True)
class NetworkOptions(DeviceOptions):
    """Options that every supervised run with an inner loop has; a launcher adds its problem's."""

    settings: SupervisedSettings = field(default_factory=SupervisedSettings)
    """Settings of the method and of its training."""
    validate_every: int = 500
    """Meta-iterations between validations; best.pt keeps the best."""
    checkpoint_every: int = 500
    """Meta-iterations between checkpoints."""
    inspect_every: int = 5_000
    """Meta-iterations between two looks at conflict, attenuation and the landscape of the inner loss on the validation
    tasks, with pictures in TensorBoard; 0 looks never."""
    log_every: int = 100
    """Meta-iterations that one line of metrics averages."""
    batching: Literal[Batching, "auto"] = "auto"
    """Tasks of a chunk together (`vmap`), or one after another (`loop`): a matter of speed, and of the last digits.
    `auto` is `vmap`, but for images on a CPU, where vmapped convolutions are slower, `loop`."""
    task_chunk: int | None = None
    """Tasks per chunk: memory holds the graphs of one chunk per thread. By default 25 that are vmapped, 1 of a loop."""
    compile: bool = False
    """Compile the loss with torch.compile, which needs a C++ compiler: seconds to start, then twice as fast where
    networks are small; rounding differs. On a CUDA device record its gradient instead, which is many times as fast."""

    kind: ClassVar[str] = "supervised learning with an inner loop"
    inspectable: ClassVar[bool] = True
    evaluated_with: ClassVar[tuple[str, ...]] = ("steps", "later_lr_factor")
    convolves: ClassVar[bool] = False
    """Whether the network is made of convolutions."""
    problem_class: ClassVar[type[ReportedProblem]]
    """The class of the problem, which names its score and its pictures."""

    def problem(self) -> Problem:
        """The problem of these options."""
        raise NotImplementedError

    def adapted(self, name: str) -> bool:
        """Whether the inner loop moves a parameter."""
        return True

    def attenuated(self, name: str) -> bool:
        """Whether a parameter is attenuated."""
        return True

    def scores(self, experiment: MetaSupervised, folder: Path, seed: int) -> tuple[Tensor, dict[str, Any]]:
        """Evaluate on held-out tasks.

        Args:
            experiment: trained.
            folder: its run's folder.
            seed: seed of the tasks.
        Returns:
            Scores after 0 … k = evaluation_steps inner steps, (N, k + 1), and the protocol that they were measured by.
        """
        raise NotImplementedError

    def pictures(self, experiment: MetaSupervised, width: float | None = None) -> dict[str, Figure]:
        """The problem's own pictures of what the network makes of tasks, by name; their width in inches."""
        raise NotImplementedError

    def with_method(self, method: str) -> Self:
        return dataclasses.replace(self, settings=SupervisedSettings.for_problem(self.launcher, method))

    def experiment(self, group: Group | None = None) -> MetaSupervised:
        device = devices.prepare(self.device, self.tf32)
        looped = self.convolves and device.type == "cpu" if self.batching == "auto" else self.batching == "loop"
        return MetaSupervised(
            self.problem(),
            self.settings,
            iterations=self.iterations,
            batching="loop" if looped else "vmap",
            task_chunk=(1 if looped else 25) if self.task_chunk is None else self.task_chunk,
            threads=self.threads,
            compiled=self.compile,
            device=device,
            adapted=self.adapted,
            attenuated=self.attenuated,
            group=group,
        )

    def judged(self) -> Judged:
        score, steps = self.problem_class.score_name, self.settings.inner.inner_steps
        return Judged(score, steps, self.problem_class.higher_is_better)

    def to_evaluate(self, threads: int) -> Self:
        return dataclasses.replace(super().to_evaluate(threads), compile=False)

    def check_resumed(self, stored: Mapping[str, Any]) -> None:
        planned = stored["iterations"]
        if self.settings.optimiser.schedule == "cosine" and self.iterations != planned:
            raise ValueError(
                f"iterations cannot change from {planned} to {self.iterations} when {self.resume} is resumed: its "
                "cosine schedule spans them; start a new run, or train with --schedule constant"
            )

    def evaluate(
        self, experiment: MetaSupervised, folder: Path, seed: int, episodes: int | None = None
    ) -> tuple[Evaluation, "NetworkLook"]:
        scores, protocol = self.scores(experiment, folder, seed)
        model = {
            "method": self.method,
            "training_seed": self.seed,
            "inner_steps_trained": self.settings.inner.inner_steps,
        }
        name, digits = self.problem_class.score_name, self.problem_class.score_digits
        evaluation = Evaluation(scores.numpy(), protocol, model, score=name, digits=digits)
        return evaluation, NetworkLook(self, experiment, _inspected_tasks(experiment))

    def look_at_validation(self, experiment: MetaSupervised) -> "NetworkLook":
        return NetworkLook(self, experiment, _inspected_tasks(experiment), experiment.group)

    def look_at_held_out(self, experiment: MetaSupervised, tasks: int) -> "NetworkLook":
        random = generator(self.seed, Stream.EVALUATION, 0)
        return NetworkLook(self, experiment, experiment.problem.sample("test", random, tasks))

    def captions(self) -> Mapping[str, str]:
        return self.problem_class.captions


class NetworkLook:
    """A network on some tasks (`options.Look`).

    Args:
        options: the run's options.
        experiment: trained, or in training.
        tasks: stacked.
        group: the processes that share the tasks; by default this one alone.
    """

    def __init__(
        self, options: NetworkOptions, experiment: MetaSupervised, tasks: Task, group: Group | None = None
    ) -> None:
        self._options, self._experiment, self._tasks, self._group = options, experiment, tasks, group
        self._steps = experiment.settings.inner.inner_steps

    def inspection(self) -> Inspection:
        return self._experiment.meta_loss.inspect(self._tasks, self._steps, self._group)

    def gamma(self) -> Tensor:
        return self._experiment.meta_loss.starts(self._tasks)[0]

    def ends(self, metrics: Mapping[str, float]) -> tuple[float, float] | None:
        score = self._options.judged().score
        before, after = (metrics.get(f"validation/{score}/step_{step}") for step in (0, self._steps))
        return None if before is None or after is None else (before, after)

    def score(self) -> float:
        return float(self._experiment.meta_loss.evaluate(self._tasks, self._steps)[0][:, self._steps].mean())

    def pictures(self, width: float | None = None) -> dict[str, Figure]:
        return self._options.pictures(self._experiment, width)


def _inspected_tasks(experiment: MetaSupervised) -> Task:
    """The validation tasks that a look at a run takes."""
    return rows_of(experiment.validation_tasks(), slice(INSPECTED_TASKS))


def best_states(folder: Path) -> list[dict[str, Any]]:
    """The experiment's states after the best validations that a run kept, best first."""
    ranking = load_checkpoint(folder / CHECKPOINT_FILE)["ranking"]
    return [load_checkpoint(RunFolder(folder).ranked(entry["iteration"]))["experiment"] for entry in ranking]
