"""Several processes, on one host or many, that share one run: a thin layer over torch.distributed.

torchrun starts them and tells each in its environment who it is; nothing here is imported without it. Sums go over gloo
where tensors are on the CPU, over nccl where every rank has a GPU of its own.
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
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from .group import Group, Made, RankError, StoppedError, TogetherError

SIGN_OF_LIFE = 1.0
"""Seconds between two messages of rank 0 to those that wait for it."""


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
