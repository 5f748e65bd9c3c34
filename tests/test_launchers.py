"""The programs as a user runs them: what they leave, how they resume, and how they fail."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from metarl_l2f.launchers import ant, cheetah_dir, cheetah_vel, evaluate, figures, navigation, rand_params
from metarl_l2f.parallel.ranks import Group
from metarl_l2f.runs.comparison import labels_of
from metarl_l2f.training.checkpoint import load
from metarl_l2f.training.metrics import read

ROOT = Path(__file__).parents[1]
TINY = [
    *("--tasks-per-batch", "3", "--episodes-per-task", "2", "--horizon", "8", "--hidden-sizes", "4"),
    *("--validate-every", "2", "--evaluation-tasks", "4", "--threads", "1"),
]


def train(folder, iterations, *flags):
    return navigation.main([*TINY, "--iterations", str(iterations), "--log-dir", str(folder), *flags])


@pytest.mark.parametrize(
    ("program", "flags", "pictured"),
    [(ant, [], True), (ant, ["--goals", "velocity"], True), (rand_params, [], False)],
)
def test_other_bodies_learn_from_the_same_launcher(tmp_path, program, flags, pictured):
    assert program.main([*TINY, *flags, "--iterations", "1", "--log-dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "evaluation.json").exists()
    assert (tmp_path / "run" / "speeds.png").exists() == pictured


@pytest.mark.parametrize(("program", "tasks"), [(cheetah_dir, ["-1", "1"]), (cheetah_vel, [])])
def test_a_cheetah_run_reports_every_task_and_resumes_bit_for_bit(tmp_path, capsys, program, tasks):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    for folder, iterations in ((unbroken, 3), (broken, 1)):
        assert program.main([*TINY, "--iterations", str(iterations), "--log-dir", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert all(any(line.split()[:2] == [task, "2"] for line in printed.splitlines()) for task in tasks)
    assert (unbroken / "speeds.png").stat().st_size > 0
    # Balanced: a cheetah that always runs one way must not look good by chance.
    assert not tasks or sorted(json.loads((unbroken / "evaluation.json").read_text())["tasks"]) == [-1, -1, 1, 1]
    assert program.main(["--resume", str(broken), "--iterations", "3", "--threads", "2"]) == 0
    ours, theirs = (load(folder / "checkpoint.pt")["experiment"]["learner"] for folder in (broken, unbroken))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_a_finished_run_that_is_started_again_ends_at_once(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    assert train(folder, 2) == 0
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}
    capsys.readouterr()
    for restarts in (None, 1):
        if restarts is None:
            assert navigation.main(["--resume", str(folder)]) == 0
        else:  # torchrun starts a group again with the command that it was first started with.
            monkeypatch.setattr(Group, "restarts", restarts)
            assert train(folder, 2) == 0
        out, err = capsys.readouterr()
        assert "already has 2 iterations" in err and "report.html is up to date; to evaluate otherwise: " in out
        assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}


def test_a_finished_run_is_reported_on_again_with_other_options_or_if_it_was_not(tmp_path, capsys):
    folder = tmp_path / "run"
    assert train(folder, 2) == 0
    assert navigation.main(["--resume", str(folder), "--evaluation-tasks", "5"]) == 0
    assert "mean over 5 held-out tasks" in capsys.readouterr().out
    (folder / "report.html").unlink()
    assert navigation.main(["--resume", str(folder)]) == 0
    assert "mean over 4 held-out tasks" in capsys.readouterr().out and (folder / "report.html").exists()


def metrics(folder):
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in read(folder)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(folder, 3) == 0
    return folder


def test_a_run_leaves_everything_it_promises(run):
    names = {path.name for path in run.iterdir()}
    assert {
        "config.json",
        "metrics.jsonl",
        "checkpoint.pt",
        "best.pt",
        "evaluation.json",
        "learning_curve.png",
        "navigation_paths.png",
    } <= names
    assert any(name.startswith("events.out") for name in names)
    config = json.loads((run / "config.json").read_text())
    assert config["environment"]["id"] == "metarl_l2f/Navigation2D-v0"
    assert config["options"]["settings"]["horizon"] == 8
    assert "torch" in config["versions"]


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--method", "maml"],
        ["--inner-steps", "2"],
        ["--learn-inner-lr"],
        ["--state-dependent-std", "--normalise-observations"],
        ["--tasks-per-shard", "1", "--tasks-per-batch", "4", "--horizon", "5"],
    ],
)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path, flags):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert train(unbroken, 4, "--evaluation-tasks", "0", *flags) == 0
    assert train(broken, 2, "--evaluation-tasks", "0", *flags) == 0
    assert navigation.main(["--resume", str(broken), "--iterations", "4", "--threads", "2"]) == 0
    assert metrics(broken) == metrics(unbroken)
    ours, theirs = (load(folder / "checkpoint.pt")["experiment"]["learner"] for folder in (broken, unbroken))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_figures_draws_everything_that_applies_from_run_folders_alone(run, capsys, tmp_path):
    other, out = tmp_path / "maml", tmp_path / "pictures"
    assert train(other, 2, "--method", "maml", "--inspect-every", "1") == 0
    assert train(tmp_path / "l2f", 2, "--inspect-every", "1") == 0
    flags = ["--out", str(out), "--tasks", "3"]
    assert figures.main([str(tmp_path / "l2f"), str(other), *flags]) == 0
    common = {"learning_curve", "scores_by_step", "conflict", "gradient_cosine", "gamma", "gamma_by_task_l2f"}
    common |= {"manual_attenuation", "landscape", "navigation_paths_l2f", "navigation_paths_maml"}
    assert {path.name for path in out.iterdir()} == {
        *(f"{name}{suffix}" for name in common for suffix in (".png", ".pdf")),
        "numbers.csv",
    }
    _, *rows = csv.reader((out / "numbers.csv").read_text().splitlines())
    numbers = {tuple(row[:4]): float(row[4]) for row in rows}
    evaluated = json.loads((other / "evaluation.json").read_text())["mean"]
    assert numbers["scores_by_step", "MAML", "1", "return after 2"] == evaluated[2]  # To the last digit.
    assert numbers["landscape_at_end", "MAML", "1", "landscape/smoothness"] > 0
    # Shrunk by 1 a layer is what it was, whichever it is.
    whole = {value for (figure, label, _, what), value in numbers.items() if what.endswith("× 1.0") and label == "L2F"}
    assert len(whole) == 1


def test_figures_refuses_what_does_not_belong_together(run, capsys, tmp_path):
    other = tmp_path / "other"
    assert train(other, 1, "--varying-start") == 0
    assert "must share their problem" in failing(capsys, run, str(other), "--out", str(tmp_path), program=figures)
    (other / "evaluation.json").unlink()
    assert "has no evaluation.json; finish it" in failing(capsys, other, "--out", str(tmp_path), program=figures)
    assert "holds no run" in failing(capsys, tmp_path, "--out", str(tmp_path), program=figures)
    assert "a run is named twice" in failing(capsys, run, str(run), "--out", str(tmp_path), program=figures)
    assert train(tmp_path / "again", 1) == 0
    repeated = failing(capsys, run, str(tmp_path / "again"), "--out", str(tmp_path), program=figures)
    assert "runs of L2F must be of different seeds, got [1, 1]" in repeated
    assert evaluate.main([str(tmp_path / "again"), "--episodes", "2", "--tasks", "3", "--steps", "1"]) == 0
    unlike = failing(capsys, run, str(tmp_path / "again"), "--out", str(tmp_path), program=figures)
    assert "must be evaluated alike" in unlike and "steps (3, 1)" in unlike


def test_figures_tells_settings_of_one_method_apart(tmp_path, capsys):
    chosen = {
        "a": [],
        "b": ["--seed", "2"],
        "c": ["--initial-std", "0.5"],
        "d": ["--initial-std", "0.5", "--seed", "2"],
    }
    for name, flags in chosen.items():
        assert train(tmp_path / name, 1, "--method", "maml", *flags) == 0
    runs = [tmp_path / name for name in chosen]
    assert labels_of(runs[:2], navigation.Navigation) == ["MAML", "MAML"]
    labels = ["MAML, initial std 0.1"] * 2 + ["MAML, initial std 0.5"] * 2
    assert labels_of(runs, navigation.Navigation) == labels
    out = tmp_path / "pictures"
    assert figures.main([*map(str, runs), "--out", str(out), "--tasks", "2", "--no-manual"]) == 0
    assert "no landscape over training: not looked at in" in capsys.readouterr().out
    assert (out / "navigation_paths_maml_initial_std_0_5.pdf").exists() and not (out / "landscape.png").exists()
    assert not (out / "manual_attenuation.png").exists()


def test_evaluate_compares_two_runs_task_by_task(run, capsys, tmp_path):
    other, out = tmp_path / "maml", tmp_path / "compared.json"
    assert train(other, 2, "--method", "maml", "--seed", "5") == 0
    flags = ["--tasks", "5", "--episodes", "2", "--steps", "2"]
    assert evaluate.main(["--compare", str(run), str(other), *flags, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    scores = []
    for folder in (run, other):  # By hand: both with the first run's seed.
        assert evaluate.main([str(folder), *flags, "--seed", "1", "--out", str(tmp_path / "one.json")]) == 0
        scores.append(np.array(json.loads((tmp_path / "one.json").read_text())["scores"]))
    found = json.loads(out.read_text())
    assert found["a_minus_b"] == pytest.approx((scores[0] - scores[1]).mean(0), abs=1e-4)
    assert found["a"]["mean"] == pytest.approx(scores[0].mean(0), abs=1e-4)
    assert f"B  {other}" in printed and f"{found['a_minus_b'][2]:.2f} ± {found['interval_95'][2]:.2f}" in printed


def test_a_comparison_needs_two_runs_of_one_problem(run, capsys, tmp_path):
    other = tmp_path / "other"
    assert train(other, 1, "--varying-start") == 0
    assert evaluate.main(["--compare", str(run), str(other), "--tasks", "3"]) == 2
    assert "paired evaluations must share one protocol" in capsys.readouterr().err
    for arguments in ([], [str(run), "--compare", str(run), str(other)]):
        with pytest.raises(SystemExit):
            evaluate.main(arguments)
        assert "name one run, as in evaluate.py RUN, or two" in capsys.readouterr().err


def test_evaluate_prints_a_table_and_writes_json(run, capsys, tmp_path):
    out = tmp_path / "e.json"
    status = evaluate.main([str(run), "--tasks", "5", "--episodes", "2", "--steps", "4", "--out", str(out)])
    assert status == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("steps  return (mean over 5 held-out tasks")
    assert [line.split()[0] for line in printed[1:6]] == ["0", "1", "2", "3", "4"]
    content = json.loads(out.read_text())
    assert len(content["mean"]) == 5
    assert content["protocol"]["episodes_per_task_and_step"] == 2


def test_later_steps_can_be_made_smaller_in_evaluation(run, tmp_path):
    scores = []
    for factor in ("1e-9", "0.5"):
        out = tmp_path / f"{factor}.json"
        assert evaluate.main([str(run), "--tasks", "3", "--later-lr-factor", factor, "--out", str(out)]) == 0
        scores.append(json.loads(out.read_text())["scores"])
    (still, moved) = scores
    assert [row[:2] for row in still] == [row[:2] for row in moved]  # the trained step is the same
    assert [row[2] for row in still] != [row[2] for row in moved]


def test_evaluating_twice_gives_the_same_numbers(run, tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, threads in zip(files, "12", strict=True):
        evaluate.main([str(run), "--tasks", "6", "--steps", "1", "--out", str(file), "--threads", threads])
    assert files[0].read_text() == files[1].read_text()


def failing(capsys, *arguments, program=navigation):
    status = program.main(list(map(str, arguments)))
    assert status == 2
    return capsys.readouterr().err


def test_a_folder_that_holds_a_run_is_refused(run, capsys):
    assert train(run, 3) == 2
    error = capsys.readouterr().err
    assert "--resume" in error
    assert "--log-dir" in error


def test_resuming_nothing_says_so(tmp_path, capsys):
    assert "holds no run" in failing(capsys, "--resume", tmp_path)


def test_what_defines_a_run_cannot_change_on_resume(run, capsys):
    error = failing(capsys, "--resume", run, "--inner-lr", "0.3", "--goal-range", "1")
    assert "goal_range, settings cannot change" in error


def test_damaged_checkpoints_are_refused_and_named(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in run.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    whole = (copy / "checkpoint.pt").read_bytes()
    for name in ("checkpoint.pt", "previous.pt"):
        (copy / name).write_bytes(whole[: len(whole) // 2])
    error = failing(capsys, "--resume", copy, "--iterations", "5")
    assert "checkpoint.pt" in error
    assert "truncated" in error
    (copy / "checkpoint.pt").unlink()
    assert "checkpoint.pt" in failing(capsys, "--resume", copy, "--iterations", "5")


def test_a_checkpoint_of_another_environment_is_refused(run, tmp_path, capsys):
    other = tmp_path / "other"
    assert train(other, 1, "--squared", "--evaluation-tasks", "0") == 0
    (other / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes())
    error = failing(capsys, "--resume", other, "--iterations", "5")
    assert "'squared': False" in error.split("but the run is on")[0]
    assert "'squared': True" in error.split("but the run is on")[1]
    assert "was trained on" in failing(capsys, other, "--checkpoint", "latest", program=evaluate)


def test_evaluating_a_missing_run_says_so(tmp_path, capsys):
    assert "holds no run" in failing(capsys, tmp_path, program=evaluate)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--horizon", "0"], "horizon must be a whole number, 1 or more"),
        (["--tasks-per-batch", "x"], "--tasks-per-batch"),
        (["--nonsense"], "--nonsense"),
        (["--estimator", "magic"], "--estimator"),
    ],
)
def test_unknown_flags_and_values_exit_with_one_error_that_names_them(flags, named, capsys):
    with pytest.raises(SystemExit) as stopped:
        navigation.main(flags)
    assert stopped.value.code == 2
    assert named in " ".join(capsys.readouterr().err.split())


def test_an_unknown_method_is_one_error_with_the_known_ones(capsys):
    error = failing(capsys, "--method", "reptile")
    assert error.startswith("error: method must be one of l2f, maml, ") and "got 'reptile'" in error


def test_a_bad_goal_range_is_one_clear_error(tmp_path, capsys):
    error = failing(capsys, *TINY, "--goal-range", "-1", "--log-dir", tmp_path / "run")
    assert "goal_range must be positive and finite, got -1" in error
    assert not (tmp_path / "run").exists()


def test_iterations_must_be_positive(tmp_path, capsys):
    assert "iterations must be a whole number, 1 or more, got 0" in failing(
        capsys, *TINY, "--iterations", 0, "--log-dir", tmp_path / "run"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_iteration_saves_and_says_how_to_resume(tmp_path, number):
    folder = tmp_path / "run"
    command = [sys.executable, str(ROOT / "launchers" / "navigation.py"), *TINY, "--iterations", "100000"]
    environment = os.environ | {"PYTHONWARNINGS": "default"}
    process = subprocess.Popen(
        [*command, "--log-dir", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    assert f"--resume {folder}" in out
    done = load(folder / "checkpoint.pt")["iteration"]
    assert done == len(read(folder)) >= 1


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as stopped:
        navigation.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--method", "--seed", "--iterations", "--tasks-per-batch", "--episodes-per-task", "--inner-steps"):
        assert flag in text
    for flag in ("--inner-lr", "--log-dir", "--resume", "--threads", "--horizon", "--squared", "--varying-start"):
        assert flag in text
