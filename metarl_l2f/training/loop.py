"""The outer loop of every run: iterate, validate, log, save; stop and continue anywhere without changing a number.

After each iteration the metrics line is written first, then best.pt, then checkpoint.pt. So a crash can only leave more
than checkpoint.pt accounts for, never less; a resumed run drops what is more and computes it again, bit for bit. The
checkpoint before stays as previous.pt, from which a run goes on if checkpoint.pt was damaged.

Of several ranks all iterate, validate and inspect, for they do so together; rank 0 alone reads and writes the folder.
"""

import contextlib
import dataclasses
import errno
import gc
import json
import logging
import math
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, Self

from filelock import FileLock, SoftFileLock, Timeout
from tqdm import tqdm

from ..parallel.ranks import Group, RankError, TogetherError
from . import checkpoint
from .metrics import METRICS_FILE, MetricsLog, Shown, gap, read

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
CHECKPOINT_FILE = "checkpoint.pt"
PREVIOUS_FILE = "previous.pt"
BEST_FILE = "best.pt"
LOCK_FILE = ".lock"
# What systems answer that have no locks, such as NFS without its lock daemon and Lustre mounted without flock.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
# Any of these in a folder means that a run was started there.
RUN_FILES = (CONFIG_FILE, METRICS_FILE, CHECKPOINT_FILE, BEST_FILE)

# Seconds between two drawings of the progress bar, on a terminal and in a log file.
TERMINAL_INTERVAL = 0.2
FILE_INTERVAL = 60.0

STANDARD_ERROR = 2  # Its file descriptor.

# The iteration and value of the best validation so far.
Best = dict[str, Any] | None
# The same of the best few, best first.
Ranking = list[dict[str, Any]]
# What `train` starts from where there is no checkpoint.
NOTHING_DONE: dict[str, Any] = {"iteration": 0, "ranking": [], "window": {}}
# Sum and number of what was measured since the last line of metrics, by tag.
Window = dict[str, tuple[float, int]]


class Experiment(Protocol):
    """What `train` trains. All that `iterate` depends on is in the state and in the iteration's number.

    Random numbers therefore come from `seeding.generator`, keyed by the iteration, and from no generator that lives on.
    """

    def iterate(self, iteration: int) -> dict[str, float]:
        """Do one meta-iteration, numbered from 1, and return its metrics by tag."""
        ...

    def validate(self, iteration: int) -> dict[str, float]:
        """Measure on held-out tasks, after this iteration, without changing the state; return metrics by tag."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue, as `checkpoint.save` takes it."""
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
    """"iteration" and "value" of the best validation so far, whose state is in best.pt; None before the first one."""
    interrupted: int | None
    """The signal that asked to stop (SIGINT or SIGTERM), else None."""


@contextlib.contextmanager
def optional(what: str) -> Iterator[None]:
    """Go on after an error in here, which a warning names; but not without the other ranks.

    Args:
        what: is done, for the warning, such as `the inspection after iteration 100`.
    """
    try:
        yield
    except RankError:
        raise
    except Exception as error:
        cause = str(error) if isinstance(error, TogetherError) else f"{type(error).__name__}: {error}"
        logger.warning("%s failed, and the run goes on without it: %s", what, cause)
        logger.debug("%s failed", what, exc_info=True)


class RunExistsError(ValueError):
    """A new run was to be written into a folder that already holds one."""


class RunMissingError(ValueError):
    """A run was to be resumed from a folder that holds none."""


class RunLockedError(ValueError):
    """Another process is training into the folder."""


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
        experiment: what to train, freshly built from its configuration; on resume its state is loaded here.
        directory: the run's folder, made if missing, for config.json, metrics.jsonl, TensorBoard events, checkpoint.pt,
            previous.pt and best.pt.
        iterations: how many the run has in all, 1 or more; may be raised on resume.
        config: everything that was resolved, JSON values only; a new run writes it to config.json, every run into its
            checkpoints.
        resume: continue the run in the folder, instead of starting one.
        validate_every: validate after every so many iterations, and after the last.
        validation_key: the tag from `validate` that decides which iteration is best.
        progress_key: the tag from `iterate` that the progress bar shows.
        checkpoint_every: write checkpoint.pt after every so many iterations, after the last, and when interrupted.
        log_every: write a line of metrics after every so many iterations, their means, and with every validation.
        higher_is_better: whether the best validation is the highest (a return, an accuracy) or the lowest (an error).
        keep_best: with more than 1, keep the states of that many best validations too, each as best_ITERATION.pt.
        inspect: looks at the experiment as it is, given the metrics of the iteration: further metrics, and what
            TensorBoard shows. Like an iteration it must depend on nothing but the experiment's state. If it fails, a
            warning says so, and training goes on.
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
        ValueError: a count is not positive, or a tag is not among the metrics.
    """
    for name, count in (
        ("iterations", iterations),
        ("validate_every", validate_every),
        ("checkpoint_every", checkpoint_every),
        ("log_every", log_every),
        ("keep_best", keep_best),
        ("inspect_every", inspect_every),
    ):
        if count < 1:
            raise ValueError(f"{name} must be 1 or more, got {count}")
    directory, group = Path(directory), group or Group()
    config_json = json.dumps(config, indent=2, default=_refuse) + "\n"
    with contextlib.ExitStack() as held:

        def begin() -> None:
            held.enter_context(_claimed(directory, resume))
            if not resume:
                with checkpoint.writing(directory / CONFIG_FILE):
                    checkpoint.write_atomically(directory / CONFIG_FILE, config_json.encode())

        group.from_first(begin)
        state = group.from_first(lambda: _stored(directory, checkpoint_every) if resume else NOTHING_DONE)
        start, ranking, window = state["iteration"], state["ranking"], state["window"]
        if group.first and resume:
            _say_what_is_missing(directory, start, ranking, log_every)
        if start:
            experiment.load_state_dict(state["experiment"])
        if start >= iterations:
            if group.first:
                tqdm.write(f"{directory} already has {start} iterations; to go on, raise --iterations", sys.stderr)
            return Outcome(start, start, _best(ranking), None)

        def keep(path: Path) -> None:
            if group.first:
                content = {"iteration": iteration, "config": dict(config), "ranking": ranking, "window": window}
                checkpoint.save(path, content | {"experiment": experiment.state_dict()})

        log = MetricsLog(directory, resume_from=start if resume else None) if group.first else None
        if log is not None:
            held.enter_context(log)
            if not resume:
                log.describe(config.get("options", {}), validation_key)
        with _StopRequest(group.first) as stop, _progress_bar(start, iterations, group.first) as bar:
            for iteration in range(start + 1, iterations + 1):
                stop.iteration = iteration
                last = iteration == iterations
                improved = False
                metrics: Mapping[str, float] = experiment.iterate(iteration)
                bar.set_postfix({progress_key: _entry(metrics, progress_key, "iterate")}, refresh=False)
                inspecting = inspect is not None and iteration % inspect_every == 0
                validating = last or iteration % validate_every == 0
                writing = validating or inspecting or iteration % log_every == 0
                if log_every > 1:
                    window = _added(window, metrics)
                if writing:
                    metrics, window = _means(window) if log_every > 1 else metrics, {}
                    validation = experiment.validate(iteration) if validating else {}
                    if validating:
                        value = float(_entry(validation, validation_key, "validate"))
                        ranking = _ranked(ranking, iteration, value, higher_is_better)[:keep_best]
                        improved = bool(ranking) and ranking[0]["iteration"] == iteration
                    line = {**metrics, **validation}
                    found = Shown({}, {}, {})
                    if inspect is not None and inspecting:
                        with optional(f"the inspection after iteration {iteration}"):
                            found = group.together(partial(_inspected, inspect, line))
                    if log is not None:
                        log.write(iteration, {**line, **found.metrics})
                        with optional(f"TensorBoard's view of the inspection after iteration {iteration}"):
                            log.show(iteration, found)
                    if inspecting:
                        del found
                        gc.collect()  # Matplotlib's figures are full of cycles, and megabytes large.
                # The ranks agree on whether to stop, for each gets a signal at a moment of its own.
                signum = group.largest(stop.signum or 0) or None
                stopping = signum is not None
                stop.iteration = min(iteration + 1, iterations)  # A signal from here on is seen after the next one.
                if improved:
                    keep(directory / BEST_FILE)
                if validating and keep_best > 1 and group.first:
                    _keep_ranked(directory, ranking, iteration, keep)
                if last or stopping or iteration % checkpoint_every == 0:
                    if group.size > 1:
                        group.check_alike(
                            checkpoint.digest(experiment.state_dict()), f"the state after iteration {iteration}"
                        )
                    if group.first:
                        _set_aside(directory)
                    keep(directory / CHECKPOINT_FILE)
                bar.update()
                if stopping:
                    break
            # One that came while the last iteration was being saved.
            signum = signum or group.largest(stop.signum or 0) or None
    return Outcome(start, iteration, _best(ranking), signum)


def _inspected(inspect: Callable[[Mapping[str, float]], Shown], line: Mapping[str, float]) -> Shown:
    """What an inspection finds, its metrics being numbers for certain."""
    found = inspect(line)
    return found._replace(metrics={tag: float(value) for tag, value in found.metrics.items()})


def newest(directory: Path) -> Path:
    """The file of a run's newest whole checkpoint: checkpoint.pt, or the one before where that is damaged or gone.

    Raises:
        CheckpointError: neither is whole; says what is wrong with checkpoint.pt.
    """
    path, previous = directory / CHECKPOINT_FILE, directory / PREVIOUS_FILE
    try:
        checkpoint.load(path)
        return path
    except checkpoint.CheckpointError:
        with contextlib.suppress(checkpoint.CheckpointError):
            checkpoint.load(previous)
            return previous
        raise


def _set_aside(directory: Path) -> None:
    """Give the checkpoint that is about to be replaced a second name."""
    # Not where there is none yet, nor on the few file systems without hard links.
    with contextlib.suppress(OSError):
        (directory / PREVIOUS_FILE).unlink(missing_ok=True)
        os.link(directory / CHECKPOINT_FILE, directory / PREVIOUS_FILE)


def ranked_file(directory: Path, iteration: int) -> Path:
    """Where the state after one of the best validations is kept."""
    return directory / f"best_{iteration}.pt"


def _keep_ranked(directory: Path, ranking: Ranking, iteration: int, keep: Callable[[Path], None]) -> None:
    """Keep this iteration's state if it is among the best, and only the best."""
    kept = {ranked_file(directory, entry["iteration"]) for entry in ranking}
    if ranked_file(directory, iteration) in kept:
        keep(ranked_file(directory, iteration))
    for path in set(directory.glob("best_*.pt")) - kept:
        path.unlink()


def _best(ranking: Ranking) -> Best:
    return ranking[0] if ranking else None


def _ranked(ranking: Ranking, iteration: int, value: float, higher_is_better: bool) -> Ranking:
    """The ranking with one more entry, unless that is not a number; of equals, the earlier first."""
    if math.isnan(value):
        return ranking
    entries = [*ranking, {"iteration": iteration, "value": value}]
    return sorted(entries, key=lambda entry: -entry["value"] if higher_is_better else entry["value"])


def _added(window: Window, metrics: Mapping[str, float]) -> Window:
    sums = dict(window)
    for tag, value in metrics.items():
        total, number = sums.get(tag, (0.0, 0))
        sums[tag] = (total + float(value), number + 1)
    return sums


def _means(window: Window) -> dict[str, float]:
    return {tag: total / number for tag, (total, number) in window.items()}


def _stored(directory: Path, checkpoint_every: int) -> dict[str, Any]:
    """What the newest whole checkpoint of a run holds. A run without one yet starts again."""
    path, previous = directory / CHECKPOINT_FILE, directory / PREVIOUS_FILE
    if not path.exists() and not previous.exists():
        lines = read(directory) if (directory / METRICS_FILE).exists() else []
        logged = lines[-1]["iteration"] if lines else 0
        if logged > checkpoint_every:
            raise checkpoint.CheckpointError(
                f"{path} is missing, though {METRICS_FILE} holds {logged} iterations; put it back, or copy {BEST_FILE} "
                "to it to go on from the best iteration"
            )
        tqdm.write(f"{directory} has no {CHECKPOINT_FILE} yet; starting its run from the beginning", sys.stderr)
        return NOTHING_DONE
    if newest(directory) == previous:
        # In its place, or the next checkpoint would set the damaged one aside.
        os.replace(previous, path)
        tqdm.write(f"{path} was damaged or gone; going on from {PREVIOUS_FILE}, the checkpoint before it", sys.stderr)
    state = checkpoint.load(path)
    if "ranking" not in state:
        raise checkpoint.CheckpointError(f"{path} is of an earlier version of metarl_l2f; resume it with that version")
    return state


def _say_what_is_missing(directory: Path, done: int, ranking: Ranking, log_every: int) -> None:
    """Name the files of a resumed run that are not as it left them, though it can go on without."""
    if ranking and not (directory / BEST_FILE).exists():
        tqdm.write(
            f"{directory / BEST_FILE} is missing, the state after iteration {ranking[0]['iteration']}, whose "
            "validation is the best so far; put it back",
            sys.stderr,
        )
    lines = read(directory) if (directory / METRICS_FILE).exists() else []
    if lacking := gap(lines, done, log_every):
        tqdm.write(f"in {directory} {lacking}: curves and report will show a gap", sys.stderr)


def _entry(metrics: Mapping[str, float], key: str, source: str) -> float:
    if key not in metrics:
        raise ValueError(f"{source} returned no metric {key!r}; it returned {', '.join(metrics)}: name one of these")
    return metrics[key]


def _refuse(value: object) -> None:
    raise TypeError(f"config holds dicts, lists, strings, numbers and None, got {value!r}; convert it, e.g. with str")


@contextlib.contextmanager
def _claimed(directory: Path, resume: bool) -> Iterator[None]:
    """Hold the folder for this process alone, once it is certain that the run may go there."""
    if resume and not _contents(directory):
        raise RunMissingError(
            f"{directory} holds no run to resume: none of {', '.join(RUN_FILES)} is there; "
            "check the path, or start a new run with --log-dir"
        )
    with checkpoint.writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory / LOCK_FILE):
        if not resume and (found := _contents(directory)):
            raise RunExistsError(
                f"{directory} already holds a run ({', '.join(found)}); continue it with "
                f"--resume {shlex.quote(str(directory))}, or choose another --log-dir"
            )
        yield


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock, which ends with this process; go without, and say so, where the system has no such locks."""
    lock: Any = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        if FileLock is SoftFileLock:  # A file that a killed process would leave behind.
            raise OSError(errno.ENOSYS, "this Python has no file locks", str(path))
        lock.acquire()
    except Timeout:
        raise RunLockedError(
            f"another process is training into {path.parent}; stop it or wait for it, or choose another --log-dir"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            with checkpoint.writing(path):
                raise
        why = f"{path} cannot have one: {os.strerror(error.errno)}"
        tqdm.write(f"training without a lock, for {why}; start no second run in the folder meanwhile", sys.stderr)
    try:
        yield
    finally:
        lock.release()


def _contents(directory: Path) -> list[str]:
    return [name for name in RUN_FILES if (directory / name).exists()]


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
