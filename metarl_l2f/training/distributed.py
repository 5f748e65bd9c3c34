"""Several processes, on one host or many, that share one run: a thin layer over torch.distributed.

torchrun starts them and tells each in its environment who it is; nothing here is imported without it. Sums go over gloo
where tensors are on the CPU, over nccl where every rank has a GPU of its own.
"""

import contextlib
import datetime
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .group import Group, Made, RankError


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
        with self._reaching("met"):
            dist.init_process_group(self._backend(), timeout=datetime.timedelta(seconds=timeout))

    def sum(self, values: Tensor) -> Tensor:
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
        values = [None] * self.size
        with self._reaching("gathered"):
            dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], Made]) -> Made:
        box = [make() if self.first else None]
        with self._reaching("waited for rank 0"):
            dist.broadcast_object_list(box, src=0)
        (made,) = box
        return made  # type: ignore[return-value]

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

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
