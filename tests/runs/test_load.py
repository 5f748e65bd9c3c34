"""Runs are read from their folders as their launchers made them, or refused by name."""

import json
import shutil
from pathlib import Path

import pytest

from metarl_l2f.launchers.leo import LEORun
from metarl_l2f.launchers.sinusoid import Sinusoid
from metarl_l2f.runs.load import checked_kind, load_options, load_run
from metarl_l2f.runs.reinforcement import PolicyOptions
from metarl_l2f.training.config import to_json

RECORDED = Path(__file__).parents[1] / "recorded"


@pytest.fixture
def changed(tmp_path):
    """Copies a recorded run, and changes the options of its configuration."""

    def copy(name, **options):
        run = shutil.copytree(RECORDED / name, tmp_path / name)
        config = json.loads((run / "config.json").read_text())
        config["options"] |= options
        (run / "config.json").write_text(json.dumps(config))
        return run

    return copy


def test_a_run_is_rebuilt_with_the_options_of_its_launcher(changed):
    options, experiment = load_run(changed("sinusoid", device="cuda", tf32=True), threads=2)
    experiment.close()
    assert isinstance(options, Sinusoid) and options.shots == 10 and options.hidden_sizes == (4,)
    assert (options.threads, options.device, options.tf32) == (2, "cpu", False)


def test_an_unknown_option_is_refused_where_it_might_change_the_problem(changed):
    with pytest.raises(ValueError, match=r"sinusoid.py has no option \['noise'\]; .* is of another version"):
        load_options(changed("sinusoid", noise=0.1))
    load_options(changed("navigation", noise=0.1))  # Here config.json names the environment, which is compared.


def test_an_environment_that_is_not_the_launchers_is_refused(changed):
    with pytest.raises(ValueError, match=r"navigation.py with the options there trains on .*'goal_range': 0.7"):
        load_options(changed("navigation", goal_range=0.7))


def test_options_that_did_nothing_are_ignored(tmp_path):
    stored = {**to_json(LEORun(embeddings=Path("/e"))), "threads": 2}
    (tmp_path / "config.json").write_text(json.dumps({"launcher": "leo", "options": stored}))
    assert load_options(tmp_path) == LEORun(embeddings=Path("/e"))


def test_a_run_of_another_kind_is_refused_with_the_launchers_that_would_do():
    with pytest.raises(ValueError, match=r"is a run of sinusoid.py; give one of reinforcement learning \(ant, .*navig"):
        checked_kind(RECORDED / "sinusoid", PolicyOptions)


@pytest.mark.parametrize("launcher", ["os", "../x", None, 3, ["navigation"], "viewer"])
def test_a_launcher_that_is_none_is_named(tmp_path, launcher):
    (tmp_path / "config.json").write_text(json.dumps({"launcher": launcher, "options": {}}))
    with pytest.raises(ValueError, match=r"says it is a run of .*, which is no launcher here"):
        load_options(tmp_path)
