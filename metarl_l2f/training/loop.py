"""The outer loop of every run: iterate, validate, log, save; stop and continue anywhere without changing a number.

After each iteration the metrics line is written first, then best.pt, then checkpoint.pt. So a crash can only leave more
than checkpoint.pt accounts for, never less; a resumed run drops what is more and computes it again, bit for bit. The
checkpoint before stays as previous.pt, from which a run goes on if checkpoint.pt was damaged.

With several ranks, all of them iterate, validate and inspect together; rank 0 alone reads and writes the folder.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, Self

from tqdm import tqdm

from ..checks import check_counts
from ..parallel.ranks import Group, RankError, TogetherError
from . import checkpoint
from .files import write_atomically, writing
from .metrics import MetricsLog, Shown
from .run_folder import NOTHING_DONE, Ranking, RunFolder, ranked

logger = logging.getLogger(__name__)

# Seconds between two drawings of the progress bar, on a terminal and in a log file.
TERMINAL_INTERVAL = 0.2
FILE_INTERVAL = 60.0

STANDARD_ERROR = 2  # Its file descriptor.

Window = dict[str, tuple[float, int]]
"""Sum and number of what was measured since the last line of metrics, by tag."""
Best = dict[str, Any] | None
"""The "iteration" and "value" of the best validation so far."""
NOTHING_SHOWN = Shown({}, {}, {})


class Experiment(Protocol):
    """The interface of what `train` trains. `iterate` depends on nothing but the state and the iteration's number.

    Random numbers therefore come from `seeding.generator`, keyed by the iteration, and from no generator that is kept.
    """

    def iterate(self, iteration: int) -> dict[str, float]:
        """Do one meta-iteration, numbered from 1, and return its metrics by tag."""
        ...

    def validate(self, iteration: int) -> dict[str, float]:
        """Measure on held-out tasks, after this iteration, without changing the state; return metrics by tag."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue, as `checkpoint.save` takes it."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        ...


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    start: int
    """Iterations that were done before this call; equal to `iteration` if there was nothing left to do."""
    iteration: int
    """Iterations that are done now."""
    best: Best
    """The "iteration" and "value" of the best validation so far, whose state is in best.pt; None before the first."""
    interrupted: int | None
    """The signal that asked to stop (SIGINT or SIGTERM), else None."""


@contextlib.contextmanager
def optional(what: str) -> Iterator[None]:
    """Go on after an error in here, which a warning names; but not without the other ranks.

    Args:
        what: the name of what is done, for the warning, such as `the inspection after iteration 100`.
    """
    try:
        yield
    except RankError:
        raise
    except Exception as error:
        cause = str(error) if isinstance(error, TogetherError) else f"{type(error).__name__}: {error}"
        logger.warning("%s failed, and the run goes on without it: %s", what, cause)
        logger.debug("%s failed", what, exc_info=True)


def train(
    experiment: Experiment,
    directory: Path,
    *,
    iterations: int,
    config: Mapping[str, Any],
    resume: bool,
    validate_every: int,
    validation_key: str,
    progress_key: str,
    checkpoint_every: int = 1,
    log_every: int = 1,
    higher_is_better: bool = True,
    keep_best: int = 1,
    inspect: Callable[[Mapping[str, float]], Shown] | None = None,
    inspect_every: int = 1,
    group: Group | None = None,
) -> Outcome:
    """Train to a number of iterations, starting or continuing the run in a folder.

    SIGINT (Ctrl-C) and SIGTERM finish the current iteration, save, and return, which standard error says at once;
    another one raises KeyboardInterrupt, unless both are SIGTERM. If any rank gets such a signal, all return after the
    same iteration.

    Args:
        experiment: the experiment, freshly built from its configuration; on resume its state is loaded here.
        directory: the run's folder, made if missing, for config.json, metrics.jsonl, TensorBoard events, checkpoint.pt,
            previous.pt and best.pt.
        iterations: the number of iterations that the run has in all, 1 or more; it may be raised on resume.
        config: the resolved configuration, JSON values only; a new run writes it to config.json, every run into its
            checkpoints.
        resume: whether to continue the run in the folder, instead of starting one.
        validate_every: validate after every so many iterations, and after the last.
        validation_key: the tag from `validate` that decides which iteration is best.
        progress_key: the tag from `iterate` that the progress bar shows.
        checkpoint_every: write checkpoint.pt after every so many iterations, after the last, and when interrupted.
        log_every: write a line of metrics after every so many iterations, their means, and with every validation.
        higher_is_better: whether the best validation is the highest (a return, an accuracy) or the lowest (an error).
        keep_best: with more than 1, keep the states of that many best validations too, each as best_ITERATION.pt.
        inspect: a function that looks at the experiment as it is, given the metrics of the iteration, and returns
            further metrics and what TensorBoard shows. Like an iteration it must depend on nothing but the
            experiment's state. If it fails, a warning says so, and training goes on.
        inspect_every: inspect after every so many iterations.
        group: the processes that share the experiment; by default this one alone.

    Returns:
        How far the run has come, and whether a signal stopped it.

    Raises:
        RunExistsError: the run is new, and the folder holds one.
        RunMissingError: the run is resumed, and the folder holds none.
        RunLockedError: another process is training into the folder.
        CheckpointError: a checkpoint could not be written, or those to resume from are damaged.
        OSError: another file of the run could not be written; names it.
        RankError: other ranks cannot be reached, or came to another state.
        ValueError: a count is not a whole number of 1 or more, or a tag is not among the metrics.
        TypeError: the configuration holds something else than JSON values.
    """
    plan = _Plan(
        *(iterations, validate_every, validation_key, progress_key, checkpoint_every, log_every),
        *(higher_is_better, keep_best, inspect, inspect_every),
    )
    config_json = json.dumps(config, indent=2, default=_refuse) + "\n"
    folder, group = RunFolder(directory), group or Group()
    with contextlib.ExitStack() as held:
        group.from_first(lambda: _begin(held, folder, None if resume else config_json))
        state = group.from_first(lambda: folder.stored(checkpoint_every) if resume else NOTHING_DONE)
        start = state["iteration"]
        run = _Run(experiment, folder, group, config, plan, start, state["ranking"], state["window"])
        if start:
            experiment.load_state_dict(state["experiment"])
        if group.first:
            for sentence in folder.missing(start, run.ranking, log_every) if resume else ():
                tqdm.write(sentence, sys.stderr)
        if start >= iterations:
            if group.first:
                tqdm.write(f"{directory} already has {start} iterations; to go on, raise iterations", sys.stderr)
            return Outcome(start, start, run.best, None)
        if group.first:
            run.log = held.enter_context(MetricsLog(folder.path, resume_from=start if resume else None))
        interrupted = run.go_on()
    return Outcome(start, run.iteration, run.best, interrupted)


def _begin(held: contextlib.ExitStack, folder: RunFolder, new_config: str | None) -> None:
    """Hold the folder, and give it the configuration of a new run."""
    held.enter_context(folder.claimed(resume=new_config is None))
    if new_config is not None:
        with writing(folder.config):
            write_atomically(folder.config, new_config.encode())


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The arguments of `train` that say how often something is done, and how."""

    iterations: int
    validate_every: int
    validation_key: str
    progress_key: str
    checkpoint_every: int
    log_every: int
    higher_is_better: bool
    keep_best: int
    inspect: Callable[[Mapping[str, float]], Shown] | None
    inspect_every: int

    def __post_init__(self) -> None:
        positive = ("iterations", "validate_every", "checkpoint_every", "log_every", "keep_best", "inspect_every")
        check_counts(self, 1, *positive)


@dataclasses.dataclass
class _Run:
    """A run in training: what is trained, where and how, and how far it has come."""

    experiment: Experiment
    folder: RunFolder
    group: Group
    config: Mapping[str, Any]
    plan: _Plan
    iteration: int
    """The last one that was begun."""
    ranking: Ranking
    window: Window
    log: MetricsLog | None = None
    """On rank 0 alone."""

    @property
    def best(self) -> Best:
        return self.ranking[0] if self.ranking else None

    @property
    def last(self) -> bool:
        return self.iteration == self.plan.iterations

    @property
    def validates(self) -> bool:
        return self.last or self.iteration % self.plan.validate_every == 0

    def go_on(self) -> int | None:
        """Iterate to the end, or until a signal asks to stop, which is returned."""
        plan, first = self.plan, self.group.first
        with _StopRequest(first) as stop, _progress_bar(self.iteration, plan.iterations, first) as bar:
            signum = None
            while not self.last and signum is None:
                self.iteration += 1
                stop.iteration = self.iteration
                metrics = self.experiment.iterate(self.iteration)
                bar.set_postfix({plan.progress_key: _entry(metrics, plan.progress_key, "iterate")}, refresh=False)
                self.record(metrics)
                # The ranks agree on whether to stop, for each gets a signal at a moment of its own.
                signum = self.group.largest(stop.signum or 0) or None
                stop.iteration = min(self.iteration + 1, plan.iterations)  # A signal from here on is seen after that.
                self.keep(stopping=signum is not None)
                bar.update()
            # One that came while the last iteration was being saved.
            return signum or self.group.largest(stop.signum or 0) or None

    def record(self, metrics: Mapping[str, float]) -> None:
        """Validate, inspect and write a line of metrics, after the iterations that are planned for it."""
        plan = self.plan
        inspects = plan.inspect is not None and self.iteration % plan.inspect_every == 0
        if plan.log_every > 1:
            self.window = _added(self.window, metrics)
        if not (self.validates or inspects or self.iteration % plan.log_every == 0):
            return
        if plan.log_every > 1:
            metrics = _means(self.window)
        self.window = {}
        line = {**metrics, **(self._validation() if self.validates else {})}
        self._write(line, self._inspection(line) if inspects else NOTHING_SHOWN)
        if inspects:
            gc.collect()  # Matplotlib's figures are full of cycles, and megabytes large.

    def _validation(self) -> dict[str, float]:
        """Validate, and rank the result."""
        plan, measured = self.plan, self.experiment.validate(self.iteration)
        value = float(_entry(measured, plan.validation_key, "validate"))
        self.ranking = ranked(self.ranking, self.iteration, value, plan.higher_is_better)[: plan.keep_best]
        return measured

    def _inspection(self, line: Mapping[str, float]) -> Shown:
        """The result of an inspection with metrics that are certainly numbers; nothing where it failed."""

        def inspected() -> Shown:
            assert self.plan.inspect is not None
            found = self.plan.inspect(line)
            return found._replace(metrics={tag: float(value) for tag, value in found.metrics.items()})

        with optional(f"the inspection after iteration {self.iteration}"):
            return self.group.together(inspected)
        return NOTHING_SHOWN

    def _write(self, line: Mapping[str, float], found: Shown) -> None:
        if self.log is not None:
            self.log.write(self.iteration, {**line, **found.metrics})
            with optional(f"TensorBoard's view of the inspection after iteration {self.iteration}"):
                self.log.show(self.iteration, found)

    def keep(self, stopping: bool) -> None:
        """Write the checkpoints that are due after this iteration."""
        if self.best is not None and self.best["iteration"] == self.iteration:
            self._save(self.folder.best)
        if self.validates and self.plan.keep_best > 1 and self.group.first:
            self.folder.keep_ranked(self.ranking, self.iteration, self._save)
        if self.last or stopping or self.iteration % self.plan.checkpoint_every == 0:
            if self.group.size > 1:
                state = checkpoint.digest(self.experiment.state_dict())
                self.group.check_alike(state, f"the state after iteration {self.iteration}")
            if self.group.first:
                self.folder.set_aside()
            self._save(self.folder.checkpoint)

    def _save(self, path: Path) -> None:
        if self.group.first:
            so_far = {"iteration": self.iteration, "config": dict(self.config)}
            so_far |= {"ranking": self.ranking, "window": self.window}
            checkpoint.save(path, so_far | {"experiment": self.experiment.state_dict()})


def _added(window: Window, metrics: Mapping[str, float]) -> Window:
    sums = dict(window)
    for tag, value in metrics.items():
        total, number = sums.get(tag, (0.0, 0))
        sums[tag] = (total + float(value), number + 1)
    return sums


def _means(window: Window) -> dict[str, float]:
    return {tag: total / number for tag, (total, number) in window.items()}


def _entry(metrics: Mapping[str, float], key: str, source: str) -> float:
    if key not in metrics:
        raise ValueError(f"{source} returned no metric {key!r}; it returned {', '.join(metrics)}: name one of these")
    return metrics[key]


def _refuse(value: object) -> None:
    raise TypeError(f"config holds dicts, lists, strings, numbers and None, got {value!r}; convert it, e.g. with str")


def _progress_bar(start: int, iterations: int, shown: bool) -> tqdm:
    interval = TERMINAL_INTERVAL if sys.stderr.isatty() else FILE_INTERVAL
    return tqdm(
        initial=start,
        total=iterations,
        mininterval=interval,
        maxinterval=interval,
        dynamic_ncols=True,
        disable=not shown,
    )


class _StopRequest:
    """While entered, SIGINT and SIGTERM are noted in `signum` and end nothing; two of them do, if one is SIGINT.

    Args:
        answering: whether standard error says so.
    """

    def __init__(self, answering: bool) -> None:
        self.signum: int | None = None
        self.iteration = 0
        """The one that is finished first."""
        self._answering = answering
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python lets only the main thread handle signals; elsewhere the program's own handlers stay.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        # Two SIGTERMs may be one request, sent to a group and to its members. torchrun turns a second SIGINT into one.
        if self.signum is not None and signal.SIGINT in (signum, self.signum):
            raise KeyboardInterrupt
        # Noted before the answer, which a further signal may interrupt.
        first, self.signum = self.signum is None, signum
        if self._answering and first:
            how = "; press again to stop now" if signum == signal.SIGINT else ", then stopping"
            _say_at_once(f"finishing iteration {self.iteration}{how}")


def _say_at_once(sentence: str) -> None:
    """Write a line of its own to standard error from a signal handler, which may have interrupted a write to it.

    On a terminal it takes the place of the progress bar, which is drawn again below it.
    """
    start = "\r\x1b[K" if os.isatty(STANDARD_ERROR) else "\n"
    with contextlib.suppress(OSError):
        os.write(STANDARD_ERROR, f"{start}{sentence}\n".encode())
