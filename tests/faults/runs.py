"""Tiny runs of 2D navigation, in processes that are quick to start and may be killed."""

import contextlib
import multiprocessing
import os
from pathlib import Path
from typing import Any

from metarl_l2f.launchers import navigation
from metarl_l2f.training import checkpoint
from metarl_l2f.training.metrics import read

TINY = [
    *("--tasks-per-batch", "3", "--episodes-per-task", "2", "--horizon", "8", "--hidden-sizes", "4"),
    *("--validate-every", "2", "--evaluation-tasks", "0", "--inspect-every", "0", "--threads", "1"),
]

PATIENCE = 900  # Seconds after which a process hangs, however busy the machine is.

# A server that forks ready processes makes one in a tenth of the time that importing torch takes.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["metarl_l2f.launchers.navigation", "pytest"])


def starting(folder: Path, iterations: int) -> list[str]:
    """The arguments of a new run."""
    return [*TINY, "--iterations", str(iterations), "--log-dir", str(folder)]


def continuing(folder: Path) -> list[str]:
    """The arguments that go on with a run."""
    return ["--resume", str(folder)]


def launch(arguments: list[str], before: Any = None) -> None:
    """The navigation launcher as a process of its own runs it: without output, its status as the process's.

    Args:
        arguments: its command line.
        before: called first, in that process.
    """
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        if before is not None:
            before()
        status = navigation.main(arguments)
    os._exit(status)


def launched(arguments: list[str], before: Any = None) -> Any:
    """Such a process, started."""
    process = PROCESSES.Process(target=launch, args=(arguments, before))
    process.start()
    return process


def ended(process: Any) -> int:
    """A process's exit status once it has ended; one that hangs fails the test, not the machine that runs it."""
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"a run did not end in {PATIENCE} s")
    return process.exitcode


def left_by(folder: Path) -> dict[str, Any]:
    """The numbers that a run left: its metrics but for times, and the bytes of its checkpoints' experiments."""
    metrics = [{key: value for key, value in line.items() if not key.startswith("time/")} for line in read(folder)]
    states = {}
    for path in sorted(folder.glob("*.pt")):
        content = checkpoint.load(path)
        # The digest is of every bit of the state, NaNs and signs of zeros included.
        states[path.name] = checkpoint._digest({name: content[name] for name in ("iteration", "ranking", "experiment")})
    return {"metrics": metrics, "states": states}
