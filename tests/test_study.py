"""The study of methods: its tables follow from every task's scores, which are kept."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from metarl_l2f.launchers import navigation

STUDY = runpy.run_path(str(Path(__file__).parents[1] / "studies" / "study.py"))
Scores, Protocol = STUDY["Scores"], STUDY["Protocol"]


def by_hand() -> "Scores":
    """Two tasks, two seeds, no step and one step; MAML gains 1 with every task, L2F 2 or 4."""
    scores = Scores()
    before = np.array([[-4.0], [-2.0]])
    for seed in (1, 2):
        scores.of[Protocol("l2f", 20)][seed] = np.hstack([before, before + 2 * seed])
        scores.of[Protocol("maml", 20)][seed] = np.hstack([before, before + 1])
        scores.tasks[seed] = np.array([-1.0, 1.0])
    return scores


def test_means_and_paired_differences_by_hand():
    tables = STUDY["tables"](by_hand())
    returns = {tuple(row[:3]): row[3:] for row in tables["returns"][1:]}
    paired = {tuple(row[:3]): row[3:] for row in tables["paired"][1:]}
    # L2F after one step: seeds −3 + 2 and −3 + 4, mean 0; ± t · s / √2 = 12.706 · √2 / √2.
    mean, over_seeds, _, *seeds = returns["l2f", 20, 1]
    assert (mean, seeds) == (0.0, [-1.0, 1.0]) and over_seeds == pytest.approx(12.706, abs=1e-3)
    # The difference is 1 with every task of seed 1, and 3 with every task of seed 2; before adaptation 0.
    mean, over_seeds, over_tasks, *seeds = paired["l2f − maml", 20, 1]
    assert (mean, seeds) == (2.0, [1.0, 3.0]) and over_seeds == pytest.approx(12.706, abs=1e-3)
    assert over_tasks == pytest.approx(3.182 * np.std([1, 1, 3, 3], ddof=1) / 2, abs=1e-3)
    assert paired["l2f − maml", 20, 0][:2] == [0.0, 0.0]
    assert ["l2f", 20, 1, "-1", 2, -1.0] in tables["by_task"]  # −4 + 2 and −4 + 4.


def test_tables_are_the_same_from_the_scores_that_are_kept(tmp_path, capsys):
    scores = by_hand()
    scores.of[Protocol("l2f", 20)][1][0, 1] = 1 / 3  # A number that no short decimal is equal to.
    scores.save(tmp_path / "scores.csv.gz")
    read = STUDY["load_scores"](tmp_path / "scores.csv.gz")
    assert STUDY["tables"](read) == STUDY["tables"](scores)
    assert STUDY["main"](["--scores", str(tmp_path / "scores.csv.gz")]) == 0
    assert "l2f − maml\t20\t1\t" in capsys.readouterr().out


def test_tables_are_stored_to_the_last_digit_and_printed_with_three(tmp_path, capsys):
    STUDY["write"](tmp_path / "a.csv", [["l2f", 1, 1 / 3, np.float64(0.1) * 3]])
    assert (tmp_path / "a.csv").read_text().split(",") == ["l2f", "1", "0.3333333333333333", "0.30000000000000004\n"]
    assert capsys.readouterr().out == "l2f\t1\t0.333\t0.300\n"


def test_an_earlier_study_is_paired_by_seed(tmp_path):
    earlier = tmp_path / "returns.csv"
    lines = [
        "what,episodes,steps,mean,over_seeds,over_tasks,run_1,run_2",
        "old,20,0,0,0,0,-3,-3",
        "old,20,1,0,0,0,-2,-2",
    ]
    earlier.write_text("\n".join(lines) + "\n")
    rows = {tuple(row[:3]): row[3:] for row in STUDY["beside"](by_hand(), earlier)[1:]}
    assert rows["l2f − old", 20, 0][0] == 0.0
    # L2F's seed means after one step are −1 and 1: differences 1 and 3.
    mean, over_seeds, *differences = rows["l2f − old", 20, 1]
    assert (mean, differences) == (2.0, [1.0, 3.0]) and over_seeds == pytest.approx(12.706, abs=1e-3)
    earlier.write_text("\n".join(lines[:2]) + "\n")
    with pytest.raises(ValueError, match="has 0 seeds of old after 1 steps with 20 episodes, expected 2"):
        STUDY["beside"](by_hand(), earlier)


def test_methods_with_other_seeds_are_refused():
    scores = by_hand()
    del scores.of[Protocol("maml", 20)][2]
    with pytest.raises(
        ValueError, match=r"seeds of every method must be the same, got \[1, 2\] of l2f and \[1\] of maml"
    ):
        STUDY["tables"](scores)


def test_runs_of_two_methods_are_evaluated_paired_and_described(tmp_path, capsys):
    few = (
        "--iterations 1 --tasks-per-batch 2 --episodes-per-task 2 --horizon 4 --evaluation-tasks 0 --threads 1 --method"
    )
    runs = []
    for method in ("maml-two-sigmas", "maml"):
        runs.append(str(tmp_path / method))
        assert navigation.main([*few.split(), method, "--log-dir", runs[-1]]) == 0
    chosen = ["--tasks", "3", "--episodes", "2", "--steps", "1"]
    capsys.readouterr()
    assert STUDY["main"]([*runs, *chosen]) == 0
    printed = capsys.readouterr().out
    assert "maml-two-sigmas − maml\t2\t1\t" in printed
    out = tmp_path / "out"
    assert STUDY["main"]([*runs, *chosen, "--out", str(out)]) == 0
    assert capsys.readouterr().out == printed
    kept = {path.name for path in out.iterdir()}
    assert kept >= {"scores.csv.gz", "returns.csv", "paired.csv", "runs.csv", "learning_curve.png"}
    assert "navigation_paths_maml_two_sigmas.png" in kept
    assert STUDY["main"]([runs[0], runs[0], *chosen]) == 2
    assert "second run of maml-two-sigmas with seed 1" in capsys.readouterr().err
