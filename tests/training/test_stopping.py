"""A run that is stopped in any way and continued is the run that was never stopped."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from metarl_l2f.training import checkpoint, metrics
from metarl_l2f.training.checkpoint import CheckpointError
from metarl_l2f.training.run_folder import RunMissingError

from .walk import Interrupted, Scripted, Walk, left_by, run

PACKAGE = str(Path(checkpoint.__file__).parent)


def count_lines(directory):
    """How many lines of the package a run executes."""
    lines = 0

    def trace(frame, event, _):
        nonlocal lines
        lines += event == "line"
        return trace if frame.f_code.co_filename.startswith(PACKAGE) else None

    before = sys.gettrace()  # a measurement of coverage, which would end here
    sys.settrace(trace)
    try:
        run(directory)
    finally:
        sys.settrace(before)
    return lines


def killed_run(directory, line):
    """Run until so many lines of the package were executed, and die without any cleaning up."""

    def trace(frame, event, _):
        nonlocal line
        line -= event == "line"
        if line == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace if frame.f_code.co_filename.startswith(PACKAGE) else None

    sys.settrace(trace)
    run(directory)


def test_a_run_killed_at_any_instant_continues_bit_for_bit(tmp_path, unbroken):
    # A server that forks ready processes makes one in a tenth of the time that importing torch takes.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["metarl_l2f.training.loop", "torch.utils.tensorboard", "pytest"])
    lines = count_lines(tmp_path / "counted")
    for line in range(1, lines, lines // 12):
        directory = tmp_path / str(line)
        process = processes.Process(target=killed_run, args=(directory, line))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        try:
            run(directory, resume=True)
        except RunMissingError:  # killed before the run had written anything
            run(directory)
        assert left_by(directory) == unbroken, f"killed at line {line} of {lines}"


def test_a_run_stopped_by_its_own_error_continues_bit_for_bit(tmp_path, unbroken):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, Interrupted(4, lambda: 1 / 0))
    assert checkpoint.load(tmp_path / "checkpoint.pt")["iteration"] == 2
    assert len(metrics.read(tmp_path)) == 3
    assert run(tmp_path, resume=True).start == 2
    assert left_by(tmp_path) == unbroken


def test_a_run_torn_in_the_middle_of_a_line_continues_bit_for_bit(tmp_path, unbroken):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, Interrupted(4, lambda: 1 / 0))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    run(tmp_path, resume=True)
    assert left_by(tmp_path) == unbroken


def test_a_run_stopped_before_its_first_checkpoint_starts_again(tmp_path, unbroken, capsys):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, Interrupted(2, lambda: 1 / 0))
    assert run(tmp_path, resume=True).start == 0
    assert "has no checkpoint.pt yet; starting its run from the beginning" in capsys.readouterr().err
    assert left_by(tmp_path) == unbroken


def test_a_lost_checkpoint_is_missed_rather_than_the_run_begun_again(tmp_path):
    run(tmp_path)
    for name in ("checkpoint.pt", "previous.pt"):
        (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint.pt is missing, though metrics.jsonl holds \d+ iterations"):
        run(tmp_path, resume=True)


def test_iterations_may_be_raised_on_resume(tmp_path, unbroken):
    run(tmp_path, iterations=4)
    outcome = run(tmp_path, resume=True, iterations=5)
    assert (outcome.start, outcome.iteration) == (4, 5)
    assert left_by(tmp_path) == unbroken


def test_config_json_says_how_the_run_was_started(tmp_path):
    run(tmp_path, iterations=4, config={"iterations": 4})
    run(tmp_path, iterations=5, config={"iterations": 5}, resume=True)
    assert json.loads((tmp_path / "config.json").read_text()) == {"iterations": 4}
    assert checkpoint.load(tmp_path / "checkpoint.pt")["config"] == {"iterations": 5}


def test_a_finished_run_is_left_as_it_is_and_says_so(tmp_path, capsys):
    run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    walk = Walk()
    outcome = run(tmp_path, walk, resume=True)
    assert outcome.start == outcome.iteration == 5
    assert outcome.best is not None
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert "already has 5 iterations; to go on, raise iterations" in capsys.readouterr().err
    # Loaded all the same, so that it can be evaluated.
    assert walk.steps == 5


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_iteration_saves_and_returns(tmp_path, unbroken, signum, capfd):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    outcome = run(tmp_path, Interrupted(3, lambda: os.kill(os.getpid(), signum)))
    assert (outcome.iteration, outcome.interrupted) == (3, signum)
    how = "; press again to stop now" if signum == signal.SIGINT else ", then stopping"
    assert f"\nfinishing iteration 3{how}\n" in capfd.readouterr().err
    assert checkpoint.load(tmp_path / "checkpoint.pt")["iteration"] == len(metrics.read(tmp_path)) == 3
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    run(tmp_path, resume=True)
    assert left_by(tmp_path) == unbroken


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])  # torchrun's, of a second Ctrl-C.
def test_a_second_ctrl_c_stops_at_once(tmp_path, unbroken, second):
    handler = signal.getsignal(signal.SIGINT)

    def press_twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), second)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupted(3, press_twice))
    assert len(metrics.read(tmp_path)) == 2
    assert signal.getsignal(signal.SIGINT) is handler
    run(tmp_path, resume=True)
    assert left_by(tmp_path) == unbroken


def test_a_second_sigterm_stops_no_sooner(tmp_path):
    def end_twice():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    outcome = run(tmp_path, Interrupted(3, end_twice))
    assert (outcome.iteration, outcome.interrupted) == (3, signal.SIGTERM)


def test_a_signal_while_the_last_iteration_is_saved_counts(tmp_path, monkeypatch):
    save = checkpoint.save

    def interrupted(path, state):
        save(path, state)
        if state["iteration"] == 5 and path.name == "checkpoint.pt":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(checkpoint, "save", interrupted)
    outcome = run(tmp_path)
    assert (outcome.iteration, outcome.interrupted) == (5, signal.SIGINT)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-100]), Path.unlink])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, unbroken, damage, capsys):
    run(tmp_path, iterations=4)
    damage(tmp_path / "checkpoint.pt")
    outcome = run(tmp_path, resume=True)
    assert (outcome.start, outcome.iteration) == (2, 5)
    assert "checkpoint.pt was damaged or gone; going on from previous.pt" in capsys.readouterr().err
    assert left_by(tmp_path) == unbroken


def test_a_damaged_checkpoint_is_not_set_aside(tmp_path, unbroken):
    run(tmp_path, iterations=4)
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(ZeroDivisionError):  # before another checkpoint is written
        run(tmp_path, Interrupted(3, lambda: 1 / 0), resume=True)
    run(tmp_path, resume=True)
    assert left_by(tmp_path) == unbroken


def test_a_file_system_without_hard_links_has_no_previous_checkpoint(tmp_path, unbroken, monkeypatch):
    def refused(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refused)
    run(tmp_path)
    assert left_by(tmp_path) == {name: content for name, content in unbroken.items() if name != "previous.pt"}


def test_damaged_checkpoints_are_not_continued(tmp_path):
    run(tmp_path)
    for name in ("checkpoint.pt", "previous.pt"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-100])
    before = left_by(tmp_path)
    with pytest.raises(CheckpointError, match="truncated"):
        run(tmp_path, resume=True, iterations=9)
    assert left_by(tmp_path) == before


def test_a_full_disk_ends_the_run_and_the_previous_checkpoint_loads(tmp_path, unbroken, monkeypatch):
    replace = os.replace

    def fail_at_the_second_checkpoint(source, target):
        if Path(target).name == "checkpoint.pt" and Path(target).exists():
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match=r"checkpoint.pt: No space left"):
        patch.setattr(os, "replace", fail_at_the_second_checkpoint)
        run(tmp_path)
    assert checkpoint.load(tmp_path / "checkpoint.pt")["iteration"] == 2
    run(tmp_path, resume=True)
    assert left_by(tmp_path) == unbroken


def test_a_resumed_run_remembers_its_best_validation(tmp_path):
    run(tmp_path, Scripted([5.0, 1.0]), iterations=2, validate_every=1)
    outcome = run(tmp_path, Scripted([5.0, 1.0, 4.0]), iterations=3, validate_every=1, resume=True)
    assert outcome.best == {"iteration": 1, "value": 5.0}
    assert checkpoint.load(tmp_path / "best.pt")["iteration"] == 1


def test_a_copied_run_continues_elsewhere(tmp_path, unbroken):
    run(tmp_path / "here", iterations=4)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    run(tmp_path / "there", resume=True)
    assert left_by(tmp_path / "there") == unbroken


@pytest.mark.parametrize("at", [1, 3, 4])
def test_a_run_stopped_between_two_lines_and_resumed_is_the_unbroken_one(tmp_path, at):
    options = {"iterations": 9, "log_every": 4, "keep_best": 2, "validate_every": 3}
    run(tmp_path / "unbroken", **options)
    interrupt = Interrupted(at, lambda: signal.raise_signal(signal.SIGTERM))
    assert run(tmp_path / "broken", interrupt, **options).iteration == at
    run(tmp_path / "broken", resume=True, **options)
    assert left_by(tmp_path / "broken") == left_by(tmp_path / "unbroken")


def test_a_run_of_an_earlier_version_is_refused(tmp_path):
    run(tmp_path)
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    del state["ranking"]
    checkpoint.save(tmp_path / "checkpoint.pt", state)
    with pytest.raises(CheckpointError, match="earlier version of metarl_l2f; resume it with that version"):
        run(tmp_path, resume=True, iterations=6)
