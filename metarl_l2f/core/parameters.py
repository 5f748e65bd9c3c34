"""Named parameters of a network, which the equations are written for."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Params = dict[str, Tensor]
"""Tensors by name."""
Loss = Callable[[Params], Tensor]
"""The loss of one task as a function of its parameters: ()."""
Shapes = Mapping[str, torch.Size]
"""Shapes of tensors by name."""


class Watched:
    """A loss of one task that keeps what it computed on the way, so that it need not be computed once more.

    Args:
        function: parameters → the loss (), and a tree of tensors.
    """

    seen: Any
    """The tree where the loss was last differentiated (`MetaLearner.gradients`), differentiable itself."""

    def __init__(self, function: Callable[[Params], tuple[Tensor, Any]]) -> None:
        self.function = function

    def __call__(self, params: Params) -> Tensor:
        """The loss alone."""
        return self.function(params)[0]


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to: its name up to the last dot, or all of it where there is none."""
    return name.rpartition(".")[0] or name


def chosen(network: nn.Module, role: str, predicate: Callable[[str], bool] = lambda name: True) -> Shapes:
    """Names and shapes of the tensors of θ that have a role, without parameters that are frozen.

    Args:
        network: the network.
        role: the role, such as "adapted", as errors name it.
        predicate: which names are chosen; all by default.
    Raises:
        ValueError: none is chosen, or all that are chosen are frozen.
    """
    theta, adaptable = initialisation(network), contexts(network)
    selected = {name: tensor for name, tensor in theta.items() if predicate(name)}
    if not selected:
        raise ValueError(f"{role} selects none of the network's parameters; it has {list(theta)}")
    shapes = {name: tensor.shape for name, tensor in selected.items() if tensor.requires_grad or name in adaptable}
    if not shapes:
        raise ValueError(
            f"{role} selects only parameters that are frozen (requires_grad=False), {list(selected)}; unfreeze one of "
            "them with requires_grad_(True), or select others"
        )
    return shapes


def contexts(network: nn.Module) -> Params:
    """The contexts of a network (CAVIA), by name: its buffers called `context`, 0 at the start of every task."""
    return {name: buffer for name, buffer in network.named_buffers() if name.rpartition(".")[2] == "context"}


def initialisation(network: nn.Module) -> Params:
    """The initialisation θ of a network, by name: its parameters, and its contexts, which adapt but are not learned."""
    return {**dict(network.named_parameters()), **contexts(network)}


def small_network(inputs: int, hidden: int, outputs: int, generator: torch.Generator | None) -> nn.Sequential:
    """A network of two layers with ReLU between them, as the official codes of L2F and ALFA have it.

    Args:
        inputs, hidden, outputs: sizes.
        generator: draws the initial weights and biases, uniform within ±1/√(inputs of the layer).
    """
    network = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
    for width, layer in ((inputs, network[0]), (hidden, network[2])):
        bound = 1 / math.sqrt(width)
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return network
