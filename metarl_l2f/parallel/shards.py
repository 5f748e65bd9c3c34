"""Work on tasks, spread over threads and over processes.

Neither changes a digit of the result. Tasks are cut into shards of a fixed size, whatever the number of threads, and
results come back in shard order, so sums over them are always taken in one order. Processes hold whole shards: a shard
is computed alike in every process, and sums over shards, float32 numbers added up in float64, are alike in any order.
"""

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch

from ..checks import check_count
from .ranks import Group
from .trees import count, joined, mapped, rows_of, tensors_of

logger = logging.getLogger(__name__)

TASKS_PER_SHARD = 10
"""Tasks vmapped together: few enough that activations stay small and several threads find work, but enough that
dispatch, which threads cannot share, does not dominate the curvature products."""


class Shards:
    """Runs a function over fixed shards of tasks, on a pool of threads, and returns the results in shard order.

    Args:
        threads: the number of threads; with 1 there is no pool. It changes no result.
        tasks_per_shard: the number of tasks in every shard but the last.
    Raises:
        ValueError: a number is not positive.
    """

    def __init__(self, threads: int, tasks_per_shard: int = TASKS_PER_SHARD) -> None:
        check_count("threads", threads)
        check_count("tasks_per_shard", tasks_per_shard)
        self.tasks_per_shard = tasks_per_shard
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="shard") if threads > 1 else None

    def map(self, function: Callable[..., Any], tree: Any) -> list[Any]:
        """Compute function(shard) for every shard of a tree of tensors that are stacked over tasks."""
        return self.map_list(function, self.cut(tree))

    def cut(self, tree: Any) -> list[Any]:
        """The shards of a tree of tensors that are stacked over tasks."""
        starts = range(0, count(tree), self.tasks_per_shard)
        return [rows_of(tree, slice(i, i + self.tasks_per_shard)) for i in starts]

    def repeated(
        self,
        function: Callable[..., Any],
        fixed: Any,
        *trees: Any,
        derivatives: bool = True,
        reads: Sequence[torch.Tensor] = (),
    ) -> list[Any]:
        """Compute function(fixed, *shard) for every shard of trees of tensors; what `TracedShards` traces.

        Args:
            function: a function that computes the same at every call, given parameters, trees and what it `reads`.
            fixed: its first argument, always the same object.
            trees: tensors that are stacked over tasks.
            derivatives: whether the function differentiates.
            reads: further tensors that it reads and that change between calls, always as many.
        """

        def compute(shard: tuple[Any, ...]) -> Any:
            with torch.set_grad_enabled(derivatives):  # The grad mode belongs to a thread.
                return function(fixed, *shard)

        return self.map(compute, trees)

    def staged(
        self, build: Callable[..., Any], apply: Callable[..., Any], fixed: Any, trees: Sequence[Any], example: Any
    ) -> Callable[[Any], list[Any]]:
        """Return the function argument → apply(fixed, build(fixed, *shard), argument) for every shard; builds once.

        Args:
            build, apply: functions as in `repeated`.
            fixed: their first argument.
            trees: tensors that are stacked over tasks.
            example: an example of the argument, a tree of tensors.
        """
        built = self.repeated(build, fixed, *trees)
        return lambda argument: self.map_list(lambda shard: apply(fixed, shard, argument), built)

    def map_list(self, function: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        """Compute function(item) for every item, and return the results in order."""
        return list(self.pool.map(function, items) if self.pool else map(function, items))

    def close(self) -> None:
        """End the threads."""
        if self.pool:
            self.pool.shutdown()


class Share:
    """This process's share of N tasks: consecutive shards; the shares of two processes differ by one shard at most.

    Surplus processes recompute the last shard; their result is discarded.

    Args:
        number: N, the number of tasks of all processes together.
        group: the processes; None stands for this process alone.
        unit: the number of tasks in every shard but the last.
    Raises:
        ValueError: a number is not positive.
    """

    def __init__(self, number: int, group: Group | None = None, unit: int = 1) -> None:
        check_count("number", number, unit="tasks")
        check_count("unit", unit, unit="tasks")
        self.number, self.group = number, group or Group()
        self.units = math.ceil(number / unit)
        edges = [math.ceil(self.units * rank / self.group.size) for rank in range(self.group.size + 1)]
        self.counted = [start < end for start, end in pairwise(edges)]
        """For every process, whether its result counts."""
        start, end = edges[self.group.rank : self.group.rank + 2]
        first, last = (start, end) if start < end else (self.units - 1, self.units)
        self.rows = slice(first * unit, min(last * unit, number))
        """The rows of this process's tasks among all tasks."""

    def warn_of_idle(self, remedy: str) -> None:
        """Log a warning on rank 0 if there are more processes than shards.

        Args:
            remedy: the end of the warning, a change that gives every process work.
        """
        size = self.group.size
        if size > self.units and self.group.first:
            logger.warning(
                "%d of %d ranks have nothing to do: the %d tasks of a meta-batch are shared in %d part%s; start fewer "
                "ranks, or %s",
                size - self.units,
                size,
                self.number,
                self.units,
                "" if self.units == 1 else "s",
                remedy,
            )

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start

    def sum(self, tree: Any) -> Any:
        """Turn a tree of sums over this process's tasks into one of sums over all N tasks, with one message."""
        if self.group.size == 1:
            return tree
        leaves = tensors_of(tree)
        packed = torch.cat([leaf.detach().flatten().to(leaves[0].device) for leaf in leaves])
        total = self.group.sum(packed * float(self.counted[self.group.rank]))
        pieces = iter(total.split([leaf.numel() for leaf in leaves]))
        return mapped(lambda leaf: next(pieces).view_as(leaf).to(leaf), tree)

    def mean(self, tree: Any) -> Any:
        """Turn a tree of means over this process's tasks into one over all N, each share weighted by its tasks."""
        return self.sum(mapped(lambda mean: mean * (len(self) / self.number), tree))

    def gather(self, tree: Any) -> Any:
        """Turn a tree of tensors stacked over this process's tasks into one over all N tasks, on the CPU."""
        if self.group.size == 1:
            return tree
        # Cloned, because pickling a view would send the whole tensor behind it.
        parts = self.group.gather(mapped(lambda leaf: leaf.detach().cpu().clone(), tree))
        return joined([part for part, counts in zip(parts, self.counted, strict=True) if counts])
