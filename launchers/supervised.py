"""What the supervised launchers share: a run's experiment, its evaluation and its pictures."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args

from matplotlib.figure import Figure

from metarl_l2f.diagnostics import collapse_warnings, gap_warning
from metarl_l2f.launchers import run
from metarl_l2f.launchers.run import (
    checkpoint_of,
    draw,
    histograms_of,
    pictures_of,
    placed,
    read_config,
    read_state,
    warns_once,
)
from metarl_l2f.methods import label_of
from metarl_l2f.parallel import devices
from metarl_l2f.parallel.ranks import Group
from metarl_l2f.parallel.trees import rows_of
from metarl_l2f.reports.curves import learning_curve
from metarl_l2f.reports.evaluation import Evaluation
from metarl_l2f.supervised.episodes import Task
from metarl_l2f.supervised.experiment import MetaSupervised
from metarl_l2f.supervised.meta_loss import Batching, Problem
from metarl_l2f.supervised.settings import Method, SupervisedSettings
from metarl_l2f.training.checkpoint import load as load_checkpoint
from metarl_l2f.training.config import from_json
from metarl_l2f.training.metrics import Shown
from metarl_l2f.training.run_folder import CHECKPOINT_FILE, RunFolder

INSPECTED_TASKS = 25
"""Validation tasks that a look at a run in training takes."""
Chosen = TypeVar("Chosen", bound="RunOptions")


@dataclass(frozen=True)
class RunOptions(run.DeviceOptions):
    """Options of a run that every supervised launcher has; each adds its problem's."""

    settings: SupervisedSettings = field(default_factory=SupervisedSettings)
    """What is learned, and how."""
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

    convolves: ClassVar[bool] = False
    """Whether the network is made of convolutions."""

    problem_name: ClassVar[str] = ""
    """What `SupervisedSettings.for_problem` calls the problem."""

    def with_method(self, method: str) -> Self:
        if method not in get_args(Method):
            return self
        return dataclasses.replace(self, settings=SupervisedSettings.for_problem(self.problem_name, method))

    def problem(self) -> Problem:
        """What is to be learned."""
        raise NotImplementedError

    def experiment(self, group: Group | None = None) -> MetaSupervised:
        """A new experiment of these options, shared by a group of processes, or of this one alone."""
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

    def adapted(self, name: str) -> bool:
        """Which parameters the inner loop moves."""
        return True

    def attenuated(self, name: str) -> bool:
        """Which parameters are attenuated."""
        return True

    def evaluate(self, experiment: MetaSupervised, folder: Path, seed: int) -> Evaluation:
        """Scores on held-out tasks after 0 … evaluation_steps inner steps."""
        raise NotImplementedError

    def pictures(self, experiment: MetaSupervised, width: float | None = None) -> dict[str, Figure]:
        """The problem's own pictures of what the network makes of tasks, by name; their width in inches."""
        raise NotImplementedError

    def notes(self, evaluation: Evaluation) -> str:
        """What else to print of an evaluation."""
        return ""

    @property
    def keep_best(self) -> int:
        """How many of the best states by validation are kept."""
        return 1


def load_run(
    kind: type[Chosen],
    folder: Path,
    checkpoint: str = "best",
    threads: int = 1,
    later_lr_factor: float | None = None,
) -> tuple[Chosen, MetaSupervised]:
    """Rebuild a trained experiment from its folder, with its options.

    Args:
        kind: the launcher's options.
        folder: of the run.
        checkpoint: `best` by validation (the latest where none was validated yet), or `latest`.
        threads: CPU threads.
        later_lr_factor: of steps beyond the trained ones; by default as in training.
    Raises:
        ValueError: no run, a damaged checkpoint, or one that does not fit the configuration.
    """
    config = read_config(folder)
    options = dataclasses.replace(
        from_json(kind, config["options"]), threads=threads, compile=False, device="cpu", tf32=False
    )
    experiment = options.experiment()
    experiment.load_state_dict(
        read_state(checkpoint_of(folder, checkpoint), "launcher", config["launcher"], kind.may_change_on_resume)
    )
    if later_lr_factor is not None:
        experiment.learner.inner = dataclasses.replace(experiment.learner.inner, later_lr_factor=later_lr_factor)
    return options, experiment


def best_states(folder: Path) -> list[dict[str, Any]]:
    """The experiment's states after the best validations that a run kept, best first."""
    ranking = load_checkpoint(folder / CHECKPOINT_FILE)["ranking"]
    return [load_checkpoint(RunFolder(folder).ranked(entry["iteration"]))["experiment"] for entry in ranking]


def inspected_tasks(experiment: MetaSupervised) -> Task:
    """The validation tasks that a look at a run takes."""
    return rows_of(experiment.validation_tasks(), slice(INSPECTED_TASKS))


def inspector(experiment: MetaSupervised, options: RunOptions) -> Callable[[Mapping[str, float]], Shown]:
    """Looks at a run in training through its validation tasks: diagnostics, γ, pictures, and warnings."""
    warn, steps, score = warns_once(), experiment.settings.inner.inner_steps, experiment.problem.score_name

    def inspect(metrics: Mapping[str, float]) -> Shown:
        tasks = inspected_tasks(experiment)
        found = experiment.meta_loss.inspect(tasks, steps, experiment.group)
        if not experiment.group.first:
            return Shown({}, {}, {})
        warn(collapse_warnings(experiment.learner, experiment.meta_loss.starts(tasks)[0]))
        before, after = (metrics.get(f"validation/{score}/step_{step}") for step in (0, steps))
        if before is not None and after is not None:
            warn([gap_warning(metrics[f"{score}/step_{steps}"], before, after)])
        pictures = options.pictures(experiment) | pictures_of(found, label_of(experiment.settings.method))
        return Shown(found.metrics(), histograms_of(found.gamma), pictures)

    return inspect


def launch(name: str, options: RunOptions, group: Group) -> int:
    """Train, or continue, one run; then evaluate it on held-out tasks and draw its pictures.

    Args:
        name: the launcher's, for the default folder and the command that resumes.
        options: parsed.
        group: the processes that share the run.
    Returns:
        The exit status.
    """
    settings = options.settings
    options, folder = placed(options, group, name, settings.method, settings.seed)
    if options.resume is not None and settings.optimiser.schedule == "cosine":
        planned = group.from_first(lambda: read_config(folder)["options"]["iterations"])
        if options.iterations != planned:
            raise ValueError(
                f"iterations cannot change from {planned} to {options.iterations} when {folder} is resumed: its cosine "
                "schedule spans them; start a new run, or train with --schedule constant"
            )
    experiment = options.experiment(group)
    print(f"{label_of(settings.method)} on {name.replace('_', ' ')}, seed {settings.seed}; writing to {folder}")
    problem = experiment.problem
    score = f"{problem.score_name}/step_{settings.inner.inner_steps}"

    def report() -> None:
        draw(folder, lambda: {"learning_curve": learning_curve([folder], score=f"validation/{problem.score_name}")})
        if not options.evaluation_tasks:
            return
        experiment.load_state_dict(load_checkpoint(checkpoint_of(folder, "best"))["experiment"])
        evaluation = options.evaluate(experiment, folder, settings.seed)
        evaluation.save(folder / "evaluation.json")
        draw(folder, lambda: options.pictures(experiment))
        tasks, steps = inspected_tasks(experiment), settings.inner.inner_steps
        draw(folder, lambda: pictures_of(experiment.meta_loss.inspect(tasks, steps), label_of(settings.method)))
        print("\n".join(filter(None, [evaluation.table(), options.notes(evaluation)])))

    try:
        return run.train_and_report(
            name,
            options,
            experiment,
            folder,
            {},
            report,
            group,
            validation_key=f"validation/{score}",
            progress_key=score,
            log_every=options.log_every,
            higher_is_better=problem.higher_is_better,
            keep_best=options.keep_best,
            inspect=inspector(experiment, options) if options.inspect_every else None,
            inspect_every=options.inspect_every or 1,
        )
    finally:
        experiment.close()
