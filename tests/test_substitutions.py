"""What is missing, edited or given twice is named; nothing else is silently taken in its place."""

import json
import logging
import shutil

import pytest

from metarl_l2f.launchers import cheetah_vel, evaluate, figures, navigation, play, sinusoid
from metarl_l2f.training.checkpoint import load, save
from metarl_l2f.training.metrics import gap, read

TINY = ["--tasks-per-batch", "3", "--hidden-sizes", "4", "--threads", "1", "--inspect-every", "0"]
FEW = [*TINY, "--episodes-per-task", "2", "--horizon", "8", "--validate-every", "2", "--evaluation-tasks", "2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four iterations."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert navigation.main([*FEW, "--iterations", "4", "--log-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it that a test may damage."""
    return shutil.copytree(trained, tmp_path / "run")


def failing(capsys, program, *arguments):
    """The one line with which a program refuses."""
    capsys.readouterr()
    assert program.main(list(map(str, arguments))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


# --- The best state ---


def test_a_best_state_that_is_gone_is_not_replaced_by_the_latest(run, capsys):
    best = load(run / "best.pt")["iteration"]
    (run / "best.pt").unlink()
    for program, arguments in (
        (evaluate, [run, "--tasks", "2"]),
        (play, [run]),
        (figures, [run, "--out", run / "pictures"]),
        (navigation, ["--resume", run, "--evaluation-tasks", "3"]),  # The report, whose run is done.
    ):
        capsys.readouterr()
        assert program.main(list(map(str, arguments))) == 2
        error = capsys.readouterr().err
        assert (
            f"error: {run / 'best.pt'} is missing, though the validation after iteration {best} was the best" in error
        )
        assert "copy checkpoint.pt there to take the latest, of iteration 4" in error
    assert evaluate.main([str(run), "--tasks", "2", "--checkpoint", "latest"]) == 0


def test_a_resumed_run_says_that_its_best_state_is_gone(run, capsys):
    (run / "best.pt").unlink()
    navigation.main(["--resume", str(run), "--iterations", "5", "--evaluation-tasks", "0"])
    assert f"{run / 'best.pt'} is missing, the state after iteration" in capsys.readouterr().err


def test_where_nothing_was_validated_yet_the_latest_state_is_named(run, caplog):
    # As a run leaves it that was stopped before its first validation.
    (run / "best.pt").unlink()
    content = load(run / "checkpoint.pt") | {"ranking": []}
    save(run / "checkpoint.pt", content)
    with caplog.at_level(logging.WARNING):
        assert evaluate.main([str(run), "--tasks", "2"]) == 0
    assert "has no best.pt, for no validation gave a number yet; taking checkpoint.pt" in caplog.text


# --- Metrics ---


@pytest.mark.parametrize(
    ("lines", "until", "every", "said"),
    [
        ([1, 2, 3], 3, 1, None),
        ([2, 4, 5], 5, 2, None),
        ([], 0, 1, None),
        ([1, 3], 3, 1, "lacks 1 of the 3 lines up to iteration 3, the first of them that of iteration 2"),
        ([], 7, 2, "lacks 3 of the 3 lines up to iteration 7, the first of them that of iteration 2"),
    ],
)
def test_gaps_in_metrics_are_counted(lines, until, every, said):
    found = gap([{"iteration": iteration} for iteration in lines], until, every)
    assert found is None if said is None else found == f"metrics.jsonl {said}"


@pytest.mark.parametrize("kept", [None, 1, 3])
def test_metrics_that_are_missing_or_short_are_named_on_resume_and_in_figures(run, capsys, kept):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.unlink()
    if kept is not None:
        path.write_text("".join(lines[:kept]))
    lacking = f"metrics.jsonl lacks {4 - (kept or 0)} of the 4 lines up to iteration 4"
    assert navigation.main(["--resume", str(run), "--iterations", "5"]) == 0
    assert f"in {run} {lacking}" in capsys.readouterr().err
    assert figures.main([str(run), "--out", str(run / "pictures"), "--tasks", "2", "--no-manual"]) == 0
    assert (
        f"{run}: {lacking.replace('4 lines up to iteration 4', '5 lines up to iteration 5')}" in capsys.readouterr().out
    )


def test_metrics_that_are_missing_or_short_are_named_in_the_report(run, capsys):
    path = run / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    assert evaluate.main([str(run), "--tasks", "2"]) == 0
    assert "metrics.jsonl lacks 1 of the 4 lines up to iteration 4" in (run / "report.html").read_text()
    path.unlink()
    assert f"error: {run} has no metrics.jsonl; put it back" in failing(capsys, evaluate, run, "--tasks", "2")


def test_averaged_metrics_have_no_gap(tmp_path, capsys):
    folder = tmp_path / "run"
    flags = [*TINY, "--validate-every", "4", "--checkpoint-every", "1", "--log-every", "3", "--evaluation-tasks", "0"]
    assert sinusoid.main([*flags, "--iterations", "5", "--log-dir", str(folder)]) == 0
    assert [line["iteration"] for line in read(folder)] == [3, 4, 5]
    assert sinusoid.main(["--resume", str(folder), "--iterations", "7"]) == 0
    assert "lacks" not in capsys.readouterr().err


# --- Options ---


def test_a_resumed_run_stays_in_its_folder(run, tmp_path, capsys):
    error = failing(capsys, navigation, "--resume", run, "--log-dir", tmp_path / "other", "--iterations", "5")
    assert f"a resumed run stays in its own folder, {run}, but log_dir is {tmp_path / 'other'}; drop --log-dir" in error
    same = run.parent / "elsewhere" / ".." / "run"
    assert navigation.main(["--resume", str(run), "--log-dir", str(same), "--evaluation-tasks", "0"]) == 0


def test_a_run_is_resumed_once(run, tmp_path, capsys):
    error = failing(capsys, navigation, "--resume", run, f"--resume={tmp_path}")
    assert f"resume must be given once, got {run} and {tmp_path}" in error


def test_the_wrong_launcher_names_the_right_one(run, capsys):
    error = failing(capsys, cheetah_vel, "--resume", run)
    assert f"{run} is a run of navigation.py, not of cheetah_vel.py; go on with: " in error
    assert error.endswith(f"metarl_l2f.launchers.navigation --resume {run}")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda options: options["settings"]["inner"].update(inner_lr=0.2), "settings.inner.inner_lr 0.1 (not 0.2)"),
        (lambda options: options.update(goal_range=0.7), "goal_range 0.5 (not 0.7)"),
    ],
)
def test_an_edited_configuration_is_named(run, capsys, change, named):
    config = json.loads((run / "config.json").read_text())
    change(config["options"])
    (run / "config.json").write_text(json.dumps(config))
    for program, arguments in ((evaluate, [run]), (navigation, ["--resume", run, "--iterations", "5"])):
        capsys.readouterr()
        assert program.main(list(map(str, arguments))) == 2
        error = capsys.readouterr().err
        assert "was trained with other options than config.json says" in error or "was trained on" in error
        assert named in error or "'goal_range': 0.5" in error


def test_what_may_change_on_resume_is_no_edit(run):
    assert navigation.main(["--resume", str(run), "--iterations", "5", "--evaluation-tasks", "3"]) == 0
    assert evaluate.main([str(run), "--tasks", "2"]) == 0
    assert navigation.main(["--resume", str(run), "--iterations", "6"]) == 0
