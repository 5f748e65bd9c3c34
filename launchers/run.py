"""What all training launchers share: options of a run, reading them, training with resume."""

import contextlib
import dataclasses
import inspect
import itertools
import json
import logging
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from metarl_l2f.diagnostics import Inspection
from metarl_l2f.parallel.memory import keep_freed_memory
from metarl_l2f.parallel.ranks import Group, RankError, StoppedError, join
from metarl_l2f.reports.diagnostics import by_layer, gamma_heatmap
from metarl_l2f.reports.page import REPORT_FILE, write_report
from metarl_l2f.reports.style import save
from metarl_l2f.training.checkpoint import CheckpointError
from metarl_l2f.training.checkpoint import load as load_checkpoint
from metarl_l2f.training.config import command, flat, from_json, provenance, to_json
from metarl_l2f.training.files import writing
from metarl_l2f.training.loop import Experiment, Outcome, optional, train
from metarl_l2f.training.run_folder import BEST_FILE, CHECKPOINT_FILE, CONFIG_FILE, RunFolder

logger = logging.getLogger(__name__)

USER_ERRORS: tuple[type[Exception], ...] = (ValueError, OSError, RankError)
"""What ends a program with one clear message instead of a traceback."""
Options = TypeVar("Options", bound="RunOptions")
Read = TypeVar("Read")


def own_cores() -> int:
    """Cores that this process may use, for each of the ranks that torchrun started on this machine."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return max(1, len(mine) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that every training launcher has; each adds its own."""

    iterations: int = 500
    """Meta-iterations in all; may be raised when resuming."""
    log_dir: Path | None = None
    """Folder of the run; by default runs/LAUNCHER/TIME_METHOD_SEED."""
    resume: Path | None = None
    """Folder of a run to continue, exactly as if it had never stopped. Its own options are the defaults."""
    threads: int = field(default_factory=own_cores)
    """CPU threads, by default as many as there are cores for each rank; changes no number."""
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

    def __post_init__(self) -> None:
        self.check_at_least(evaluation_tasks=0, evaluation_steps=0)

    def check_at_least(self, **least: int) -> None:
        """Refuse options below the numbers given for them."""
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} must be {smallest} or more, got {getattr(self, name)}")

    def with_method(self, method: str) -> Self:
        """These options with a method's own settings; an unknown name changes nothing, for the parser to refuse."""
        return self

    def folder(self, name: str, method: str, seed: int) -> Path:
        """Where the run goes, for a launcher's name."""
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        return self.log_dir or Path("runs") / name / f"{stamp}_{method}_seed{seed}"


@dataclass(frozen=True)
class DeviceOptions(RunOptions):
    """Options of a run that can learn on a GPU."""

    device: str = "cpu"
    """Where learning happens: `cpu`, or `cuda`; environments and data stay on the CPU. Rounding differs."""
    tf32: bool = False
    """On a CUDA device, round the factors of products to TF32: faster, with about three digits."""

    may_change_on_resume = (*RunOptions.may_change_on_resume, "device", "tf32")


def fail(message: object) -> int:
    """Print one clear error, with the notes that an exception carries; returns the exit status."""
    if isinstance(message, StoppedError):  # Rank 0 prints it.
        return 2
    print("; ".join([f"error: {message}", *getattr(message, "__notes__", [])]), file=sys.stderr)
    return 2


def read_alone(kind: type[Read], arguments: list[str] | None) -> Read:
    """The command line of a program that does not train, so that ranks cannot share its work.

    Args:
        kind: of its options.
        arguments: the command line; by default the process's own.
    Raises:
        ValueError: torchrun started several ranks; StoppedError on all but rank 0.
    """
    ranks = int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if ranks > 1:
        sentence = f"only training is shared: each of {ranks} ranks would do all of this; start it without torchrun"
        raise ValueError(sentence) if os.environ["RANK"] == "0" else StoppedError(sentence)
    return tyro.cli(kind, args=arguments)


@contextlib.contextmanager
def started(default: Options, arguments: list[str] | None = None) -> Iterator[tuple[Options, Group]]:
    """A training launcher's options, and the ranks that share its run, where torchrun started some.

    Of the ranks only rank 0 speaks, and reads the folder of a resumed run.

    Args:
        default: its options without flags.
        arguments: the command line; by default the process's own.
    Raises:
        ValueError: an option is wrong, or the group may be started again, but would not find its run.
        RankError: the others cannot be reached.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    quiet_machine()
    with join(_rank_timeout(default, arguments)) as group, contextlib.ExitStack() as silence:
        if not group.first:
            nowhere = silence.enter_context(open(os.devnull, "w", encoding="utf-8"))
            silence.enter_context(contextlib.redirect_stdout(nowhere))
            logging.disable(logging.WARNING)
        options = parse(default, arguments, group)
        if group.restarts and options.log_dir is None:
            raise ValueError(
                "torchrun may restart this run (--max-restarts), and then must find it again: name its folder with "
                "--log-dir"
            )
        yield options, group


def parse(default: Options, arguments: list[str] | None = None, group: Group | None = None) -> Options:
    """Read the command line; --method sets all defaults to the method's own, which further flags override.

    With --resume the stored run's options are the defaults, and what defines it stays.

    Args:
        default: the options without flags.
        arguments: the command line; by default the process's own.
        group: the processes that share the run, of which rank 0 reads the stored options.
    Raises:
        ValueError: an option that defines the run was changed on resume.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    resumed = _resumed_folder(arguments)
    if resumed is not None:
        stored = (group or Group()).from_first(lambda: _resumed_options(resumed, _launcher_of(default)))
        default = dataclasses.replace(
            from_json(type(default), stored), rank_timeout=default.rank_timeout, log_dir=resumed, resume=resumed
        )
    elif method := _value_of("--method", arguments):
        default = default.with_method(method)
    options = tyro.cli(type(default), default=default, args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    if resumed is not None:
        if options.log_dir is not None and options.log_dir.resolve() != resumed.resolve():
            raise ValueError(
                f"a resumed run stays in its own folder, {resumed}, but log_dir is {options.log_dir}; drop --log-dir, "
                "or resume a copy"
            )
        options = dataclasses.replace(options, log_dir=resumed, resume=resumed)
        if changed := _changed(default, options):
            raise ValueError(
                f"{', '.join(changed)} cannot change when {resumed} is resumed: it would be another run; drop the "
                "flags, or start a new run without --resume"
            )
    return options


def _changed(before: RunOptions, now: RunOptions) -> list[str]:
    """Options that differ, though they may not in one run."""
    old, new = to_json(before), to_json(now)
    return sorted(name for name in old if old[name] != new[name] and name not in now.may_change_on_resume)


def _resumed_folder(arguments: list[str]) -> Path | None:
    values = _values_of("--resume", arguments)
    if len(values) > 1:
        raise ValueError(f"resume must be given once, got {' and '.join(map(str, values))}; name one run")
    return Path(values[0]) if values and values[0] is not None else None


def _launcher_of(options: RunOptions) -> str:
    """The name of the launcher whose options these are: that of the file which defines them."""
    return Path(inspect.getfile(type(options))).stem


def _resumed_options(run: Path, launcher: str) -> dict[str, Any]:
    """The stored options of a run that a launcher made."""
    config = read_config(run)
    if (made_by := str(config.get("launcher"))) != launcher:
        raise ValueError(
            f"{run} is a run of {made_by}.py, not of {launcher}.py; go on with: {command(made_by, '--resume', run)}"
        )
    return config["options"]


def _rank_timeout(default: RunOptions, arguments: list[str]) -> float:
    """The time-out with which ranks meet, before the rest of the command line is read."""
    value = _value_of("--rank-timeout", arguments)
    try:
        return default.rank_timeout if value is None else float(value)
    except ValueError:
        return default.rank_timeout  # Reading the command line explains what is wrong with it.


def _value_of(flag: str, arguments: list[str]) -> str | None:
    """The value of a flag on the command line; None without it. Of several the last one counts, as for the parser."""
    return (_values_of(flag, arguments) or [None])[-1]


def _values_of(flag: str, arguments: list[str]) -> list[str | None]:
    """The values of a flag on the command line, each as `--flag value` or `--flag=value`."""
    values = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        name, assigned, value = argument.partition("=")
        if name.replace("_", "-") == flag:
            values.append(value if assigned else following)
    return values


def read_config(run: Path) -> dict[str, Any]:
    """A run's config.json.

    Raises:
        ValueError: the folder holds no run, or its configuration is damaged.
    """
    path = Path(run) / CONFIG_FILE
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{run} holds no run: there is no {path}; give the folder that a launcher wrote") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore it, or start a new run") from error
    if not isinstance(content, dict) or not isinstance(content.get("options"), dict):
        raise ValueError(f"{path} is not a run's configuration: it has no options; restore it, or start a new run")
    return content


def checkpoint_of(run: Path, checkpoint: str) -> Path:
    """The file of a run's `best` checkpoint by validation, or of its `latest`.

    Where no validation was done yet, the best is the latest, which a warning says.

    Raises:
        CheckpointError: the best one is gone.
    """
    best, latest = Path(run) / BEST_FILE, Path(run) / CHECKPOINT_FILE
    if checkpoint != "best":
        return latest
    if not best.exists():
        content = load_checkpoint(latest)
        if ranking := content.get("ranking"):
            raise CheckpointError(
                f"{best} is missing, though the validation after iteration {ranking[0]['iteration']} was the best; put "
                f"it back, or copy {CHECKPOINT_FILE} there to take the latest, of iteration {content['iteration']}"
            )
        logger.warning("%s has no %s, for no validation gave a number yet; taking %s", run, BEST_FILE, CHECKPOINT_FILE)
        return latest
    return best


def read_state(
    checkpoint: Path, key: str, expected: Any, may_change: Collection[str] = DeviceOptions.may_change_on_resume
) -> dict[str, Any]:
    """An experiment's state from a checkpoint that was trained on what is expected.

    Args:
        checkpoint: the file, in its run's folder.
        key: of the entry of config.json that says what was trained on, such as `environment`.
        expected: its value.
        may_change: options that need not be those of config.json.

    Raises:
        CheckpointError: it is missing, damaged, of another kind or problem, or was trained with other options.
    """
    content = load_checkpoint(checkpoint)
    try:
        trained_on, state = content["config"][key], content["experiment"]
    except (KeyError, TypeError):
        raise CheckpointError(f"{checkpoint} holds no such experiment: no {key}; give the folder of a run") from None
    if trained_on != expected:
        raise CheckpointError(
            f"{checkpoint} was trained on {trained_on}, but the run is on {expected}; put the run's own checkpoint back"
        )
    own, said = (flat(found["options"]) for found in (content["config"], read_config(checkpoint.parent)))
    edited = sorted(name for name in own.keys() & said.keys() if own[name] != said[name] and name not in may_change)
    if edited:
        raise CheckpointError(
            f"{checkpoint} was trained with other options than {CONFIG_FILE} says: "
            + ", ".join(f"{name} {own[name]} (not {said[name]})" for name in edited)
            + "; put back what was there"
        )
    return state


def placed(options: Options, group: Group, name: str, method: str, seed: int) -> tuple[Options, Path]:
    """The options, and the run's folder: the same for all ranks.

    Under torchrun a run that the folder already holds is continued, if it is this one: torchrun starts a group again
    with the command that it was first started with.
    """

    def found() -> tuple[Path, bool]:
        folder = options.folder(name, method, seed)
        if group.restarts is None or options.resume is not None or not (folder / CONFIG_FILE).exists():
            return folder, options.resume is not None
        stored = read_config(folder)
        same = stored["launcher"] == name and not _changed(from_json(type(options), stored["options"]), options)
        return folder, same

    folder, resuming = group.from_first(found)
    return dataclasses.replace(options, resume=folder if resuming else None), folder


def quiet_machine() -> None:
    """Set what makes training fast: threads work on whole tasks (parallel/shards.py), not inside an operation."""
    torch.set_num_threads(1)
    keep_freed_memory()


def question_of(options: RunOptions) -> str:
    """What a run is about: the first paragraph of its options' docstring."""
    return " ".join((inspect.getdoc(type(options)) or "").partition("\n\n")[0].split())


def warns_once() -> Callable[[Iterable[str | None]], None]:
    """A function that logs warnings, each of them once however often it comes."""
    told: set[str] = set()

    def warn(sentences: Iterable[str | None]) -> None:
        for sentence in filter(None, sentences):
            key = re.sub(r"[0-9.]+", "", sentence)  # Numbers move on, the warning stays the same.
            if key not in told:
                logger.warning(sentence)
            told.add(key)

    return warn


def histograms_of(gamma: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """γ of every tensor over tasks and entries, by tag."""
    return {f"gamma/{name}": values.flatten().numpy() for name, values in gamma.items()}


def pictures_of(found: Inspection, label: str) -> dict[str, Figure]:
    """What a run's tasks disagree about, layer by layer, and what γ keeps of every tensor for each of them."""
    conflict = {label: [{layer: float(angles.mean()) for layer, angles in found.conflict.items()}]}
    unrelated = math.acos(1 / math.sqrt(len(found.conflict["network"])))
    pictures = {"conflict": by_layer(conflict, "conflict, rad", reference=unrelated)}
    return pictures | ({"gamma": gamma_heatmap(found.gamma)} if found.gamma else {})


@contextlib.contextmanager
def _resumable(name: str, folder: Path, group: Group) -> Iterator[None]:
    """Have a signal that stops what is inside say how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if group.first and (folder / CONFIG_FILE).exists():
            stop.add_note(_how_to_go_on(name, folder))
        raise


def _how_to_go_on(name: str, folder: Path) -> str:
    return f"go on with:\n  {command(name, '--resume', folder)}"


def draw(folder: Path, pictures: Callable[[], Mapping[str, Figure]]) -> None:
    """Save pictures of a run that is done, by name; without those that fail, which a warning names.

    Args:
        folder: of the run.
        pictures: makes them.
    """
    made: Mapping[str, Figure] = {}
    with optional("a picture"):
        made = pictures()
    for name, figure in made.items():
        with optional(f"the picture {name}"):
            save(figure, folder / f"{name}.png")


def _has_its_report(folder: Path, options: RunOptions) -> bool:
    """Whether a run was reported on since its last checkpoint, with these options."""
    try:
        newer = (folder / REPORT_FILE).stat().st_mtime >= (folder / CHECKPOINT_FILE).stat().st_mtime
    except FileNotFoundError:
        return False
    stored, asked = read_config(folder)["options"], to_json(options)
    return newer and all(stored.get(name) == asked[name] for name in options.of_report)


def train_and_report(
    name: str,
    options: RunOptions,
    experiment: Experiment,
    folder: Path,
    config: dict[str, Any],
    report: Callable[[], None],
    group: Group,
    **how: Any,
) -> int:
    """Train, or continue, one run, and report on it when it is done; one that is done and reported on stays as it is.

    Args:
        name: the launcher's, for the command that resumes.
        options: parsed.
        experiment: freshly built.
        folder: of the run.
        config: what config.json holds, but for the launcher, the options and where the numbers come from.
        report: evaluates, draws and prints, once training is done; rank 0 does it, and the others wait for it.
        group: the processes that share the run.
        how: further arguments of `training.loop.train`.
    Returns:
        The exit status.
    """
    begin = time.monotonic()

    def reported(outcome: Outcome) -> None:
        if outcome.start == outcome.iteration and _has_its_report(folder, options):
            print(f"{folder / REPORT_FILE} is up to date; to evaluate otherwise: {command('evaluate', folder)}")
            return
        print(f"iteration {outcome.iteration} done, {time.monotonic() - begin:.0f} s")
        with writing(folder):
            report()
            write_report(folder, question_of(options))
        print("wrote " + ", ".join(sorted(str(path) for path in folder.glob("*.[jph][snt][ogm]*"))))

    def check() -> None:
        if options.resume is not None and (folder / CHECKPOINT_FILE).exists():
            for key, expected in {**config, "launcher": name}.items():
                read_state(RunFolder(folder).newest(), key, expected, options.may_change_on_resume)

    with _resumable(name, folder, group):
        group.from_first(check)
        outcome = train(
            experiment,
            folder,
            iterations=options.iterations,
            config={"launcher": name, **config, "options": to_json(options), **provenance()},
            resume=options.resume is not None,
            validate_every=options.validate_every,
            checkpoint_every=options.checkpoint_every,
            group=group,
            **how,
        )
        if outcome.interrupted is not None:
            print(
                f"stopped after iteration {outcome.iteration} by {signal.Signals(outcome.interrupted).name}; "
                f"{_how_to_go_on(name, folder)}"
            )
            return 128 + outcome.interrupted
        group.from_first(lambda: reported(outcome))
        return 0
