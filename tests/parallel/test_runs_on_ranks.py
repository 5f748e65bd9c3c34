"""Training and launchers on several ranks: who reads and writes, when all stop, and which programs refuse."""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch

from metarl_l2f.launchers import embeddings, evaluate, figures, play, viewer
from metarl_l2f.launchers.navigation import Navigation
from metarl_l2f.parallel.ranks import Group
from metarl_l2f.runs import launch
from metarl_l2f.runs.command_line import parse
from metarl_l2f.runs.launch import placed
from metarl_l2f.runs.options import own_cores
from metarl_l2f.training.config import to_json
from metarl_l2f.training.loop import train
from metarl_l2f.training.metrics import Shown

from .groups import by_ranks


class Counter:
    """An experiment that counts its iterations."""

    def __init__(self):
        self.count = 0

    def iterate(self, iteration):
        self.count = iteration
        return {"score": 1.0}

    def validate(self, iteration):
        return {"validation/score": 1.0}

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Second(Group):
    """Rank 1 of two, as `train` sees it; rank 0 has a state, or got a signal."""

    rank, size = 1, 2

    def __init__(self, signum=0, answers=()):
        self.signum, self.answers = signum, list(answers)

    def largest(self, number):
        return max(number, self.signum)

    def gather(self, value):
        return [value, value]

    def from_first(self, make):
        return self.answers.pop(0)


def trained_by(group, folder, resume=False):
    experiment = Counter()
    arguments = {"validate_every": 1, "validation_key": "validation/score", "progress_key": "score"}
    outcome = train(experiment, folder, iterations=5, config={}, resume=resume, group=group, **arguments)
    return experiment, outcome


def test_another_rank_than_the_first_writes_nothing_and_takes_its_state_from_it(tmp_path):
    stored = {"iteration": 3, "ranking": [], "window": {}, "experiment": {"count": 3}}
    experiment, outcome = trained_by(Second(answers=[None, stored]), tmp_path / "run", resume=True)
    assert (outcome.start, outcome.iteration, experiment.count) == (3, 5, 5)
    assert not (tmp_path / "run").exists()


def test_a_signal_to_one_rank_stops_all_after_the_same_iteration(tmp_path):
    nothing = {"iteration": 0, "ranking": [], "window": {}}
    _, outcome = trained_by(Second(signal.SIGTERM, [None, nothing]), tmp_path)
    assert (outcome.iteration, outcome.interrupted) == (1, signal.SIGTERM)


def trained_with_failing_inspections(folder, group):
    """How far a run comes whose inspections fail on rank 1, between two messages; and what this rank says of it."""

    def inspect(line):
        group.sum(torch.ones(1))
        if group.rank == 1:
            raise OSError("no picture here")
        group.gather("seen")
        return Shown({}, {}, {})

    said, arguments = [], {"validate_every": 1, "validation_key": "validation/score", "progress_key": "score"}
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("metarl_l2f").addHandler(handler)
    outcome = train(Counter(), folder, iterations=2, config={}, resume=False, group=group, inspect=inspect, **arguments)
    return outcome.iteration, said


def test_an_inspection_that_fails_on_one_rank_is_given_up_by_all_and_training_goes_on(tmp_path):
    end = "failed, and the run goes on without it: rank 1: OSError: no picture here"
    expected = (2, [f"the inspection after iteration {number} {end}" for number in (1, 2)])
    assert by_ranks(partial(trained_with_failing_inspections, tmp_path), 2) == [expected, expected]


class Started(Group):
    """Alone, but started by torchrun."""

    restarts = 1


def test_a_group_that_is_started_again_continues_its_own_run_and_no_other(tmp_path):
    options = dataclasses.replace(Navigation(), log_dir=tmp_path, iterations=7)
    config = to_json(dataclasses.replace(options, iterations=5))
    (tmp_path / "config.json").write_text(json.dumps({"launcher": "navigation", "options": config}))
    again, folder = placed(options, Started())
    assert folder == tmp_path and again.resume == tmp_path  # iterations may differ
    by_hand, _ = placed(options, Group())
    other, _ = placed(dataclasses.replace(options, squared=True), Started())
    assert by_hand.resume is None and other.resume is None


def test_only_rank_0_reads_the_folder_of_a_resumed_run(tmp_path):
    run_options = dataclasses.replace(Navigation(), squared=True, rank_timeout=5.0)
    folder = tmp_path / "on rank 0's host alone"
    options = parse(Navigation(), ["--resume", str(folder)], Second(answers=[to_json(run_options)]))
    assert options.squared and options.log_dir == options.resume == folder
    assert options.rank_timeout == Navigation().rank_timeout  # The group waits as the command line says.


@pytest.mark.parametrize(("given", "seconds"), [("--rank-timeout=7", 7.0), ("--rank_timeout 7", 7.0), ("", 300.0)])
def test_ranks_meet_with_the_time_out_of_the_command_line(monkeypatch, given, seconds):
    met = []
    monkeypatch.setattr(launch, "join", lambda timeout: met.append(timeout) or Group())
    with launch.started(Navigation(), given.split()) as (options, _):
        assert met == [options.rank_timeout] == [seconds]


def test_a_group_that_may_be_started_again_needs_a_folder_with_a_name(monkeypatch):
    monkeypatch.setattr(launch, "join", lambda timeout: Started())
    with pytest.raises(ValueError, match="name its folder with --log-dir"), launch.started(Navigation(), []):
        pass


@pytest.mark.parametrize("program", [embeddings, evaluate, figures, play, viewer])
def test_what_ranks_cannot_share_is_refused_once(program, monkeypatch, capsys):
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert program.main(["a-run"]) == 2
    expected = "error: only training is shared: each of 2 ranks would do all of this; start it without torchrun\n"
    assert capsys.readouterr().err == expected


def test_each_rank_takes_its_part_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert own_cores() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert own_cores() == 2


def test_a_process_that_is_confined_to_some_cores_has_as_many_threads():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from metarl_l2f.runs.options import "
    code += "own_cores; print(own_cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1\n"
