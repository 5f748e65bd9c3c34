"""Programs that a test starts, interrupts and waits for."""

import glob
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .table import is_pattern

PATIENCE = 600
"""Seconds after which a program hangs, however busy the machine is."""


def run(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A command's outcome, run to its end in a folder; patterns such as runs/* stand for what they find there."""
    found = [
        path for word in words for path in (sorted(glob.glob(word, root_dir=folder)) if is_pattern(word) else [word])
    ]
    return subprocess.run(found, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)


def started(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """A running command in a process group of its own, as a shell starts it; what it prints comes through one pipe."""
    return subprocess.Popen(
        words,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A suite that was started in the background ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def interrupted(program: subprocess.Popen[str], once: Callable[[], bool]) -> subprocess.CompletedProcess[str]:
    """What becomes of a program that gets Ctrl-C, as all of its process group does, as soon as something is true."""
    try:
        deadline = time.monotonic() + PATIENCE
        while not once() and program.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGINT)
        out, _ = program.communicate(timeout=PATIENCE)
    finally:
        program.kill()
    return subprocess.CompletedProcess(program.args, program.returncode, out, "")
