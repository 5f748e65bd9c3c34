"""Ranks meet, exchange values, and say so when one of them fails or is lost."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from metarl_l2f.launchers import navigation
from metarl_l2f.parallel.ranks import RankError, StoppedError, join
from metarl_l2f.runs.command_line import fail

from .groups import Fake, by_ranks, free_port, one_of


def test_without_torchrun_a_process_is_alone_and_nothing_is_imported():
    code = (
        "import sys; from metarl_l2f.launchers import navigation; from metarl_l2f.parallel.ranks import join;"
        "group = join(1.0); assert type(group).__name__ == 'Group' and group.first;"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_rank_that_cannot_reach_the_others_says_so_within_its_time_out(monkeypatch):
    for name, value in one_of(2, 1, free_port()).items():  # rank 0, which would answer, is not there
        monkeypatch.setenv(name, value)
    with pytest.raises(
        RankError, match=r"rank 1 of 2, on .*, lost the others after .* s while they met \(it waits 1 s"
    ):
        join(1.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.5, 1e30, math.inf, math.nan])
def test_a_time_out_that_no_rank_can_wait_for_is_refused(seconds, capsys):
    assert navigation.main(["--rank-timeout", str(seconds)]) == 2
    expected = f"error: rank_timeout must lie in [1, 31536000], got {seconds} seconds\n"
    assert capsys.readouterr().err == expected


def failed(work):
    """The error that something raises, as text."""
    try:
        return work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def with_rank_0(group):
    """What ranks have of rank 0's work: one that takes longer than they wait for each other, and one that fails."""
    begin = time.monotonic()
    made = group.from_first(lambda: (time.sleep(1.5 * group.timeout), "made")[1])
    return made, time.monotonic() - begin, failed(lambda: group.from_first(lambda: 1 / 0))


def test_ranks_wait_for_rank_0_however_long_it_works_and_stop_with_it():
    (made, _, error), (others_made, waited, others_error) = by_ranks(with_rank_0, 2, timeout=4.0)
    assert made == others_made == "made" and waited > 4.0
    assert error == "ZeroDivisionError: division by zero"
    assert others_error == "StoppedError: rank 1 stopped, for rank 0 did, which says why"


def test_that_rank_0_stopped_is_printed_by_rank_0_alone(capsys):
    assert fail(StoppedError("rank 1 stopped, for rank 0 did, which says why")) == 2
    assert capsys.readouterr().err == ""


def together(group):
    """What ranks have of work that fails on one of them, before or between messages; then of work that does not."""

    def work(failing):
        total = group.sum(torch.ones(1))
        if group.rank == failing:
            raise KeyError("here")
        return float(total), group.gather(group.rank)

    return [
        failed(lambda: group.together(lambda: 1 / group.rank)),
        failed(lambda: group.together(lambda: work(1))),
        failed(lambda: group.together(lambda: work(None))),
    ]


def test_what_fails_on_one_rank_fails_on_all_and_all_go_on():
    assert by_ranks(together, 2) == 2 * [
        [
            "TogetherError: rank 0: ZeroDivisionError: division by zero",
            "TogetherError: rank 1: KeyError: 'here'",
            (2.0, [0, 1]),
        ]
    ]


THREADS_LEFT = """
import os, time, torch
from pathlib import Path
from metarl_l2f.parallel.ranks import join
threads = lambda: {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
with join(60.0) as group:
    import torch._dynamo  # torch.func does so at its first use
    end = time.monotonic() + 30  # A new thread names itself in its own time.
    while not any("gloo" in name for name in threads()):
        assert time.monotonic() < end, threads()
        time.sleep(0.01)
assert not any("gloo" in name for name in threads()), threads()
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted by Linux's /proc")
def test_no_thread_of_gloo_outlives_the_group():
    subprocess.run([sys.executable, "-c", THREADS_LEFT], check=True, env=os.environ | one_of(1, 0, free_port()))


def test_ranks_in_different_states_are_told_apart():
    Fake(0, 2, ["same"]).check_alike("same", "the state")
    with pytest.raises(RankError, match="the state of rank 0 differs from that of rank 1"):
        Fake(0, 2, ["other"]).check_alike("same", "the state")
