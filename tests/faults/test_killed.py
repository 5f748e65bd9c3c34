"""A run that is killed, whenever, and resumed, however often, ends as one that was never disturbed."""

import os
import random
import signal
import time
from functools import partial

import pytest

from .runs import continuing, ended, launched, left_by, starting

ITERATIONS = 6


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """What an undisturbed run leaves, and the seconds that it takes."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert ended(launched(starting(folder, 1))) == 0  # Starts the server.
    begin = time.monotonic()
    assert ended(launched(starting(folder.with_name("timed"), ITERATIONS))) == 0
    return left_by(folder.with_name("timed")), time.monotonic() - begin


def kill_at_sync(number, after):
    """Have this process kill itself around its `number`-th fsync: in the middle of writing a file."""
    fsync = os.fsync
    left = [number]

    def counted(descriptor):
        left[0] -= 1
        if after:
            fsync(descriptor)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if not after:
            fsync(descriptor)

    os.fsync = counted


def whichever(folder):
    """What a user would do: go on with the run, or start it where there is none yet."""
    return continuing(folder) if (folder / "config.json").exists() else starting(folder, ITERATIONS)


def killed(folder, seconds, moments):
    """Run, and kill: at a random moment, or while a file is written; True if it died of that and not at its end."""
    arguments = whichever(folder)
    if moments.random() < 0.5:
        process = launched(arguments, partial(kill_at_sync, moments.randint(1, 30), moments.random() < 0.5))
    else:
        process = launched(arguments)
        time.sleep(moments.uniform(0, seconds))
        process.kill()
    status = ended(process)
    assert status in (0, -signal.SIGKILL)
    return status == -signal.SIGKILL


def test_a_run_killed_at_random_moments_and_resumed_is_the_unbroken_one(tmp_path, unbroken, amount, record_property):
    expected, seconds = unbroken
    moments = random.Random(0)
    wanted, kills, saving, runs = amount(5, 50), 0, 0, 0
    while kills < wanted:
        runs += 1
        folder = tmp_path / str(runs)
        while killed(folder, seconds, moments):
            kills += 1
            saving += bool(list(folder.glob("*.tmp")))
            if moments.random() < 0.5:
                break
        assert ended(launched(whichever(folder))) == 0
        assert left_by(folder) == expected, f"killed {kills} times in all, run {runs}"
        assert not list(folder.glob("*.tmp"))
    assert saving >= amount(0, 1)  # Of five, none may be.
    record_property("killed/SIGKILLs", kills)
    record_property("killed/SIGKILLs while a file was half written", saving)
    record_property("killed/runs resumed, all equal to the unbroken one", runs)
