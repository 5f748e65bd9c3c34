"""Trees of tensors: dicts, tuples and lists, nested to any depth, whose leaves are tensors."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Tree = TypeVar("Tree")


def moved(tree: Tree, device: torch.device) -> Tree:
    """Copy a tree's tensors to a device; those that are there already are not copied.

    Tensors go to a CUDA device through pinned memory, so that the copy runs while the CPU goes on.
    """

    def move(tensor: Tensor) -> Tensor:
        if tensor.device == device or device.type == "cpu":
            return tensor.to(device)
        staged = tensor.contiguous().pin_memory() if tensor.device.type == "cpu" else tensor
        return staged.to(device, non_blocking=True)

    return mapped(move, tree)


def mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply a function to every tensor of a tree, and return the results in a tree of the same structure."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {name: mapped(function, value) for name, value in tree.items()}
    parts = [mapped(function, value) for value in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)


def tensors_of(tree: Any) -> list[Tensor]:
    """List the tensors of a tree, in order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(note, tree)
    return found


def rows_of(tree: Any, rows: slice | int) -> Any:
    """Select the same rows, or the same single row, of every tensor of a tree."""
    return mapped(lambda tensor: tensor[rows], tree)


def count(tree: Any) -> int:
    """Return the number of tasks, which is the length of every tensor of a tree along its first axis."""
    while not isinstance(tree, Tensor):
        tree = next(iter(tree.values() if isinstance(tree, dict) else tree))
    return tree.shape[0]


def joined(parts: Sequence[Any]) -> Any:
    """Concatenate trees of tensors, one per shard, along their first axis, the tasks."""
    head = parts[0]
    if isinstance(head, Tensor):
        return torch.cat(list(parts))
    if isinstance(head, dict):
        return {name: joined([part[name] for part in parts]) for name in head}
    columns = [joined(column) for column in zip(*parts, strict=True)]
    return type(head)(*columns) if hasattr(head, "_fields") else type(head)(columns)
