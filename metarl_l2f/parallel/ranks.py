"""The processes that share one run: this one alone, or the ranks that torchrun started, on one host or many.

A group knows neither task nor algorithm: it sums, gathers and hands out. `Ranks` is a thin layer over
torch.distributed: torchrun tells each process in its environment which rank it is. Sums go over gloo where tensors are
on the CPU, over nccl where every rank has a GPU of its own.
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

Made = TypeVar("Made")

SHORTEST, LONGEST = 1.0, 365 * 24 * 3600.0
"""Seconds that a rank may wait for the others at most: accepted are numbers from the first to the second, a year."""
SIGN_OF_LIFE = 1.0
"""Seconds between two messages of rank 0 to those that wait for it."""


class RankError(RuntimeError):
    """A rank lost the others, or no longer computes what they do; the text says which, and what to do."""


class StoppedError(RankError):
    """Rank 0 stopped with an error while the others waited for it, and reports that error itself."""


class TogetherError(RuntimeError):
    """What the ranks did together failed on one of them; the text names that rank and its error."""


class Group:
    """One process alone: collectives return their argument. `Ranks` is the group of several."""

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


class Ranks(Group):
    """The ranks that torchrun started, as seen from one of them.

    Args:
        timeout: seconds to wait for the others, whatever for.
    Raises:
        RankError: here and in every method: the others cannot be reached, within the time-out.
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
        """Where ranks find each other's addresses.

        On one host, torchrun keeps one store for all attempts, which must not find the addresses of those before. Hosts
        count their attempts each for itself; there TORCH_DISABLE_SHARE_RDZV_TCP_STORE makes a store for each attempt.
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
        """What rank 0 says: None while it works, then what it made; nothing if it failed."""
        box = [word]
        with self._reaching("waited for rank 0"):
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def _check_others(self, failure: str | None = None) -> None:
        """Within `together`: make sure that no rank has failed, before every message and at the end."""
        if self._together and (failures := [found for found in self._gather(failure) if found is not None]):
            raise TogetherError("; ".join(failures))

    def _backend(self) -> str:
        """nccl needs a GPU for every rank; where they share one, or have none, gloo does without."""
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
                f"while they {did} (it waits {self.timeout:g} s at most): {reason}. One of them ended, and says itself "
                "why, or the network between them is cut. --rank-timeout sets the wait; with torchrun --max-restarts "
                "the group goes on from the last checkpoint"
            ) from error
        finally:
            self.seconds += time.perf_counter() - begin


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
    from .ranks import Ranks

    return Ranks(timeout)
