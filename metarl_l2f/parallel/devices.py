"""Where learning happens: the CPU, or a CUDA device.

Environments and data stay on the CPU. Batches are moved to the device where a loss takes them, and metrics come back.
"""

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from .trees import mapped, tensors_of

Tree = TypeVar("Tree")


def prepare(name: str, tf32: bool = False) -> torch.device:
    """Find a device by its name, and set PyTorch up so that a run there repeats bit for bit on the same machine.

    Args:
        name: `cpu`, `cuda`, or `cuda:1` and so on.
        tf32: whether matrix products and convolutions of a CUDA device round their factors to 10 bits of mantissa,
            which is faster, instead of computing in full float32.
    Raises:
        ValueError: this machine has no such device, or tf32 is combined with the CPU.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or cuda:NUMBER, got {name!r}")
    if device.type == "cpu":
        if tf32:
            raise ValueError("tf32 needs a CUDA device, got cpu; drop it, or choose device cuda")
        return device
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        found = f"{count} of them" if count else "none; PyTorch's CUDA build and an NVIDIA driver are needed"
        raise ValueError(
            f"device must be one of this machine's, got {name}, and it has {found}; choose another, or cpu"
        )
    # cuBLAS reads this when it starts; without it its sums depend on which part of its workspace is free.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    return device


WARM_UPS = 3
"""Calls before a recording, in which libraries choose their algorithms and allocate their memory."""


class Recorded(Generic[Tree]):
    """A function of a tree of tensors on a CUDA device, recorded at its first call and replayed at every later one.

    Small networks keep a GPU waiting for the next launch. A recording (a CUDA graph) launches all kernels at once and
    gives the same digits. Tensors that the function reads besides its argument, such as parameters, must stay at the
    same place in memory, and the function may not branch on the value of a tensor.

    Args:
        function: maps a tree of tensors to a tree of tensors.
    """

    def __init__(self, function: Callable[[Any], Tree]) -> None:
        self.function = function
        self.recordings: dict[Any, tuple[torch.cuda.CUDAGraph, Any, Tree]] = {}

    def __call__(self, tree: Any) -> Tree:
        given = tensors_of(tree)
        key = tuple(tensor.shape for tensor in given)
        if key not in self.recordings:
            self.recordings[key] = self._record(mapped(Tensor.clone, tree))
        graph, read, written = self.recordings[key]
        for ours, theirs in zip(tensors_of(read), given, strict=True):
            ours.copy_(theirs)
        graph.replay()
        return mapped(Tensor.clone, written)

    def _record(self, tree: Any) -> tuple[torch.cuda.CUDAGraph, Any, Tree]:
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                self.function(tree)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            written = self.function(tree)
        return graph, tree, written
