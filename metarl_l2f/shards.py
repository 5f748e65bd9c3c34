"""Work on tasks, spread over threads in a way that never changes a digit of the result.

Tasks are cut into shards of a fixed size whatever the number of threads, and results come back in shard order, so sums
over them are always taken in one order.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from .devices import mapped

TASKS_PER_SHARD = 10
"""Tasks vmapped together: few, so that activations stay small and several threads find work; yet enough that dispatch,
which threads cannot share, does not dominate the curvature products."""


class Shards:
    """Runs a function over fixed shards of tasks, on a pool of threads, and returns the results in shard order.

    Args:
        threads: of the pool; 1 does without one. Changes no number.
        tasks_per_shard: tasks in every shard but the last.
    """

    def __init__(self, threads: int, tasks_per_shard: int = TASKS_PER_SHARD) -> None:
        for name, value in (("threads", threads), ("tasks_per_shard", tasks_per_shard)):
            if value < 1:
                raise ValueError(f"{name} must be a positive number, got {value}")
        self.tasks_per_shard = tasks_per_shard
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="shard") if threads > 1 else None

    def map(self, function: Callable[..., Any], tree: Any) -> list[Any]:
        """function(shard) for every shard of a tree of tensors stacked over tasks."""
        starts = range(0, _count(tree), self.tasks_per_shard)
        return self.map_list(function, [rows_of(tree, slice(i, i + self.tasks_per_shard)) for i in starts])

    def map_list(self, function: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        """function(item) for every item, in order."""
        return list(self.pool.map(function, items) if self.pool else map(function, items))

    def close(self) -> None:
        """End the threads."""
        if self.pool:
            self.pool.shutdown()


def rows_of(tree: Any, rows: slice | int) -> Any:
    """The same rows, or the same single row, of every tensor of a tree of dicts, tuples and lists."""
    return mapped(lambda tensor: tensor[rows], tree)


def _count(tree: Any) -> int:
    while not isinstance(tree, Tensor):
        tree = next(iter(tree.values() if isinstance(tree, dict) else tree))
    return tree.shape[0]


def joined(parts: Sequence[Any]) -> Any:
    """Trees of tensors, one per shard, joined along the tasks again."""
    head = parts[0]
    if isinstance(head, Tensor):
        return torch.cat(list(parts))
    if isinstance(head, dict):
        return {name: joined([part[name] for part in parts]) for name in head}
    columns = [joined(column) for column in zip(*parts, strict=True)]
    return type(head)(*columns) if hasattr(head, "_fields") else type(head)(columns)
