"""Networks as functions of their parameters: the module stores the initial values, `forward(params, x)` computes.

Adapted parameters are values, one set per task, so no network here reads its own attributes while computing. That
also makes every network safe to call from several threads and under `torch.func.vmap`.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_number
from ..core import Params

Activation = Literal["tanh", "relu"]
SMALLEST_LOG_STD = math.log(1e-6)
VECTOR = 64  # Numbers that torch's loops take at a time on any processor, or a multiple of that.
OUTPUT_SCALE = 0.01
"""Initial weights of a policy's last layer, relative to the others'. A policy that starts by moving everywhere the same
way may never come back; one that starts with almost no mean, or almost equal logits, explores around its start."""


class Distribution(Iterable[Tensor], Protocol):
    """What a policy returns: the distribution of the action, a NamedTuple of tensors (`Gaussian`, `Categorical`)."""

    def sample(self, noise: Tensor) -> Tensor:
        """Actions, out of standard normal noise (..., A)."""

    def mode(self) -> Tensor:
        """The likeliest action, (..., A)."""

    def log_prob(self, actions: Tensor) -> Tensor:
        """log π(a), (...,)."""

    def kl(self, other: Self) -> Tensor:
        """KL(self ‖ other), (...,)."""

    def fisher(self, tangent: Self, weights: Tensor) -> Self:
        """Curvature of the weighted KL at this point times a tangent, in the distribution's own fields."""

    def __len__(self) -> int:
        """Number of tensors."""


class Gaussian(NamedTuple):
    """A diagonal Gaussian over actions."""

    mean: Tensor
    """(..., A)"""
    log_std: Tensor
    """(A,), the same for every observation."""

    def sample(self, noise: Tensor) -> Tensor:
        """Actions mean + σ · noise, for standard normal noise (..., A)."""
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Tensor:
        """The mean: (..., A)."""
        return self.mean

    def log_prob(self, actions: Tensor) -> Tensor:
        """log N(actions; mean, σ²), summed over the action's components: (...,)."""
        standardised = (actions - self.mean) * torch.exp(-self.log_std)
        return -(0.5 * standardised.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def kl(self, other: "Gaussian") -> Tensor:
        """KL(self ‖ other) = Σ_a log(σ′/σ) + (σ² + (μ − μ′)²) / 2σ′² − 1/2: (...,)."""
        variance, other_variance = torch.exp(2 * self.log_std), torch.exp(2 * other.log_std)
        squared = (self.mean - other.mean).square()
        return (other.log_std - self.log_std + (variance + squared) / (2 * other_variance) - 0.5).sum(-1)

    def fisher(self, tangent: "Gaussian", weights: Tensor) -> "Gaussian":
        """Curvature of the weighted KL at this point times a tangent: (w u_μ / σ², 2 u_logσ Σw).

        Args:
            tangent: change of mean (..., A) and of log σ (A,).
            weights: (...,), each observation's share of the mean.
        """
        mean = weights.unsqueeze(-1) * tangent.mean * torch.exp(-2 * self.log_std)
        return Gaussian(mean, 2 * weights.sum() * tangent.log_std)


class Categorical(NamedTuple):
    """A choice among A actions; an action is a one-hot vector (..., A)."""

    logits: Tensor
    """(..., A), log-probabilities up to a constant."""

    def sample(self, noise: Tensor) -> Tensor:
        """One-hot argmax(logits + g), g = −log(−log Φ(noise)) (Gumbel-max), for standard normal noise (..., A)."""
        # log Φ(x) as log(1 − Φ(−x)), for a large g wins, and there Φ(x) rounds to 1; torch's ndtr rounds both tails.
        info = torch.finfo(noise.dtype)
        beyond = (0.5 * torch.erfc(noise * math.sqrt(0.5))).clamp(info.tiny, 1 - info.eps)
        return self._one_hot(self.logits - torch.log(-torch.log1p(-beyond)))

    def mode(self) -> Tensor:
        """The likeliest action, one-hot: (..., A)."""
        return self._one_hot(self.logits)

    def _one_hot(self, scores: Tensor) -> Tensor:
        return F.one_hot(scores.argmax(-1), scores.shape[-1]).to(self.logits.dtype)

    def log_prob(self, actions: Tensor) -> Tensor:
        """log softmax(logits) of the chosen action, for one-hot actions (..., A): (...,)."""
        return (actions * self.logits.log_softmax(-1)).sum(-1)

    def kl(self, other: "Categorical") -> Tensor:
        """KL(self ‖ other) = Σ_a p (log p − log p′): (...,)."""
        ours = self.logits.log_softmax(-1)
        return (ours.exp() * (ours - other.logits.log_softmax(-1))).sum(-1)

    def fisher(self, tangent: "Categorical", weights: Tensor) -> "Categorical":
        """Curvature of the weighted KL at this point times a tangent: w (diag(p) − p pᵀ) u.

        Args:
            tangent: change of the logits (..., A).
            weights: (...,), each observation's share of the mean.
        """
        p = self.logits.softmax(-1)
        change = p * tangent.logits
        return Categorical(weights.unsqueeze(-1) * (change - p * change.sum(-1, keepdim=True)))


class MLP(nn.Module):
    """A fully connected network, ReLU or tanh between its layers, linear at the end.

    Args:
        sizes: units per layer, from the input to the output.
        activation: between layers.
        generator: draws the initial weights, Xavier uniform; biases start at 0.
    """

    def __init__(
        self, sizes: Sequence[int], activation: Activation = "tanh", generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if activation not in get_args(Activation):
            raise ValueError(f"activation must be one of {get_args(Activation)}, got {activation!r}")
        if min(sizes) < 1:
            raise ValueError(f"layer sizes must be positive, got {tuple(sizes)}")
        self.sizes, self.activation_name = tuple(sizes), activation
        self.activation = tanh if activation == "tanh" else torch.relu
        layers = [nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(sizes)]
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, params: Params, inputs: Tensor, prefix: str = "") -> Tensor:
        """inputs (..., sizes[0]) → outputs (..., sizes[-1]); or (N, S, ·), for parameters stacked over tasks."""
        last = len(self.layers) - 1
        for number in range(last + 1):
            weight, bias = params[f"{prefix}layers.{number}.weight"], params[f"{prefix}layers.{number}.bias"]
            inputs = affine(inputs, weight, bias)
            if number < last:
                inputs = self.activation(inputs)
        return inputs


def affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """W x + b: of one task, for weight (o, i), or of N tasks at once, for inputs (N, S, i) and weight (N, o, i).

    `vmap` of the first does what the second does, but takes twice as long for the few inputs of a time step.
    """
    if weight.ndim == 2:
        return F.linear(inputs, weight, bias)
    return torch.baddbmm(bias.unsqueeze(1), inputs, weight.mT)


def tanh(inputs: Tensor) -> Tensor:
    """tanh x; where nobody asks for its derivative, as 2 σ(2x) − 1, in place of the inputs.

    On a CPU torch computes σ several times as fast as tanh. With derivatives the detour costs more than it saves. And
    it rounds σ otherwise in the odd numbers at the end of a tensor: where a task's rows leave such a rest, the result
    would depend on how many tasks there are.
    """
    if torch.is_grad_enabled() or math.prod(inputs.shape[-2:]) % VECTOR:
        return torch.tanh(inputs)
    return inputs.mul_(2).sigmoid_().mul_(2).sub_(1)


class GaussianPolicy(nn.Module):
    """A policy N(MLP(observation), σ²) with a learned σ per action component, the same in every state.

    Args:
        observation_size: O.
        action_size: A.
        hidden_sizes: units of the hidden layers.
        activation: between layers.
        initial_std: where σ starts, positive.
        generator: draws the initial weights.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        initial_std: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_number("initial_std", initial_std, "(0, inf)")
        self.mean = _quiet_mlp([observation_size, *hidden_sizes, action_size], activation, generator)
        self.log_std = nn.Parameter(torch.full((action_size,), math.log(initial_std)))

    def forward(self, params: Params, observations: Tensor) -> Gaussian:
        """observations (..., O) → the distribution of the action in each.

        With parameters stacked over N tasks, observations are (N, S, O), and log σ becomes (N, 1, A).
        """
        mean = self.mean(params, observations, prefix="mean.")
        log_std = params["log_std"].clamp_min(SMALLEST_LOG_STD)
        # σ belongs to a task, not to an observation; without the axis between it would broadcast over those.
        return Gaussian(mean, log_std if log_std.ndim == 1 else log_std.unsqueeze(1))


class CategoricalPolicy(nn.Module):
    """A policy softmax(MLP(observation)) over A actions.

    Args:
        observation_size: O.
        action_size: A, the number of actions.
        hidden_sizes: units of the hidden layers.
        activation: between layers.
        generator: draws the initial weights.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.logits = _quiet_mlp([observation_size, *hidden_sizes, action_size], activation, generator)

    def forward(self, params: Params, observations: Tensor) -> Categorical:
        """observations (..., O) → the distribution of the action in each."""
        return Categorical(self.logits(params, observations, prefix="logits."))


Policy = GaussianPolicy | CategoricalPolicy


def policy_layout(policy: Policy) -> dict[str, Any]:
    """What a policy is but for its parameters, as plain data, from which `policy_from_layout` builds one like it."""
    mlp = policy.mean if isinstance(policy, GaussianPolicy) else policy.logits
    return {"kind": type(policy).__name__, "sizes": list(mlp.sizes), "activation": mlp.activation_name}


def policy_from_layout(layout: dict[str, Any]) -> Policy:
    """A new policy; a KeyError, TypeError or ValueError where the layout is of none."""
    kind = {"GaussianPolicy": GaussianPolicy, "CategoricalPolicy": CategoricalPolicy}[layout["kind"]]
    observed, *hidden, acted = layout["sizes"]
    return kind(observed, acted, hidden, layout["activation"])


def _quiet_mlp(sizes: Sequence[int], activation: Activation, generator: torch.Generator | None) -> MLP:
    """An MLP whose last layer starts OUTPUT_SCALE times smaller than the others."""
    network = MLP(sizes, activation, generator)
    with torch.no_grad():
        network.layers[-1].get_parameter("weight").mul_(OUTPUT_SCALE)
    return network
