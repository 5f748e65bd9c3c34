"""The processes that share one run: this one alone, or the ranks that torchrun started (`distributed.py`).

A group knows neither task nor algorithm: it sums, gathers and hands out.
"""

import os
from collections.abc import Callable
from typing import Any, Self, TypeVar

from torch import Tensor

Made = TypeVar("Made")


SHORTEST, LONGEST = 1.0, 365 * 24 * 3600.0
"""Seconds that a rank may wait for the others at most: accepted are numbers from the first to the second, a year."""


class RankError(RuntimeError):
    """A rank lost the others, or no longer computes what they do; the text says which, and what to do."""


class StoppedError(RankError):
    """Rank 0 stopped with an error while the others waited for it, and reports that error itself."""


class TogetherError(RuntimeError):
    """What the ranks did together failed on one of them; the text names that rank and its error."""


class Group:
    """One process alone: there is nobody to hear from. `distributed.Ranks` is the group of several."""

    rank: int = 0
    """Of this process, from 0."""
    size: int = 1
    """Processes in the group."""
    restarts: int | None = None
    """How often whoever started the group may start it again; None if it was started by hand."""
    seconds: float = 0.0
    """Spent on other ranks so far: sending, receiving, and waiting for them."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of every rank's values, the same bits on all of them."""
        return values

    def largest(self, number: int) -> int:
        """The largest of every rank's number."""
        return number

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks."""
        return [value]

    def from_first(self, make: Callable[[], Made]) -> Made:
        """What `make` returns on rank 0, which alone calls it, however long it takes; nothing in it may need the group.

        Raises:
            StoppedError: on the other ranks, if `make` raised an error on rank 0, where that error passes.
        """
        return make()

    def together(self, work: Callable[[], Made]) -> Made:
        """What `work` returns here, if it succeeds on every rank; it may sum and gather.

        Raises:
            TogetherError: on every rank, if there are several and `work` failed on one: all continue from the same
                point. One process alone gets the error as it is.
        """
        return work()

    def check_alike(self, value: str, what: str) -> None:
        """Make sure that every rank has the same value.

        Args:
            value: of this rank.
            what: it is, for the error.

        Raises:
            RankError: they differ.
        """
        values = self.gather(value)
        if len(set(values)) > 1:
            others = [rank for rank, other in enumerate(values) if other != values[0]]
            raise RankError(
                f"{what} of rank 0 differs from that of {', '.join(f'rank {rank}' for rank in others)}. All ranks must "
                "run the same code, and their processors round alike: ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2 makes "
                "different ones do so"
            )

    def close(self) -> None:
        """Leave the others."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def join(timeout: float) -> Group:
    """The group that this process was started into: torchrun says so in the environment. Else it is alone.

    Args:
        timeout: seconds to wait for other ranks, whatever for, before RankError.
    Raises:
        ValueError: the time-out is not a number of seconds from 1 to those of a year.
        RankError: the others cannot be reached.
    """
    if not SHORTEST <= timeout <= LONGEST:
        raise ValueError(
            f"rank_timeout must be a number of seconds from {SHORTEST:.0f} to {LONGEST:.0f} (a year), got {timeout:g}"
        )
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return Group()
    from .distributed import Ranks

    return Ranks(timeout)
