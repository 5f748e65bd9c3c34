"""Policies as functions of their parameters: a module stores the initial values, and `forward(params, x)` computes.

Adapted parameters are values, one set per task, so no network here reads its own parameters while computing. That
also makes every network safe to call from several threads and under `torch.func.vmap`.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_choice, check_count, check_number
from ..core.parameters import Params

Activation = Literal["tanh", "relu"]
SMALLEST_LOG_STD = math.log(1e-6)
VECTOR = 64  # A multiple of how many numbers torch's loops process at a time, on any processor.
OUTPUT_SCALE = 0.01
"""Initial weights of a policy's last layer, relative to those of the others. A policy that begins by moving in one
direction everywhere may never come back; with a mean near 0, or almost equal logits, it explores around its start."""


class Distribution(Iterable[Tensor], Protocol):
    """The distribution of the action that a policy returns, a NamedTuple of tensors (`Gaussian`, `Categorical`)."""

    def sample(self, noise: Tensor) -> Tensor:
        """Turn standard normal noise (..., A) into actions (..., A)."""

    def mode(self) -> Tensor:
        """Return the likeliest action, (..., A)."""

    def log_prob(self, actions: Tensor) -> Tensor:
        """Compute log π(a) of actions (..., A); returns (...,)."""

    def kl(self, other: Self) -> Tensor:
        """Compute KL(self ‖ other), (...,)."""

    def fisher(self, tangent: Self, weights: Tensor) -> Self:
        """Multiply a tangent by the curvature of the weighted KL at this point.

        Args:
            tangent: the change of each of the distribution's fields.
            weights: (...,), each observation's share of the mean.
        Returns:
            The product, in the distribution's own fields.
        """

    def __len__(self) -> int:
        """Return the number of tensors."""


class Gaussian(NamedTuple):
    """A diagonal Gaussian over actions."""

    mean: Tensor
    """(..., A)"""
    log_std: Tensor
    """(A,), the same for every observation."""

    def sample(self, noise: Tensor) -> Tensor:
        """Compute the actions mean + σ · noise from standard normal noise (..., A)."""
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Tensor:
        """Return the mean, (..., A)."""
        return self.mean

    def log_prob(self, actions: Tensor) -> Tensor:
        """Compute log N(actions; mean, σ²), summed over the action's components: (...,)."""
        standardised = (actions - self.mean) * torch.exp(-self.log_std)
        return -(0.5 * standardised.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def kl(self, other: "Gaussian") -> Tensor:
        """Compute KL(self ‖ other) = Σ_a log(σ′/σ) + (σ² + (μ − μ′)²) / 2σ′² − 1/2: (...,)."""
        variance, other_variance = torch.exp(2 * self.log_std), torch.exp(2 * other.log_std)
        squared = (self.mean - other.mean).square()
        return (other.log_std - self.log_std + (variance + squared) / (2 * other_variance) - 0.5).sum(-1)

    def fisher(self, tangent: "Gaussian", weights: Tensor) -> "Gaussian":
        """Multiply a tangent u by the curvature of the weighted KL at this point: (w u_μ / σ², 2 u_logσ Σw).

        Args:
            tangent: the change u of the mean (..., A) and of log σ (A,).
            weights: (...,), each observation's share of the mean.
        """
        mean = weights.unsqueeze(-1) * tangent.mean * torch.exp(-2 * self.log_std)
        return Gaussian(mean, 2 * weights.sum() * tangent.log_std)


class Categorical(NamedTuple):
    """A choice among A actions; an action is a one-hot vector (..., A)."""

    logits: Tensor
    """(..., A), log-probabilities up to a constant."""

    def sample(self, noise: Tensor) -> Tensor:
        """Turn standard normal noise (..., A) into one-hot actions argmax(logits + g), g = −log(−log Φ(noise)).

        This is the Gumbel-max trick with Gumbel noise g.
        """
        # log Φ(x) is computed as log(1 − Φ(−x)): large g decide the argmax, and there Φ(x) rounds to 1. torch's ndtr
        # rounds both tails.
        info = torch.finfo(noise.dtype)
        beyond = (0.5 * torch.erfc(noise * math.sqrt(0.5))).clamp(info.tiny, 1 - info.eps)
        return self._one_hot(self.logits - torch.log(-torch.log1p(-beyond)))

    def mode(self) -> Tensor:
        """Return the likeliest action, one-hot: (..., A)."""
        return self._one_hot(self.logits)

    def _one_hot(self, scores: Tensor) -> Tensor:
        return F.one_hot(scores.argmax(-1), scores.shape[-1]).to(self.logits.dtype)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Compute log softmax(logits) of the chosen action, for one-hot actions (..., A): (...,)."""
        return (actions * self.logits.log_softmax(-1)).sum(-1)

    def kl(self, other: "Categorical") -> Tensor:
        """Compute KL(self ‖ other) = Σ_a p (log p − log p′): (...,)."""
        ours = self.logits.log_softmax(-1)
        return (ours.exp() * (ours - other.logits.log_softmax(-1))).sum(-1)

    def fisher(self, tangent: "Categorical", weights: Tensor) -> "Categorical":
        """Multiply a tangent u by the curvature of the weighted KL at this point: w (diag(p) − p pᵀ) u.

        Args:
            tangent: the change u of the logits (..., A).
            weights: (...,), each observation's share of the mean.
        """
        p = self.logits.softmax(-1)
        change = p * tangent.logits
        return Categorical(weights.unsqueeze(-1) * (change - p * change.sum(-1, keepdim=True)))


def alike(policy: Distribution, tensors: Iterable[Tensor]) -> Distribution:
    """A distribution of the same kind, of other tensors."""
    kind: Callable[..., Distribution] = type(policy)
    return kind(*tensors)


def detached(policy: Distribution) -> Distribution:
    """The same distribution as a constant, through which no gradient flows."""
    return alike(policy, [tensor.detach() for tensor in policy])


class MLP(nn.Module):
    """A fully connected network with ReLU or tanh between its layers and a linear last layer.

    Args:
        sizes: the number of units of each layer, from the input to the output.
        activation: the function between layers.
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
        self.activation = tanh if activation == "tanh" else torch.relu
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


def tanh(inputs: Tensor) -> Tensor:
    """Compute tanh x; where no derivative is needed, as 2 σ(2x) − 1, which overwrites the inputs.

    On a CPU torch computes σ several times as fast as tanh. With derivatives the detour costs more than it saves. torch
    also rounds σ differently for the numbers that are left at the end of a tensor, beyond a multiple of VECTOR; where a
    task's rows leave such a rest, the result would depend on the number of tasks, so there tanh is used.
    """
    if torch.is_grad_enabled() or math.prod(inputs.shape[-2:]) % VECTOR:
        return torch.tanh(inputs)
    return inputs.mul_(2).sigmoid_().mul_(2).sub_(1)


class GaussianPolicy(nn.Module):
    """A policy N(MLP(observation), σ²) with a learned σ per action component, the same in every state.

    Args:
        observation_size: O, the length of an observation.
        action_size: A, the length of an action.
        hidden_sizes: the number of units of each hidden layer.
        activation: the function between layers.
        initial_std: the initial σ, positive.
        generator: the source of the initial weights.
        context_size: as in `MLP`.
    Raises:
        ValueError: a number is out of range, or the activation is unknown.
    """

    logarithmic = ("log_std",)
    """Names of the parameters that hold a logarithm."""

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        initial_std: float = 1.0,
        generator: torch.Generator | None = None,
        context_size: int = 0,
    ) -> None:
        super().__init__()
        check_number("initial_std", initial_std, "(0, inf)")
        self.mean = _quiet_mlp([observation_size, *hidden_sizes, action_size], activation, generator, context_size)
        self.log_std = nn.Parameter(torch.full((action_size,), math.log(initial_std)))

    def entropy(self, params: Params, observations: Tensor) -> Tensor:
        """Return −E[log π] = Σ_a log σ + ½ log 2πe, nats, in each of the observations (..., O): (...,)."""
        entropy = (_log_std(params) + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
        return entropy.expand(observations.shape[:-1])

    def is_head(self, name: str) -> bool:
        """Whether a parameter is σ's, or the last layer's."""
        return name == "log_std" or (name.startswith("mean.") and self.mean.is_head(name.removeprefix("mean.")))

    def forward(self, params: Params, observations: Tensor) -> Gaussian:
        """Map observations (..., O) to the distribution of the action in each.

        With parameters stacked over N tasks, observations are (N, S, O), and log σ becomes (N, 1, A).
        """
        mean = self.mean(params, observations, prefix="mean.")
        log_std = _log_std(params)
        # σ belongs to a task, not to an observation; without the axis between it would broadcast over those.
        return Gaussian(mean, log_std if log_std.ndim == 1 else log_std.unsqueeze(1))


def _log_std(params: Params) -> Tensor:
    return params["log_std"].clamp_min(SMALLEST_LOG_STD)


class CategoricalPolicy(nn.Module):
    """A policy softmax(MLP(observation)) over A actions.

    Args:
        observation_size: O, the length of an observation.
        action_size: A, the number of actions.
        hidden_sizes: the number of units of each hidden layer.
        activation: the function between layers.
        generator: the source of the initial weights.
        context_size: as in `MLP`.
    Raises:
        ValueError: a size is not positive, or the activation is unknown.
    """

    logarithmic = ()
    """Names of the parameters that hold a logarithm."""

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        generator: torch.Generator | None = None,
        context_size: int = 0,
    ) -> None:
        super().__init__()
        self.logits = _quiet_mlp([observation_size, *hidden_sizes, action_size], activation, generator, context_size)

    def entropy(self, params: Params, observations: Tensor) -> Tensor:
        """Return −Σ_a p log p, nats, in each of the observations (..., O): (...,)."""
        log_p = self(params, observations).logits.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    def is_head(self, name: str) -> bool:
        """Whether a parameter is the last layer's."""
        return self.logits.is_head(name.removeprefix("logits."))

    def forward(self, params: Params, observations: Tensor) -> Categorical:
        """Map observations (..., O) to the distribution of the action in each."""
        return Categorical(self.logits(params, observations, prefix="logits."))


Policy = GaussianPolicy | CategoricalPolicy


def policy_layout(policy: Policy) -> dict[str, Any]:
    """Describe a policy, except for its parameters, as plain data that `policy_from_layout` reads."""
    mlp = policy.mean if isinstance(policy, GaussianPolicy) else policy.logits
    return {
        "kind": type(policy).__name__,
        "sizes": list(mlp.sizes),
        "activation": mlp.activation_name,
        "context_size": mlp.context_size,
    }


def policy_from_layout(layout: dict[str, Any]) -> Policy:
    """Build a policy from its description.

    Args:
        layout: the description, from `policy_layout`.
    Raises:
        KeyError, TypeError, ValueError: the layout describes no policy.
    """
    kind = {"GaussianPolicy": GaussianPolicy, "CategoricalPolicy": CategoricalPolicy}[layout["kind"]]
    observed, *hidden, acted = layout["sizes"]
    return kind(observed, acted, hidden, layout["activation"], context_size=layout.get("context_size", 0))


def _quiet_mlp(
    sizes: Sequence[int], activation: Activation, generator: torch.Generator | None, context_size: int
) -> MLP:
    """Build an MLP whose last layer's weights are multiplied by OUTPUT_SCALE."""
    network = MLP(sizes, activation, generator, context_size)
    with torch.no_grad():
        network.layers[-1].get_parameter("weight").mul_(OUTPUT_SCALE)
    return network
