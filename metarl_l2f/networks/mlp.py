"""The fully connected network and its activations, as a function of its parameters.

Adapted parameters are values, one set per task, so no network here reads its own parameters while computing. That
also makes every network safe to call from several threads and under `torch.func.vmap`.

The results of one task must not depend on the number of tasks that are computed together. torch computes some functions
(σ, ELU, SiLU) in another way for the numbers that are left at the end of a tensor, beyond a multiple of the processor's
vector length. The activations below are made of functions that round alike everywhere.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_choice, check_count
from ..core.parameters import Params

Activation = Literal["tanh", "relu", "leaky_relu", "elu", "silu"]
VECTOR = 64  # A multiple of how many numbers torch's loops process at a time, on any processor.


def tanh(inputs: Tensor) -> Tensor:
    """Compute tanh x; where no derivative is needed, as 2 σ(2x) − 1, which overwrites the inputs.

    On a CPU torch computes σ several times as fast as tanh. With derivatives the detour costs more than it saves. torch
    also rounds σ differently for the numbers that are left at the end of a tensor, beyond a multiple of VECTOR; where a
    task's rows leave such a rest, the result would depend on the number of tasks, so there tanh is used.
    """
    if torch.is_grad_enabled() or math.prod(inputs.shape[-2:]) % VECTOR:
        return torch.tanh(inputs)
    return inputs.mul_(2).sigmoid_().mul_(2).sub_(1)


def elu(inputs: Tensor) -> Tensor:
    """Compute x where x > 0, else eˣ − 1."""
    return torch.where(inputs > 0, inputs, torch.expm1(inputs.clamp_max(0)))


def silu(inputs: Tensor) -> Tensor:
    """Compute x σ(x) as ½ x (1 + tanh ½x)."""
    return 0.5 * inputs * (1 + tanh(0.5 * inputs))


ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "tanh": tanh,
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "elu": elu,
    "silu": silu,
}
"""The functions between layers, by name; the slope of `leaky_relu` below 0 is 0.01."""


class MLP(nn.Module):
    """A fully connected network with an activation between its layers and a linear last layer.

    Args:
        sizes: the number of units of each layer, from the input to the output.
        activation: the name of the function between layers.
        generator: the source of the initial weights, which are Xavier uniform; biases start at 0.
        context_size: C, numbers of a task's context that the first layer reads beside the input (CAVIA); 0 for none.
    Raises:
        ValueError: a size is not positive, or the activation is unknown.
    """

    context: Tensor
    """(C,), what adapts in CAVIA; a task's own is passed among its parameters."""

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Activation = "tanh",
        generator: torch.Generator | None = None,
        context_size: int = 0,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, Activation)
        check_count("context_size", context_size, 0)
        for size in sizes:
            check_count("every layer size", size)
        self.sizes, self.activation_name = tuple(sizes), activation
        self.activation = ACTIVATIONS[activation]
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(sizes))
        start_xavier(self, generator)
        self.context_size = context_size
        if context_size:
            self.context_weight = nn.Parameter(torch.empty(sizes[1], context_size))
            nn.init.xavier_uniform_(self.context_weight, generator=generator)
            self.register_buffer("context", torch.zeros(context_size))

    def is_head(self, name: str) -> bool:
        """Whether a parameter is the last layer's."""
        return name.startswith(f"layers.{len(self.layers) - 1}.")

    def forward(self, params: Params, inputs: Tensor, prefix: str = "") -> Tensor:
        """Map inputs (..., sizes[0]) to outputs (..., sizes[-1]), or (N, S, ·) with parameters stacked over N tasks."""
        last = len(self.layers) - 1
        for number in range(last + 1):
            weight, bias = params[f"{prefix}layers.{number}.weight"], params[f"{prefix}layers.{number}.bias"]
            if number == 0 and self.context_size:
                # As if the context were concatenated to every input.
                bias = bias + (params[f"{prefix}context_weight"] @ params[f"{prefix}context"].unsqueeze(-1)).squeeze(-1)
            inputs = affine(inputs, weight, bias)
            if number < last:
                inputs = self.activation(inputs)
        return inputs


def start_xavier(network: nn.Module, generator: torch.Generator | None) -> None:
    """Set the weights of linear and convolutional layers to Xavier uniform values, and their biases to 0.

    Args:
        network: the module that holds the layers.
        generator: the source of random numbers; None stands for torch's global one.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute W x + b for one task, or for N tasks at once.

    `vmap` of the form for one task gives the same numbers as the other form, but takes twice as long for the few inputs
    of a time step.

    Args:
        inputs: (..., i), or (N, S, i).
        weight: (o, i), or (N, o, i).
        bias: (o,), or (N, o).
    """
    if weight.ndim == 2:
        return F.linear(inputs, weight, bias)
    return torch.baddbmm(bias.unsqueeze(1), inputs, weight.mT)
