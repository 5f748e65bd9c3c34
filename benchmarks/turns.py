"""Ratios of times that were measured in turn, so that a busy machine slows both sides alike, and how sure they are."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

NOISY = 0.1
"""The half width of an interval, relative to its ratio, beyond which a measurement concludes nothing."""
FEWEST = 6
"""The smallest number of turns whose range holds the true median with 95 % probability."""


class Ratio(NamedTuple):
    """A ratio of two times, over a number of turns."""

    median: float
    low: float
    """The interval that holds the true median with 95 % probability; the range of all turns, if they are under six."""
    high: float
    turns: int

    @property
    def noisy(self) -> bool:
        """Whether the interval is too wide, or the turns too few, to conclude from."""
        return self.turns < FEWEST or self.high - self.low > 2 * NOISY * self.median

    def __str__(self) -> str:
        """The ratio with its interval, and a warning where it is too noisy."""
        text = f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f}, {self.turns} turns)"
        return text + ("  TOO NOISY TO CONCLUDE: measure on a quieter machine, or more turns" if self.noisy else "")


def ratio(times: Sequence[float], floor: Sequence[float]) -> Ratio:
    """The median over turns of times[i] / floor[i], with an interval that assumes no distribution.

    The median of n independent turns lies between the k-th smallest and the k-th largest with probability
    1 − 2 P(Binomial(n, 1/2) < k); k is the largest for which that is at least 95 %.

    Args:
        times: seconds, one a turn.
        floor: seconds of what they are compared with, measured in the same turns.
    Raises:
        ValueError: there is no turn, or the numbers of turns differ.
    """
    if not times or len(times) != len(floor):
        raise ValueError(f"times and floor must have one entry a turn, got {len(times)} and {len(floor)}")
    ratios = sorted(time / least for time, least in zip(times, floor, strict=True))
    n = len(ratios)
    k, outside = 0, 0.0
    while k < n // 2 and outside + 2 * math.comb(n, k) / 2**n <= 0.05:
        outside += 2 * math.comb(n, k) / 2**n
        k += 1
    k = max(k, 1)
    return Ratio(statistics.median(ratios), ratios[k - 1], ratios[n - k], n)
