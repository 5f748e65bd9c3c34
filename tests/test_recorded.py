"""Runs that version 0.1 recorded evaluate to the scores that it stored, and the other programs still read them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from metarl_l2f.launchers import evaluate, figures, play
from metarl_l2f.runs.viewing import ViewedRun, Viewer

RECORDED = Path(__file__).with_name("recorded")


@pytest.fixture(params=["navigation", "sinusoid"])
def run(request, tmp_path):
    """A copy of a recorded run, for programs write into its folder."""
    return shutil.copytree(RECORDED / request.param, tmp_path / request.param)


def test_a_recorded_run_evaluates_to_the_scores_that_it_stored(run):
    stored = json.loads((run / "evaluation.json").read_text())
    flags = ["--tasks", "4", "--episodes", "2"] if run.name == "navigation" else []
    assert evaluate.main([str(run), *flags]) == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert (found["protocol"], found["model"], found["score"]) == (stored["protocol"], stored["model"], stored["score"])
    np.testing.assert_allclose(found["scores"], stored["scores"], rtol=1e-4, atol=1e-5)


def test_figures_draws_a_recorded_run(run, tmp_path):
    out = tmp_path / "pictures"
    assert figures.main([str(run), "--out", str(out), "--tasks", "3", "--no-manual"]) == 0
    own = {"navigation": "navigation_paths_l2f.png", "sinusoid": "sinusoid_fit.png"}[run.name]
    assert {"learning_curve.png", "conflict.png", own} <= {path.name for path in out.iterdir()}


@pytest.mark.parametrize("run", ["navigation"], indirect=True)
def test_play_films_a_recorded_run(run):
    assert play.main([str(run), "--size", "200", "--out", str(run / "film.gif")]) == 0
    assert (run / "film.gif").read_bytes().startswith(b"GIF8")


@pytest.mark.parametrize("run", ["navigation"], indirect=True)
def test_the_viewer_answers_for_a_recorded_run(run):
    shown = Viewer([ViewedRun(run)])
    shown.measure()
    answer = shown.adapt({"steps": 2, "episodes": 3})
    shown.close()
    assert answer["held_out"] and len(answer["runs"][0]["returns"]) == 3
