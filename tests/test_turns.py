"""Ratios of times measured in turn, and their intervals."""

import runpy
from pathlib import Path

import pytest

turns = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "turns.py"))
ratio = turns["ratio"]


def test_the_interval_of_nine_turns_leaves_out_the_smallest_and_the_largest():
    # P(Binomial(9, ½) < 2) = (1 + 9) / 512, twice that is 3.9 %; with three left out it would be 18 %.
    times = [9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0]
    assert ratio(times, [1.0] * 9) == (5.0, 2.0, 8.0, 9)


def test_ratios_are_taken_turn_by_turn():
    # A machine that is ten times as slow in half of the turns changes no ratio.
    slow = [1.0, 10.0] * 5
    found = ratio([1.2 * second for second in slow], slow)
    assert found.median == found.low == found.high == pytest.approx(1.2)
    assert not found.noisy and "NOISY" not in str(found)


@pytest.mark.parametrize("spread", [0.05, 0.2])
def test_a_wide_interval_concludes_nothing(spread):
    times = [1 - spread, 1 - spread, 1.0, 1.0, 1.0, 1.0, 1.0, 1 + spread, 1 + spread]
    assert ratio(times, [1.0] * 9).noisy is (spread > turns["NOISY"])


def test_five_turns_are_too_few():
    # Their range misses the true median with probability 2 / 2⁵ = 6.3 %.
    assert ratio([1.0] * 5, [1.0] * 5).noisy
    assert not ratio([1.0] * 6, [1.0] * 6).noisy


def test_no_turns_are_refused():
    with pytest.raises(ValueError, match="one entry a turn, got 0 and 0"):
        ratio([], [])
