"""The supervised study: its table from runs, and the same table again from the scores of every task that it keeps."""

import csv
import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from metarl_l2f.launchers import sinusoid
from metarl_l2f.reports.evaluation import Evaluation, read_scores, write_scores

ROOT = Path(__file__).parents[1]
supervised_study = runpy.run_path(str(ROOT / "studies" / "supervised_study.py"))["main"]


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_scores_come_back_to_the_last_digit_and_the_same_bytes(tmp_path):
    random = np.random.default_rng(0)
    scores = {
        ("l2f", "1"): Evaluation(random.normal(size=(3, 2)) / 3, {}, tasks=random.normal(size=(3, 2))),
        ("maml", "1"): Evaluation(random.normal(size=(2, 4)).astype(np.float32), {}),
    }
    write_scores(tmp_path / "a.csv.gz", ["method", "run"], scores)
    found = read_scores(tmp_path / "a.csv.gz")
    assert list(found) == list(scores)
    for key, one in scores.items():
        assert np.array_equal(found[key].scores, one.scores)
    assert np.array_equal(found["l2f", "1"].tasks, scores["l2f", "1"].tasks) and found["maml", "1"].tasks is None
    write_scores(tmp_path / "b.csv.gz", ["method", "run"], found)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()


@pytest.mark.parametrize("damage", [b"", b"not gzip", None])
def test_a_file_that_holds_no_scores_is_named(tmp_path, damage):
    path = tmp_path / "scores.csv.gz"
    write_scores(path, ["run"], {("a",): Evaluation(np.zeros((2, 2)), {})})
    path.write_bytes(path.read_bytes()[:-9] if damage is None else damage)
    with pytest.raises(ValueError, match=r"scores\.csv\.gz holds no scores of a study"):
        read_scores(path)


def test_a_supervised_study_is_computed_again_from_what_it_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = "--iterations 2 --tasks-per-batch 2 --validation-tasks 2 --evaluation-tasks 3 --evaluation-repeats 2 "
    flags += "--evaluation-steps 1 --log-every 1 --inspect-every 0 --threads 1 --log-dir"
    for method in ("l2f", "maml"):
        assert sinusoid.main(["--method", method, "--inner-lr", "0.01", *flags.split(), method]) == 0
    capsys.readouterr()
    assert supervised_study(["l2f", "maml"]) == 0
    printed = capsys.readouterr().out
    assert "minus_maml" in printed and sorted(path.name for path in tmp_path.iterdir()) == ["l2f", "maml"]
    assert supervised_study(["l2f", "maml", "--out", "kept"]) == 0
    assert capsys.readouterr().out == printed
    lines = (tmp_path / "kept" / "runs.csv").read_text()
    evaluated = json.loads((tmp_path / "l2f" / "evaluation.json").read_text())["mean"][1]
    assert f",{evaluated!r}," in lines  # To the last digit.
    assert supervised_study(["--again", "kept"]) == 0
    assert capsys.readouterr().out == printed
    # From every task's scores indeed: numbers that were written wrong are right again.
    stored = rows_of(tmp_path / "kept" / "runs.csv")
    for row in stored[1:]:
        row[stored[0].index("score")] = "7.0"
    with open(tmp_path / "kept" / "runs.csv", "w", newline="") as file:
        csv.writer(file).writerows(stored)
    assert supervised_study(["--again", "kept"]) == 0
    assert capsys.readouterr().out == printed
    # Runs that are collected later join those that are there, with their scores.
    shutil.copytree(tmp_path / "maml", tmp_path / "other")
    (tmp_path / "kept" / "runs.csv").write_text(lines)
    assert supervised_study(["other", "--out", "kept"]) == 0
    assert set(read_scores(tmp_path / "kept" / "scores.csv.gz")) == {("l2f",), ("maml",), ("other",)}


def test_a_supervised_study_takes_runs_or_an_earlier_study(capsys):
    for flags, text in (
        ([], "name runs, or an earlier study's folder with --again"),
        (["--again", "x", "--out", "y"], "drop --out"),
    ):
        assert supervised_study(flags) == 2
        assert text in capsys.readouterr().err
