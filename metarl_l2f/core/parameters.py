"""Named parameters of a network: what the equations are about."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Params = dict[str, Tensor]
"""Tensors by name."""
Loss = Callable[[Params], Tensor]
"""The loss of one task as a function of its parameters: ()."""
Shapes = Mapping[str, torch.Size]
"""Shapes of tensors by name."""


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to: its name up to the last dot, or all of it where there is none."""
    return name.rpartition(".")[0] or name


def chosen(network: nn.Module, role: str, predicate: Callable[[str], bool] = lambda name: True) -> Shapes:
    """Names and shapes of the parameters of a network that have a role, without those that are frozen.

    Args:
        network: the network.
        role: what the parameters are chosen for, such as "adapted", for errors.
        predicate: which names are chosen; all by default.
    Raises:
        ValueError: none is chosen, or all that are chosen are frozen.
    """
    selected = {name: p for name, p in network.named_parameters() if predicate(name)}
    if not selected:
        names = [name for name, _ in network.named_parameters()]
        raise ValueError(f"{role} selects none of the network's parameters; it has {names}")
    shapes = {name: p.shape for name, p in selected.items() if p.requires_grad}
    if not shapes:
        raise ValueError(
            f"{role} selects only parameters that are frozen (requires_grad=False), {list(selected)}; unfreeze one of "
            "them with requires_grad_(True), or select others"
        )
    return shapes
