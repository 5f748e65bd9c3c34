"""The outer loop: a run that is stopped in any way and continued is the run that was never stopped."""

import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from metarl_l2f.parallel.ranks import RankError
from metarl_l2f.training import checkpoint, metrics
from metarl_l2f.training.checkpoint import CheckpointError
from metarl_l2f.training.loop import train
from metarl_l2f.training.metrics import MetricsLog, Shown
from metarl_l2f.training.run_folder import RunExistsError, RunLockedError, RunMissingError
from metarl_l2f.training.seeding import Stream, generator

PACKAGE = str(Path(checkpoint.__file__).parent)


class Walk:
    """A random walk that remembers every step it has taken: a step lost or taken twice shows in all that follow."""

    def __init__(self, seed=0):
        self.seed = seed
        self.place = torch.zeros(2, dtype=torch.float64)
        self.steps = 0

    def iterate(self, iteration):
        noise = generator(self.seed, Stream.POLICY, iteration).standard_normal(2)
        self.place = 0.9 * self.place + torch.from_numpy(noise)
        self.steps += 1
        return {"return/step_1": self.place[0].item(), "env_steps": self.steps}

    def validate(self, iteration):
        return {"validation/return": self.place[1].item()}

    def state_dict(self):
        return {"place": self.place, "steps": self.steps}

    def load_state_dict(self, state):
        self.place = state["place"]
        self.steps = state["steps"]


class Scripted(Walk):
    """A walk whose validation values are given."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def validate(self, iteration):
        return {"validation/return": self.values[iteration - 1]}


class Interrupted(Walk):
    """A walk that calls a function in the middle of one iteration."""

    def __init__(self, at, call):
        super().__init__()
        self.at = at
        self.call = call

    def iterate(self, iteration):
        if iteration == self.at:
            self.call()
        return super().iterate(iteration)


def run(directory, experiment=None, **options):
    defaults: dict[str, Any] = {
        "iterations": 5,
        "config": {"seed": 0, "method": "l2f"},
        "resume": False,
        "validate_every": 2,
        "validation_key": "validation/return",
        "progress_key": "return/step_1",
        "checkpoint_every": 2,
    }
    return train(experiment or Walk(), directory, **(defaults | options))


def left_by(directory):
    """The bytes of all files of a run but TensorBoard's, whose names and records hold the time."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.startswith("events.out")}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    directory = tmp_path_factory.mktemp("unbroken")
    run(directory)
    return left_by(directory)


def test_a_run_leaves_config_metrics_and_checkpoints(tmp_path):
    walk = Walk()
    outcome = run(tmp_path / "new" / "folder", walk)
    assert (outcome.start, outcome.iteration, outcome.interrupted) == (0, 5, None)
    files = left_by(tmp_path / "new" / "folder")
    assert sorted(files) == [".lock", "best.pt", "checkpoint.pt", "config.json", "metrics.jsonl", "previous.pt"]
    assert json.loads(files["config.json"]) == {"seed": 0, "method": "l2f"}
    state = checkpoint.load(tmp_path / "new" / "folder" / "checkpoint.pt")
    assert state["iteration"] == state["experiment"]["steps"] == 5
    assert state["config"] == {"seed": 0, "method": "l2f"}
    assert state["ranking"] == [outcome.best]
    assert torch.equal(state["experiment"]["place"], walk.place)


def test_each_iteration_is_one_line_and_validation_is_in_it(unbroken):
    lines = [json.loads(line) for line in unbroken["metrics.jsonl"].splitlines()]
    assert [line["iteration"] for line in lines] == [line["env_steps"] for line in lines] == [1, 2, 3, 4, 5]
    # Every second iteration, and the last.
    assert [line["iteration"] for line in lines if "validation/return" in line] == [2, 4, 5]


def test_two_runs_of_one_seed_leave_the_same_bytes(tmp_path, unbroken):
    run(tmp_path)
    assert left_by(tmp_path) == unbroken


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
    processes.set_forkserver_preload(["metarl_l2f.training", "pytest"])
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


def test_a_run_works_outside_the_main_thread(tmp_path, unbroken):
    thread = threading.Thread(target=run, args=(tmp_path,))
    thread.start()
    thread.join()
    assert left_by(tmp_path) == unbroken


def test_a_new_run_does_not_touch_an_old_one(tmp_path, unbroken):
    run(tmp_path)
    with pytest.raises(
        RunExistsError, match=r"already holds a run \(config.json, .*resume it, or choose another folder"
    ):
        run(tmp_path, Walk(seed=1))
    assert left_by(tmp_path) == unbroken


def test_a_folder_with_other_files_takes_a_new_run(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert run(tmp_path).iteration == 5


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


@pytest.mark.parametrize("resume", [False, True])
def test_one_folder_takes_one_run_at_a_time(tmp_path, resume):
    def start_another():
        with pytest.raises(RunLockedError, match="another process is training into"):
            run(tmp_path, resume=resume)

    assert run(tmp_path, Interrupted(3, start_another)).iteration == 5
    # Free again afterwards.
    assert run(tmp_path, resume=True, iterations=6).iteration == 6


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


@pytest.mark.parametrize(
    ("values", "higher_is_better", "expected"),
    [
        ([1.0, 3.0, 3.0, 2.0], True, {"iteration": 2, "value": 3.0}),  # a tie is no improvement
        ([3.0, 1.0, 2.0, 1.0], False, {"iteration": 2, "value": 1.0}),
        ([math.nan, -math.inf, math.nan, -5.0], True, {"iteration": 4, "value": -5.0}),
        ([math.nan, math.nan, math.nan, math.nan], True, None),
    ],
)
def test_the_best_checkpoint_is_that_of_the_best_validation(tmp_path, values, higher_is_better, expected):
    outcome = run(tmp_path, Scripted(values), iterations=4, validate_every=1, higher_is_better=higher_is_better)
    assert outcome.best == expected
    if expected is None:
        assert not (tmp_path / "best.pt").exists()
    else:
        best = checkpoint.load(tmp_path / "best.pt")
        assert best["iteration"] == best["experiment"]["steps"] == expected["iteration"]
        assert best["ranking"] == [expected]


def test_a_resumed_run_remembers_its_best_validation(tmp_path):
    run(tmp_path, Scripted([5.0, 1.0]), iterations=2, validate_every=1)
    outcome = run(tmp_path, Scripted([5.0, 1.0, 4.0]), iterations=3, validate_every=1, resume=True)
    assert outcome.best == {"iteration": 1, "value": 5.0}
    assert checkpoint.load(tmp_path / "best.pt")["iteration"] == 1


def test_checkpoints_are_written_as_often_as_asked(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda path, state: saved.append((path.name, state["iteration"])))
    run(tmp_path, Scripted([0.0] * 7), iterations=7, checkpoint_every=3)
    assert saved == [("best.pt", 2), ("checkpoint.pt", 3), ("checkpoint.pt", 6), ("checkpoint.pt", 7)]


def test_a_line_is_on_disk_before_its_checkpoint(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(MetricsLog, "write", lambda _, iteration, __: calls.append(("line", iteration)))
    monkeypatch.setattr(checkpoint, "save", lambda path, state: calls.append((path.name, state["iteration"])))
    run(tmp_path, iterations=1)
    assert calls == [("line", 1), ("best.pt", 1), ("checkpoint.pt", 1)]


@pytest.mark.parametrize("name", ["iterations", "validate_every", "checkpoint_every"])
def test_counts_are_positive(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
        run(tmp_path, **{name: 0})
    assert not list(tmp_path.iterdir())


def test_a_tag_that_is_not_measured_is_named(tmp_path):
    class Wordless(Walk):
        def iterate(self, iteration):
            return {"kl": 0.0, "surrogate": 0.0}

    with pytest.raises(ValueError, match="iterate returned no metric 'return/step_1'; it returned kl, surrogate"):
        run(tmp_path, Wordless())


def test_a_config_that_is_not_json_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="config holds dicts, lists, strings, numbers and None, got PosixPath"):
        run(tmp_path, config={"log_dir": tmp_path})
    assert not list(tmp_path.iterdir())


def test_the_progress_bar_shows_the_adapted_return_and_the_iterations(tmp_path, capsys):
    run(tmp_path, iterations=2)
    run(tmp_path, iterations=3, resume=True)
    shown = capsys.readouterr()
    assert "3/3" in shown.err
    assert "return/step_1=" in shown.err
    assert shown.out == ""


def test_a_copied_run_continues_elsewhere(tmp_path, unbroken):
    run(tmp_path / "here", iterations=4)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    run(tmp_path / "there", resume=True)
    assert left_by(tmp_path / "there") == unbroken


def test_lines_hold_the_means_of_what_they_cover(tmp_path):
    run(tmp_path, iterations=5, log_every=2, validate_every=5)
    walk = Walk()
    values = [walk.iterate(i)["return/step_1"] for i in range(1, 6)]
    lines = metrics.read(tmp_path)
    assert [line["iteration"] for line in lines] == [2, 4, 5]
    assert [line["return/step_1"] for line in lines] == pytest.approx(
        [(values[0] + values[1]) / 2, (values[2] + values[3]) / 2, values[4]]
    )
    assert ["validation/return" in line for line in lines] == [False, False, True]


@pytest.mark.parametrize("at", [1, 3, 4])
def test_a_run_stopped_between_two_lines_and_resumed_is_the_unbroken_one(tmp_path, at):
    options = {"iterations": 9, "log_every": 4, "keep_best": 2, "validate_every": 3}
    run(tmp_path / "unbroken", **options)
    interrupt = Interrupted(at, lambda: signal.raise_signal(signal.SIGTERM))
    assert run(tmp_path / "broken", interrupt, **options).iteration == at
    run(tmp_path / "broken", resume=True, **options)
    assert left_by(tmp_path / "broken") == left_by(tmp_path / "unbroken")


def test_the_best_few_states_are_kept_and_no_others(tmp_path):
    scripted = Scripted([3.0, 9.0, math.nan, 5.0, 7.0, 1.0])
    run(tmp_path, scripted, iterations=6, validate_every=1, keep_best=3)
    assert {path.name for path in tmp_path.glob("best*")} == {"best.pt", "best_2.pt", "best_4.pt", "best_5.pt"}
    assert checkpoint.load(tmp_path / "best_5.pt")["experiment"]["steps"] == 5
    ranking = checkpoint.load(tmp_path / "checkpoint.pt")["ranking"]
    assert [(entry["iteration"], entry["value"]) for entry in ranking] == [(2, 9.0), (5, 7.0), (4, 5.0)]


def test_a_run_of_an_earlier_version_is_refused(tmp_path):
    run(tmp_path)
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    del state["ranking"]
    checkpoint.save(tmp_path / "checkpoint.pt", state)
    with pytest.raises(CheckpointError, match="earlier version of metarl_l2f; resume it with that version"):
        run(tmp_path, resume=True, iterations=6)


def looks(walk):
    """An inspection that counts: what it was given, and the walk's steps."""
    return lambda line: Shown({"seen": walk.steps + line["return/step_1"]}, {"values": torch.arange(3).numpy()}, {})


def test_a_run_is_looked_at_every_so_often(tmp_path):
    walk = Walk()
    run(tmp_path, walk, inspect=looks(walk), inspect_every=2)
    lines = metrics.read(tmp_path)
    assert [line["iteration"] for line in lines if "seen" in line] == [2, 4]
    assert all(line["seen"] == line["iteration"] + line["return/step_1"] for line in lines if "seen" in line)
    events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0}).Reload()
    assert [event.step for event in events.Histograms("values")] == [2, 4]


def fails(line):
    raise ZeroDivisionError("there is nothing to see")


def failing_picture(line):
    figure = Figure()
    figure.text(0, 0, "$\\no_such_symbol$")  # Found out when it is drawn.
    return Shown({"seen": 1.0}, {}, {"sight": figure})


@pytest.mark.parametrize(
    ("inspect", "seen", "warned"),
    [
        (fails, 0, "the inspection after iteration 4 failed, and the run goes on without it: ZeroDivisionError: there"),
        (
            lambda line: Shown({"seen": None}, {}, {}),
            0,
            "the inspection after iteration 4 failed, .*: TypeError: float",
        ),
        (failing_picture, 2, "TensorBoard's view of the inspection after iteration 4 failed, .*: ValueError: "),
    ],
)
def test_an_inspection_that_fails_is_a_warning_and_changes_nothing(tmp_path, unbroken, caplog, inspect, seen, warned):
    assert run(tmp_path, inspect=inspect, inspect_every=2).iteration == 5
    assert re.search(warned, caplog.text)
    assert sum("seen" in line for line in metrics.read(tmp_path)) == seen
    assert left_by(tmp_path)["checkpoint.pt"] == unbroken["checkpoint.pt"]
    caplog.clear()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RankError])
def test_an_interrupt_or_a_lost_rank_in_an_inspection_ends_the_run(tmp_path, error):
    def inspect(line):
        raise error

    with pytest.raises(error):
        run(tmp_path, inspect=inspect)


def test_looking_changes_nothing_but_the_lines_and_resumes_too(tmp_path, unbroken):
    walk, first, then = Walk(), Walk(), Walk()
    run(tmp_path / "whole", walk, inspect=looks(walk), inspect_every=2)
    run(tmp_path / "halves", first, iterations=3, inspect=looks(first), inspect_every=2)
    run(tmp_path / "halves", then, resume=True, inspect=looks(then), inspect_every=2)
    whole, halves = left_by(tmp_path / "whole"), left_by(tmp_path / "halves")
    assert whole["checkpoint.pt"] == halves["checkpoint.pt"] == unbroken["checkpoint.pt"]
    ours, theirs = ([line.get("seen") for line in metrics.read(tmp_path / name)] for name in ("halves", "whole"))
    assert ours == theirs and any(ours)
