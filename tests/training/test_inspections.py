"""Looking at a run in training: as often as planned, and without changing anything else."""

import re

import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from metarl_l2f.parallel.ranks import RankError
from metarl_l2f.training import metrics
from metarl_l2f.training.metrics import Shown

from .walk import Walk, left_by, run


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
