"""The processes that share one run: this one alone, or the ranks that torchrun started, on one host or many.

A group knows neither tasks nor algorithms: it sums, gathers and broadcasts. `Ranks` is a thin layer over
torch.distributed; torchrun sets environment variables that hold each process's rank. Sums go over gloo where tensors
are on the CPU, and over nccl where every rank has a GPU of its own.
"""

import contextlib
import datetime
import importlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ..checks import check_number

Made = TypeVar("Made")

SHORTEST, LONGEST = 1.0, 365 * 24 * 3600.0
"""The shortest and the longest time-out that is accepted, in seconds: one second and a year."""
SIGN_OF_LIFE = 1.0
"""Seconds between two messages of rank 0 to the ranks that wait for it."""


class RankError(RuntimeError):
    """A rank lost the others, or its state differs from theirs; the text names it, and says what to do."""


class StoppedError(RankError):
    """Rank 0 stopped with an error while this rank waited for it; rank 0 reports that error."""


class TogetherError(RuntimeError):
    """Work that all ranks did together failed on one of them; the text names that rank and its error."""


class Group:
    """A group of one process, in which collectives return their argument. `Ranks` is a group of several."""

    rank: int = 0
    """The number of this process, from 0."""
    size: int = 1
    """The number of processes in the group."""
    restarts: int | None = None
    """How often torchrun may start the group again; None if torchrun did not start it."""
    seconds: float = 0.0
    """The time spent on other ranks so far: sending, receiving, and waiting for them."""

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files and reports progress."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the ranks; the result has the same bits on every rank."""
        return values

    def largest(self, number: int) -> int:
        """Return the largest of the ranks' numbers."""
        return number

    def gather(self, value: Any) -> list[Any]:
        """Collect every rank's value, in the order of ranks."""
        return [value]

    def from_first(self, make: Callable[[], Made]) -> Made:
        """Call `make` on rank 0 alone, and return its result on every rank.

        The other ranks wait for the result, however long that takes.

        Args:
            make: a function that does not use the group.
        Raises:
            StoppedError: on the other ranks, if `make` raised an error on rank 0. On rank 0 that error is raised.
        """
        return make()

    def together(self, work: Callable[[], Made]) -> Made:
        """Call `work` on every rank, and return its result if it succeeded on all of them.

        Args:
            work: a function that may sum and gather.
        Raises:
            TogetherError: on every rank, if there are several and `work` failed on one, so that all continue from the
                same point. In a group of one process the error of `work` is raised.
        """
        return work()

    def check_alike(self, value: str, what: str) -> None:
        """Make sure that every rank has the same value.

        Args:
            value: this rank's value.
            what: the name of the value, for the error.
        Raises:
            RankError: the values differ.
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
        """Leave the group."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Ranks(Group):
    """The group of the ranks that torchrun started; this process is one of them.

    Args:
        timeout: the longest time, in seconds, to wait for the other ranks in any method.
    Raises:
        RankError: the constructor or a method could not reach the other ranks within the time-out.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
        # Else a sum over GPUs returns at once, and a lost rank ends the process from a thread of nccl's own.
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        # Imported while the group exists, as torch.func does, it keeps a reference to the group: gloo's threads then
        # outlive `close`, and may abort the process at its exit.
        importlib.import_module("torch._dynamo")
        self._together = False
        limit = datetime.timedelta(seconds=timeout)
        with self._reaching("met"):
            dist.init_process_group(
                self._backend(), store=self._store(limit), rank=self.rank, world_size=self.size, timeout=limit
            )

    def sum(self, values: Tensor) -> Tensor:
        self._check_others()
        total = values.detach().clone(memory_format=torch.contiguous_format)
        with self._reaching("summed"):
            dist.all_reduce(total)
        return total

    def largest(self, number: int) -> int:
        found = torch.tensor(number)
        with self._reaching("compared"):
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def gather(self, value: Any) -> list[Any]:
        self._check_others()
        return self._gather(value)

    def from_first(self, make: Callable[[], Made]) -> Made:
        if not self.first:
            while (answer := self._heard()) is None:
                pass
            if not answer:
                raise StoppedError(f"rank {self.rank} stopped, for rank 0 did, which says why")
            return answer["made"]
        done, made = threading.Event(), dict[str, Made]()

        def tell() -> None:
            while not done.wait(min(SIGN_OF_LIFE, self.timeout / 3)):
                self._heard()
            self._heard(made)

        with ThreadPoolExecutor(1, thread_name_prefix="rank 0") as thread:
            telling = thread.submit(tell)
            try:
                made["made"] = make()
            finally:
                done.set()
        telling.result()
        return made["made"]

    def together(self, work: Callable[[], Made]) -> Made:
        self._together = True
        try:
            made = work()
            self._check_others()
            return made
        except (RankError, TogetherError):
            raise
        except Exception as error:
            self._check_others(f"rank {self.rank}: {type(error).__name__}: {error}")
            raise
        finally:
            self._together = False

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def _store(self, limit: datetime.timedelta) -> Store:
        """The store in which ranks find each other's addresses.

        On one host, torchrun keeps one store for all attempts, so each attempt gets a prefix of its own, lest it find
        the addresses of an earlier one. Several hosts count their attempts separately; there
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE makes a new store for each attempt.
        """
        store, _, _ = next(rendezvous("env://", timeout=limit))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return PrefixStore(f"attempt {attempt}", store) if os.environ.get("GROUP_WORLD_SIZE") == "1" else store

    def _gather(self, value: Any) -> list[Any]:
        values = [None] * self.size
        with self._reaching("gathered"):
            dist.all_gather_object(values, value)
        return values

    def _heard(self, word: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """Receive rank 0's next message: None while it works, then a dict with the result, empty if it failed."""
        box = [word]
        with self._reaching("waited for rank 0"):
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def _check_others(self, failure: str | None = None) -> None:
        """Within `together`, before every message and at the end, make sure that no rank has failed."""
        if self._together and (failures := [found for found in self._gather(failure) if found is not None]):
            raise TogetherError("; ".join(failures))

    def _backend(self) -> str:
        """nccl where every rank has a GPU of its own, which it needs; else gloo."""
        if torch.cuda.device_count() < int(os.environ.get("LOCAL_WORLD_SIZE", self.size)):
            return "gloo"
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", self.rank)))
        return "cpu:gloo,cuda:nccl"

    @contextlib.contextmanager
    def _reaching(self, did: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        except RuntimeError as error:  # All that torch.distributed and gloo raise.
            waited = time.perf_counter() - begin
            reason = str(error).strip().partition("\n")[0]
            raise RankError(
                f"rank {self.rank} of {self.size}, on {socket.gethostname()}, lost the others after {waited:.1f} s "
                f"while they {did} (it waits {self.timeout:g} s at most): {reason}. One of them ended, and its own "
                "output says why, or the network between them is cut. A longer time-out helps if they are "
                "only slow; with torchrun's --max-restarts the group goes on from the last checkpoint"
            ) from error
        finally:
            self.seconds += time.perf_counter() - begin


def join(timeout: float) -> Group:
    """Return the group that torchrun started this process in, or a group of this process alone.

    Args:
        timeout: the longest time, in seconds, to wait for other ranks: from 1 s to a year.
    Raises:
        ValueError: the time-out is out of range.
        RankError: the other ranks cannot be reached.
    """
    check_number("rank_timeout", timeout, f"[{SHORTEST:.0f}, {LONGEST:.0f}]", "seconds")
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return Group()
    return Ranks(timeout)
