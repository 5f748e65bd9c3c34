"""Launchers are found by their names, and nothing else is imported."""

import sys
from pathlib import Path

import pytest

from metarl_l2f.launchers import leo, navigation
from metarl_l2f.runs.registry import options_of, training_launchers

LAUNCHERS = Path(__file__).parents[2] / "launchers"


def test_a_launcher_is_found_by_its_name():
    assert options_of("navigation") is navigation.Navigation
    assert options_of("leo") is leo.LEORun


def test_every_launcher_that_trains_is_found_and_has_a_title_and_a_score():
    training = {path.stem for path in LAUNCHERS.glob("*.py") if "runs.launch import launch" in path.read_text("utf-8")}
    found = training_launchers()
    assert found.keys() == training and len(training) == 9
    for name, kind in found.items():
        options = kind()
        assert options.launcher == name and options.title() and options.judged().tag.startswith(options.judged().score)


@pytest.mark.parametrize(
    "name", ["antigravity", "../navigation", "runs.launch", "__init__", "evaluate", "", None, ["ant"]]
)
def test_what_is_no_training_launcher_is_refused_and_no_other_module_is_imported(name):
    with pytest.raises(LookupError, match="is no launcher here"):
        options_of(name)
    assert "antigravity" not in sys.modules
