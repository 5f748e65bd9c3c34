"""Two runs in one folder: the second is refused; who only reads is not; and a killed run bars nobody."""

import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from metarl_l2f.launchers import evaluate, navigation
from metarl_l2f.runs.load import load_run
from metarl_l2f.training import metrics

from .runs import continuing, ended, launched, left_by, starting


def run_in(folder):
    """A run that goes on for as long as it is let, and has its first checkpoints."""
    process = launched(starting(folder, 100_000))
    while not (folder / "previous.pt").exists():
        assert process.is_alive()
        time.sleep(0.05)
    return process


@pytest.fixture
def training(tmp_path):
    """The folder of a run in training."""
    process = run_in(tmp_path / "run")
    yield tmp_path / "run"
    assert process.is_alive()
    process.kill()
    process.join()


def test_a_second_run_is_refused_and_readers_are_not(training, tmp_path, capsys):
    for arguments in (starting(training, 9), continuing(training)):
        assert navigation.main(arguments) == 2
        assert f"another process is training into {training}; stop it or wait for it" in capsys.readouterr().err
    out = tmp_path / "evaluation.json"
    for which in ("latest", "best"):
        flags = ["--tasks", "2", "--steps", "1", "--checkpoint", which, "--out", str(out)]
        assert evaluate.main([str(training), *flags]) == 0
    assert len(metrics.read(training)) >= 2
    load_run(training)[1].close()
    assert EventAccumulator(str(training)).Reload().Scalars("return/step_1")


def test_a_killed_run_bars_nobody(tmp_path):
    folder = tmp_path / "run"
    process = run_in(folder)
    process.kill()
    process.join()
    assert navigation.main([*continuing(folder), "--iterations", str(len(metrics.read(folder)) + 2)]) == 0
    assert len(left_by(folder)["metrics"]) >= 4


def test_of_runs_started_at_once_one_trains(tmp_path, amount, record_property):
    rounds = amount(1, 10)
    for number in range(rounds):
        folder = tmp_path / str(number)
        processes = [launched(starting(folder, 3)) for _ in range(4)]
        # Whoever is late meets a lock, or the finished run.
        assert sorted(map(ended, processes)) == [0, 2, 2, 2]
        assert len(metrics.read(folder)) == 3
    record_property("shared folder/rounds of four runs at once, one trained and three refused", rounds)
