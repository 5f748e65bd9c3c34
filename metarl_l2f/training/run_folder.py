"""A run's folder: the names of its files, the lock that one process holds, and the checkpoints that count.

The lock is the operating system's own (`flock` on POSIX, a locked region of the file on Windows), taken through the
package filelock on the file .lock. It ends with the process, however that ends, so a killed run bars nobody. NFS passes
such locks on to its server, so that they hold between machines too. Where a system has no locks (NFS without its lock
daemon, Lustre mounted without flock, a Python without fcntl) the run goes on without one and says so; then nothing
keeps two processes from training into one folder.
"""

import contextlib
import errno
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, SoftFileLock, Timeout
from tqdm import tqdm

from . import checkpoint
from .files import writing
from .metrics import METRICS_FILE, gap, read

CONFIG_FILE = "config.json"
CHECKPOINT_FILE = "checkpoint.pt"
PREVIOUS_FILE = "previous.pt"
BEST_FILE = "best.pt"
LOCK_FILE = ".lock"
# Any of these in a folder means that a run was started there.
RUN_FILES = (CONFIG_FILE, METRICS_FILE, CHECKPOINT_FILE, BEST_FILE)
# What systems answer that have no locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)

Ranking = list[dict[str, Any]]
"""The best validations so far, best first: each with its "iteration" and "value"."""
NOTHING_DONE: checkpoint.State = {"iteration": 0, "ranking": [], "window": {}}
"""The state of a run that has no checkpoint yet."""


class RunExistsError(ValueError):
    """A new run was to be written into a folder that already holds one."""


class RunMissingError(ValueError):
    """A run was to be resumed from a folder that holds none."""


class RunLockedError(ValueError):
    """Another process is training into the folder."""


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder, which need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / CONFIG_FILE
        self.checkpoint = self.path / CHECKPOINT_FILE
        self.previous = self.path / PREVIOUS_FILE
        self.best = self.path / BEST_FILE

    def ranked(self, iteration: int) -> Path:
        """The file that keeps the state after one of the best validations."""
        return self.path / f"best_{iteration}.pt"

    @contextlib.contextmanager
    def claimed(self, resume: bool) -> Iterator[None]:
        """Hold the folder for this process alone, once it is certain that the run may go there.

        Args:
            resume: whether a run that is there goes on; a new run needs a folder without one, made if missing.

        Raises:
            RunMissingError: there is no run to resume.
            RunExistsError: the run is new, and the folder holds one.
            RunLockedError: another process holds the folder.
            OSError: the folder cannot be made or locked.
        """
        if resume and not self._contents():
            raise RunMissingError(
                f"{self.path} holds no run to resume: none of {', '.join(RUN_FILES)} is there; "
                "check the path, or start a new run"
            )
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with _locked(self.path / LOCK_FILE):
            if not resume and (found := self._contents()):
                raise RunExistsError(
                    f"{self.path} already holds a run ({', '.join(found)}); resume it, or choose another folder"
                )
            yield

    def _contents(self) -> list[str]:
        return [name for name in RUN_FILES if (self.path / name).exists()]

    def newest(self) -> Path:
        """The file of the newest whole checkpoint: checkpoint.pt, or previous.pt where that is damaged or gone.

        Raises:
            CheckpointError: neither is whole; says what is wrong with checkpoint.pt.
        """
        try:
            checkpoint.load(self.checkpoint)
            return self.checkpoint
        except checkpoint.CheckpointError:
            with contextlib.suppress(checkpoint.CheckpointError):
                checkpoint.load(self.previous)
                return self.previous
            raise

    def stored(self, checkpoint_every: int) -> checkpoint.State:
        """The state in the newest whole checkpoint; a run without one yet starts again, which standard error says.

        Args:
            checkpoint_every: the number of iterations between checkpoints.

        Raises:
            CheckpointError: there is no whole checkpoint though there must be one, or it is of an earlier version.
        """
        if not self.checkpoint.exists() and not self.previous.exists():
            lines = self._lines()
            logged = lines[-1]["iteration"] if lines else 0
            if logged > checkpoint_every:
                raise checkpoint.CheckpointError(
                    f"{self.checkpoint} is missing, though {METRICS_FILE} holds {logged} iterations; put it back, or "
                    f"copy {BEST_FILE} to it to go on from the best iteration"
                )
            tqdm.write(f"{self.path} has no {CHECKPOINT_FILE} yet; starting its run from the beginning", sys.stderr)
            return NOTHING_DONE
        if self.newest() == self.previous:
            # In its place, or the next checkpoint would set the damaged one aside.
            os.replace(self.previous, self.checkpoint)
            sentence = f"was damaged or gone; going on from {PREVIOUS_FILE}, the checkpoint before it"
            tqdm.write(f"{self.checkpoint} {sentence}", sys.stderr)
        state = checkpoint.load(self.checkpoint)
        if "ranking" not in state:
            raise checkpoint.CheckpointError(
                f"{self.checkpoint} is of an earlier version of metarl_l2f; resume it with that version"
            )
        return state

    def missing(self, done: int, ranking: Ranking, log_every: int) -> list[str]:
        """Sentences that name the files of a resumed run that are not as it left them, though it can go on without.

        Args:
            done: the number of iterations in its checkpoint.
            ranking: the best validations so far.
            log_every: the number of iterations between two lines of metrics.
        """
        sentences = []
        if ranking and not self.best.exists():
            sentences.append(
                f"{self.best} is missing, the state after iteration {ranking[0]['iteration']}, whose validation is the "
                "best so far; put it back"
            )
        if lacking := gap(self._lines(), done, log_every):
            sentences.append(f"in {self.path} {lacking}: curves and report will show a gap")
        return sentences

    def _lines(self) -> list[dict[str, Any]]:
        return read(self.path) if (self.path / METRICS_FILE).exists() else []

    def set_aside(self) -> None:
        """Give the checkpoint that is about to be replaced a second name, previous.pt."""
        # Not where there is none yet, nor on the few file systems without hard links.
        with contextlib.suppress(OSError):
            self.previous.unlink(missing_ok=True)
            os.link(self.checkpoint, self.previous)

    def keep_ranked(self, ranking: Ranking, iteration: int, save: Callable[[Path], None]) -> None:
        """Keep the state after this iteration if it is among the best, and delete those that no longer are.

        Args:
            ranking: the best validations so far.
            iteration: the one that was just validated.
            save: writes the state into a file.
        """
        kept = {self.ranked(entry["iteration"]) for entry in ranking}
        if self.ranked(iteration) in kept:
            save(self.ranked(iteration))
        for path in set(self.path.glob("best_*.pt")) - kept:
            path.unlink()


def ranked(ranking: Ranking, iteration: int, value: float, higher_is_better: bool) -> Ranking:
    """A ranking with one more entry, unless its value is not a number; equals are in the order of their iterations."""
    if math.isnan(value):
        return ranking
    entries = [*ranking, {"iteration": iteration, "value": value}]
    return sorted(entries, key=lambda entry: -entry["value"] if higher_is_better else entry["value"])


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
            f"another process is training into {path.parent}; stop it or wait for it, or choose another folder"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            with writing(path):
                raise
        why = f"{path} cannot have one: {os.strerror(error.errno)}"
        tqdm.write(f"training without a lock, for {why}; start no second run in the folder meanwhile", sys.stderr)
    try:
        yield
    finally:
        lock.release()
