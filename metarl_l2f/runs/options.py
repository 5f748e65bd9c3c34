"""Options of a run, and what they tell `launch` of the experiment that they describe.

A launcher's options derive from `reinforcement.PolicyOptions` or `supervised.NetworkOptions`, which know their kind of
experiment, or from `RunOptions` alone.
"""

import dataclasses
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from matplotlib.figure import Figure
from torch import Tensor

from ..checks import check_count
from ..inspection import Inspection
from ..methods import label_of
from ..parallel.ranks import Group
from ..reports.evaluation import Evaluation
from ..training.config import to_json


class Judged(NamedTuple):
    """The score by which a run is judged.

    Training logs it as SCORE/step_STEP, and validation as validation/SCORE/step_STEP.
    """

    score: str
    """Its name, such as `return`."""
    step: int
    """The number of inner steps after which it is measured."""
    higher_is_better: bool = True
    curve: str = ""
    """Prefix of the tags that the learning curve draws; by default those of validation."""

    @property
    def tag(self) -> str:
        """The score's name among the metrics of training."""
        return f"{self.score}/step_{self.step}"

    @property
    def drawn(self) -> str:
        """Prefix of the tags of the learning curve."""
        return self.curve or f"validation/{self.score}"


class Look(Protocol):
    """A trained experiment on some tasks: what is measured of it, and drawn."""

    def inspection(self) -> Inspection:
        """Conflict, γ, gradients and landscape, by task; every process that shares the tasks computes its part."""

    def gamma(self) -> Tensor:
        """γ of every task, (N, L); (N, 0) for MAML."""

    def ends(self, metrics: Mapping[str, float]) -> tuple[float, float] | None:
        """The mean score before adaptation and after the last trained step; None where it was not measured.

        Args:
            metrics: those of the iteration in which the look was taken.
        """

    def score(self) -> float:
        """The mean score after the last trained step, measured again with the parameters as they are now."""

    def pictures(self, width: float | None = None) -> Mapping[str, Figure]:
        """The problem's own pictures, by name; their width in inches."""


def own_cores() -> int:
    """Cores that this process may use, for each of the ranks that torchrun started on this machine."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return max(1, len(mine) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@dataclass(frozen=True)
class RunOptions:
    """Options that every run has; a launcher adds its own."""

    settings: Any = None
    """Settings of the method and of its training."""
    iterations: int = 500
    """Meta-iterations in all; may be raised when resuming."""
    log_dir: Path | None = None
    """Folder of the run; by default runs/LAUNCHER/TIME_METHOD_SEED."""
    resume: Path | None = None
    """Folder of a run to continue, exactly as if it had never stopped. Its own options are the defaults."""
    rank_timeout: float = 300.0
    """Under torchrun, seconds that a rank waits for the others before it gives up, and says so. A run that is resumed
    does not remember it."""
    validate_every: int = 10
    """Meta-iterations between validations; best.pt keeps the best."""
    checkpoint_every: int = 1
    """Meta-iterations between checkpoints."""
    evaluation_tasks: int = 40
    """Held-out tasks of the evaluation at the end; 0 skips it."""
    evaluation_steps: int = 3
    """Inner steps of the evaluation at the end."""

    of_report: ClassVar[tuple[str, ...]] = ("evaluation_tasks", "evaluation_steps")
    """Options that only the report depends on."""
    may_change_on_resume: ClassVar[tuple[str, ...]] = (
        *("iterations", "threads", "rank_timeout", "resume", "log_dir", "checkpoint_every", "inspect_every"),
        *of_report,
    )
    retired: ClassVar[tuple[str, ...]] = ()
    """Options that runs of earlier versions stored and that changed no number; they are ignored."""
    evaluated_with: ClassVar[tuple[str, ...]] = ()
    """Those of `episodes`, `steps` and `later_lr_factor` that evaluate.py may choose."""
    inspectable: ClassVar[bool] = False
    """Whether there is conflict, attenuation and the like to look at."""
    kind: ClassVar[str] = "any kind"
    """The kind of the run, which errors name."""
    # Defaults where a launcher has no such option.
    log_every = 1
    inspect_every = 0

    def __post_init__(self) -> None:
        self.check_at_least(evaluation_tasks=0, evaluation_steps=0)

    def check_at_least(self, **least: int) -> None:
        """Refuse options below the numbers given for them."""
        for name, smallest in least.items():
            check_count(name, getattr(self, name), smallest)

    # --- What a run is called ---

    @property
    def launcher(self) -> str:
        """The name of the launcher whose options these are: that of the file which defines them."""
        return Path(inspect.getfile(type(self))).stem

    @property
    def method(self) -> str:
        """The method's name, as the run's folder has it."""
        return str(self.settings.method)

    @property
    def seed(self) -> int:
        """Seed of everything random in training."""
        return int(self.settings.seed)

    def title(self) -> str:
        """The method and the problem, in words."""
        return f"{label_of(self.method)} on {self.launcher.replace('_', ' ')}"

    @classmethod
    def question(cls) -> str:
        """The question that a run answers: the first paragraph of the launcher's help."""
        return " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())

    def folder(self) -> Path:
        """The folder of a new run."""
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        return self.log_dir or Path("runs") / self.launcher / f"{stamp}_{self.method}_seed{self.seed}"

    # --- What is trained ---

    def with_method(self, method: str) -> Self:
        """These options with a method's own settings; an unknown name changes nothing, for the parser to refuse."""
        return self

    def experiment(self, group: Group | None = None) -> Any:
        """A new experiment of these options, which `training.loop.train` takes, and which has a `close`.

        Args:
            group: the processes that share it; by default this one alone.
        """
        raise NotImplementedError

    def trained_on(self) -> dict[str, Any]:
        """Entries of config.json that describe the problem beside the options; a run that stored others is refused."""
        return {}

    def judged(self) -> Judged:
        """The score that training is judged by."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """Entries of config.json that every checkpoint of the run must share."""
        return {"launcher": self.launcher, **to_json(self.trained_on())}

    def to_evaluate(self, threads: int) -> Self:
        """These options for an evaluation: on the CPU, with so many threads."""
        return self

    def check_resumed(self, stored: Mapping[str, Any]) -> None:
        """Refuse to continue a run with these options.

        Args:
            stored: the run's own options, as config.json has them.
        """

    def check_report(self, experiment: Any, group: Group) -> None:
        """Refuse, before training, what the report at the end could not be made of."""

    @property
    def keep_best(self) -> int:
        """The number of best states by validation that are kept."""
        return 1

    # --- What is shown of it ---

    def evaluate(
        self, experiment: Any, folder: Path, seed: int, episodes: int | None = None
    ) -> tuple[Evaluation, Look | None]:
        """Scores on `evaluation_tasks` held-out tasks after 0 … `evaluation_steps` inner steps, and a look at them.

        Args:
            experiment: trained.
            folder: its run's folder.
            seed: seed of tasks and noise.
            episodes: number per task, before adaptation and after every step; by default as in training.
        """
        raise NotImplementedError

    def usual_evaluation(self) -> Self:
        """These options as evaluate.py takes them without flags: by default the run's own, if it was evaluated."""
        return (
            self if self.evaluation_tasks else dataclasses.replace(self, evaluation_tasks=type(self)().evaluation_tasks)
        )

    def notes(self, evaluation: Evaluation) -> str:
        """Further lines to print below an evaluation."""
        return ""

    def look_at_validation(self, experiment: Any) -> Look:
        """The experiment on its run's validation tasks, by all processes that share it."""
        raise NotImplementedError

    def look_at_held_out(self, experiment: Any, tasks: int) -> Look | None:
        """The experiment on so many held-out tasks; None where nothing is inspected."""
        return None

    def captions(self) -> Mapping[str, str]:
        """Captions of the problem's own pictures in the report, by the pictures' names."""
        return {}

    def side_by_side(self, runs: Mapping[str, Path], width: float) -> dict[str, Figure]:
        """Pictures that show several runs of this launcher, by name; each replaces those of single runs.

        Args:
            runs: folders, by what pictures call them.
            width: width of the pictures, inches.
        """
        return {}


@dataclass(frozen=True)
class DeviceOptions(RunOptions):
    """Options of a run that computes on several threads, or on a GPU."""

    threads: int = field(default_factory=own_cores)
    """CPU threads, by default as many as there are cores for each rank; changes no number."""
    device: str = "cpu"
    """Device on which learning happens: `cpu`, or `cuda`; environments and data stay on the CPU. Rounding differs."""
    tf32: bool = False
    """On a CUDA device, round the factors of products to TF32: faster, with about three digits."""

    may_change_on_resume = (*RunOptions.may_change_on_resume, "device", "tf32")

    def to_evaluate(self, threads: int) -> Self:
        return dataclasses.replace(self, threads=threads, device="cpu", tf32=False)
