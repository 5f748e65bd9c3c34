"""Ctrl-C and SIGTERM, wherever a program is: an answer at once, no traceback, and at most an iteration lost."""

from metarl_l2f.program import as_program

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metarl_l2f.launchers import navigation
from metarl_l2f.training.checkpoint import load
from metarl_l2f.training.metrics import read

from .runs import left_by

ROOT = Path(__file__).parents[2]
SMALL = ["--horizon", "8", "--hidden-sizes", "4", "--threads", "1", "--inspect-every", "0"]
TINY = [*SMALL, "--tasks-per-batch", "3", "--episodes-per-task", "2", "--evaluation-tasks", "0"]
# Seconds for an iteration, so that signals meet it half-way.
SLOW = [*TINY, "--tasks-per-batch", "20", "--episodes-per-task", "20", "--horizon", "50", "--hidden-sizes", "32"]


def started(*arguments):
    """A program of launchers/, or `-m` and a module, in a process of its own."""
    first, *others = map(str, arguments)
    how = [first] if first == "-m" else [str(ROOT / "launchers" / f"{first}.py")]
    return subprocess.Popen(
        [sys.executable, *how, *others],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        cwd=ROOT,
    )


def until(stream, text):
    """What a program writes, up to and including a text."""
    written = ""
    while text not in written:
        piece = stream.read(1)
        assert piece, f"it ended after {written!r}"
        written += piece
    return written


def until_it_handles_signals(process):
    """Wait until a program has imported what it needs, and its main function runs."""
    status = Path(f"/proc/{process.pid}/status")
    for _ in range(600):
        caught = re.search(r"SigCgt:\s*(\w+)", status.read_text())
        if int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.1)
    raise AssertionError("it does not handle SIGTERM")


def ended(process, signum):
    """What it wrote to standard output and standard error, if it ended the way the signal wants it."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signum, err
    assert "Traceback" not in err and "KeyboardInterrupt" not in err, err
    return out, err


@pytest.mark.parametrize("seconds", [0.4, 1.0, 2.0])
@pytest.mark.parametrize("program", [["navigation"], ["-m", "metarl_l2f.launchers.play"]])
def test_ctrl_c_while_a_program_is_imported_ends_it_without_a_word(program, seconds, tmp_path):
    process = started(*program, "--help" if program[0] == "-m" else "--nonsense")
    time.sleep(seconds)
    if process.poll() is not None:
        pytest.skip("a machine so fast that the program has ended")
    process.send_signal(signal.SIGINT)
    _, err = ended(process, signal.SIGINT)
    assert "stopped" not in err


def test_a_program_of_somebody_else_keeps_its_signal_handlers():
    check = "import signal; before = signal.getsignal(2); import metarl_l2f; assert signal.getsignal(2) is before"
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """What an undisturbed run of two slow iterations leaves."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert navigation.main([*SLOW, "--iterations", "2", "--log-dir", str(folder)]) == 0
    return left_by(folder)


def test_a_second_ctrl_c_in_training_stops_now_and_the_run_resumes_bit_for_bit(tmp_path, unbroken):
    folder = tmp_path / "run"
    process = started("navigation", *SLOW, "--iterations", "2", "--log-dir", folder)
    while not (folder / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    until(process.stderr, "finishing iteration 2; press again to stop now\n")
    process.send_signal(signal.SIGINT)
    _, err = ended(process, signal.SIGINT)
    assert "stopped by SIGINT; go on with:\n" in err and f"--resume {folder}" in err
    assert load(folder / "checkpoint.pt")["iteration"] == len(read(folder)) == 1  # Lost is the second, and no more.
    assert navigation.main(["--resume", str(folder)]) == 0
    assert left_by(folder) == unbroken


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_report_says_how_to_have_it_after_all(tmp_path, signum):
    folder = tmp_path / "run"
    process = started("navigation", *TINY, "--iterations", "1", "--evaluation-tasks", "20000", "--log-dir", folder)
    until(process.stdout, "iteration 1 done")
    process.send_signal(signum)
    _, err = ended(process, signum)
    assert f"stopped by {signal.Signals(signum).name}; go on with:\n" in err and f"--resume {folder}" in err
    assert navigation.main(["--resume", str(folder), "--evaluation-tasks", "2"]) == 0
    assert (folder / "report.html").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_evaluation(tmp_path, signum):
    folder = tmp_path / "run"
    assert navigation.main([*TINY, "--iterations", "1", "--log-dir", str(folder)]) == 0
    process = started("evaluate", folder, "--tasks", "20000")
    until_it_handles_signals(process)
    time.sleep(2)
    process.send_signal(signum)
    _, err = ended(process, signum)
    assert err == f"stopped by {signal.Signals(signum).name}\n"


def test_a_further_signal_ends_a_program_that_is_stuck_while_it_stops(tmp_path):
    stuck = (
        "import sys, time; sys.argv[0] = 'launchers/x.py'\n"
        "from metarl_l2f.program import as_program\n"
        "@as_program\n"
        "def main():\n"
        "    try:\n        print('busy', flush=True); time.sleep(60)\n"
        "    finally:\n        print('stopping', flush=True); time.sleep(60)\n"
        "main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", stuck], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    for text in ("busy\n", "stopping\n"):
        until(process.stdout, text)
        process.send_signal(signal.SIGINT)
    assert ended(process, signal.SIGINT) == ("", "")


def test_a_main_function_that_is_called_leaves_the_handlers_as_they_were(capsys):
    @as_program
    def main():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        return 0

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main() == 143
    assert capsys.readouterr().err == "stopped by SIGTERM\n"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_ctrl_c_under_torchrun_reaches_all_ranks_and_loses_nothing(tmp_path):
    folder = tmp_path / "run"
    process = started(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *(ROOT / "launchers" / "navigation.py", *TINY, "--tasks-per-batch", "20", "--iterations", "100000"),
        *("--log-dir", folder),
    )
    while not (folder / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert out.count("stopped after iteration") == out.count(f"--resume {folder}") == 1
    assert err.count("finishing iteration") == 1
    # The only traceback is torchrun's own.
    assert err.count("Traceback") == 1 and "SignalException" in err and "metarl_l2f" not in err
    assert load(folder / "checkpoint.pt")["iteration"] == len(read(folder)) >= 1
