"""The outer loop: it iterates, validates, logs and saves as often as it is told, into a folder of one run."""

import json
import math
import threading

import pytest
import torch

from metarl_l2f.training import checkpoint, metrics
from metarl_l2f.training.metrics import MetricsLog
from metarl_l2f.training.run_folder import RunExistsError, RunLockedError

from .walk import Interrupted, Scripted, Walk, left_by, run


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


@pytest.mark.parametrize("resume", [False, True])
def test_one_folder_takes_one_run_at_a_time(tmp_path, resume):
    def start_another():
        with pytest.raises(RunLockedError, match="another process is training into"):
            run(tmp_path, resume=resume)

    assert run(tmp_path, Interrupted(3, start_another)).iteration == 5
    # Free again afterwards.
    assert run(tmp_path, resume=True, iterations=6).iteration == 6


def test_a_run_works_outside_the_main_thread(tmp_path, unbroken):
    thread = threading.Thread(target=run, args=(tmp_path,))
    thread.start()
    thread.join()
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
    with pytest.raises(ValueError, match=f"{name} must be a whole number, 1 or more, got 0"):
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


def test_the_best_few_states_are_kept_and_no_others(tmp_path):
    scripted = Scripted([3.0, 9.0, math.nan, 5.0, 7.0, 1.0])
    run(tmp_path, scripted, iterations=6, validate_every=1, keep_best=3)
    assert {path.name for path in tmp_path.glob("best*")} == {"best.pt", "best_2.pt", "best_4.pt", "best_5.pt"}
    assert checkpoint.load(tmp_path / "best_5.pt")["experiment"]["steps"] == 5
    ranking = checkpoint.load(tmp_path / "checkpoint.pt")["ranking"]
    assert [(entry["iteration"], entry["value"]) for entry in ranking] == [(2, 9.0), (5, 7.0), (4, 5.0)]
