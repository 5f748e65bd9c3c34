"""Policies as functions of their parameters: a module stores the initial values, and `forward(params, x)` computes."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_number
from ..core.parameters import Params
from .mlp import MLP, Activation
from .normalisation import Normalisation
from .pictures import PictureTrunk, as_numbers

SMALLEST_LOG_STD = math.log(1e-6)
FILTERS = 16
"""Filters of the convolutions of a picture's trunk, unless another number is given."""
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
    """(A,), the same for every observation, or (..., A), where σ depends on it."""

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
        """Multiply a tangent u by the curvature of the weighted KL at this point: (w u_μ / σ², 2 w u_logσ).

        Where all observations share one σ, its w is the sum of theirs.

        Args:
            tangent: the change u of the mean (..., A) and of log σ, (A,) or (..., A).
            weights: (...,), each observation's share of the mean.
        """
        each = weights.unsqueeze(-1)
        mean = each * tangent.mean * torch.exp(-2 * self.log_std)
        return Gaussian(mean, 2 * (each if self.log_std.shape == self.mean.shape else weights.sum()) * tangent.log_std)


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


class MLPPolicy(nn.Module):
    """The common part of all policies: an MLP whose outputs are the fields of the action's distribution.

    It reads observations as they are, or normalised by their running moments; for pictures it may read the features of
    a `PictureTrunk` instead. Its last layer starts OUTPUT_SCALE times as large as the others.

    Args:
        outputs: the name of the MLP among the policy's modules.
        sizes: the length of an observation, and the number of units of each layer up to the outputs.
        activation: the name of the function between layers.
        generator: the source of the initial weights.
        context_size: as in `MLP`.
        normalise_observations: whether observations are read through a `Normalisation`, whose moments the caller moves.
        picture: (H, W, C) of the pictures that a trunk reads, whose numbers in a row are the observations; None for no
            trunk.
        filters: as in `PictureTrunk`.
    Raises:
        ValueError: a size is not positive or not that of the picture, the picture is too small, or the activation is
            unknown.
    """

    def __init__(
        self,
        outputs: str,
        sizes: Sequence[int],
        activation: Activation,
        generator: torch.Generator | None,
        context_size: int,
        normalise_observations: bool,
        picture: Sequence[int] | None,
        filters: int,
    ) -> None:
        super().__init__()
        self.outputs, self.sizes = outputs, list(sizes)
        self.normalisation = Normalisation(sizes[0]) if normalise_observations else None
        self.trunk = PictureTrunk(picture, filters, generator) if picture else None
        if self.trunk is not None:
            if math.prod(self.trunk.shape) != sizes[0]:
                raise ValueError(f"pictures of {self.trunk.shape} have another number of numbers than {sizes[0]}")
            sizes = [self.trunk.feature_size, *sizes[1:]]
        self.add_module(outputs, MLP(sizes, activation, generator, context_size))
        with torch.no_grad():
            self.mlp.layers[-1].get_parameter("weight").mul_(OUTPUT_SCALE)

    @property
    def mlp(self) -> MLP:
        """The MLP."""
        network = self.get_submodule(self.outputs)
        assert isinstance(network, MLP)
        return network

    def computed(self, params: Params, observations: Tensor) -> Tensor:
        """Map observations (..., O) to the outputs of the MLP; bytes are those of pictures."""
        observations = as_numbers(observations, next(iter(params.values())).dtype)
        if self.normalisation is not None:
            observations = self.normalisation(observations)
        if self.trunk is not None:
            observations = self.trunk(params, observations)
        outputs: Tensor = self.mlp(params, observations, prefix=f"{self.outputs}.")
        return outputs

    def is_head(self, name: str) -> bool:
        """Whether a parameter is the last layer's."""
        of_mlp = f"{self.outputs}."
        return name.startswith(of_mlp) and self.mlp.is_head(name.removeprefix(of_mlp))

    def layout(self) -> dict[str, Any]:
        """Describe the policy, except for its parameters, as plain data that `policy_from_layout` reads."""
        return {
            "kind": type(self).__name__,
            "sizes": self.sizes,
            "activation": self.mlp.activation_name,
            "context_size": self.mlp.context_size,
            "normalise_observations": self.normalisation is not None,
            "picture": None if self.trunk is None else list(self.trunk.shape),
            "filters": None if self.trunk is None else self.trunk.blocks.filters,
        }


class GaussianPolicy(MLPPolicy):
    """A policy N(μ, σ²) with μ = MLP(o), for Box actions.

    σ is a parameter for each action component, the same in every state. With `state_dependent_std` the MLP has 2A
    outputs, of which the second half is added to it: log σ(o) = log σ + MLP₂(o). Where log σ is attenuated, σ is
    attenuated in all states alike.

    Args:
        observation_size: O, the length of an observation.
        action_size: A, the length of an action.
        hidden_sizes: the number of units of each hidden layer.
        activation: the name of the function between layers.
        initial_std: the initial σ, positive; where σ depends on the state, it starts within a few percent of it.
        generator: the source of the initial weights.
        context_size: as in `MLP`.
        state_dependent_std: whether σ depends on the observation.
        normalise_observations, picture, filters: as in `MLPPolicy`.
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
        *,
        state_dependent_std: bool = False,
        normalise_observations: bool = False,
        picture: Sequence[int] | None = None,
        filters: int = FILTERS,
    ) -> None:
        check_number("initial_std", initial_std, "(0, inf)")
        sizes = [observation_size, *hidden_sizes, action_size * (2 if state_dependent_std else 1)]
        super().__init__("mean", sizes, activation, generator, context_size, normalise_observations, picture, filters)
        self.state_dependent_std = state_dependent_std
        self.log_std = nn.Parameter(torch.full((action_size,), math.log(initial_std)))

    def entropy(self, params: Params, observations: Tensor) -> Tensor:
        """Return −E[log π] = Σ_a log σ + ½ log 2πe, nats, in each of the observations (..., O): (...,)."""
        log_std = self(params, observations).log_std if self.state_dependent_std else params["log_std"]
        log_std = log_std.clamp_min(SMALLEST_LOG_STD)
        return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1).expand(observations.shape[:-1])

    def is_head(self, name: str) -> bool:
        """Whether a parameter is σ's, or the last layer's."""
        return name == "log_std" or super().is_head(name)

    def forward(self, params: Params, observations: Tensor) -> Gaussian:
        """Map observations (..., O) to the distribution of the action in each.

        With parameters stacked over N tasks, observations are (N, S, O), and log σ becomes (N, 1, A), or (N, S, A)
        where it depends on the observation.
        """
        log_std = params["log_std"]
        # σ belongs to a task, not to an observation; without the axis between it would broadcast over those.
        log_std = log_std if log_std.ndim == 1 else log_std.unsqueeze(1)
        outputs = self.computed(params, observations)
        if self.state_dependent_std:
            outputs, change = outputs.chunk(2, -1)
            log_std = log_std + change
        return Gaussian(outputs, log_std.clamp_min(SMALLEST_LOG_STD))

    def layout(self) -> dict[str, Any]:
        return super().layout() | {"state_dependent_std": self.state_dependent_std}


class CategoricalPolicy(MLPPolicy):
    """A policy softmax(MLP(o)) over A actions.

    Args:
        observation_size: O, the length of an observation.
        action_size: A, the number of actions.
        hidden_sizes: the number of units of each hidden layer.
        activation: the name of the function between layers.
        generator: the source of the initial weights.
        context_size: as in `MLP`.
        normalise_observations, picture, filters: as in `MLPPolicy`.
    Raises:
        ValueError: a number is out of range, or the activation is unknown.
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
        *,
        normalise_observations: bool = False,
        picture: Sequence[int] | None = None,
        filters: int = FILTERS,
    ) -> None:
        sizes = [observation_size, *hidden_sizes, action_size]
        super().__init__("logits", sizes, activation, generator, context_size, normalise_observations, picture, filters)

    def entropy(self, params: Params, observations: Tensor) -> Tensor:
        """Return −Σ_a p log p, nats, in each of the observations (..., O): (...,)."""
        log_p = self(params, observations).logits.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    def forward(self, params: Params, observations: Tensor) -> Categorical:
        """Map observations (..., O) to the distribution of the action in each."""
        return Categorical(self.computed(params, observations))


Policy = GaussianPolicy | CategoricalPolicy


def policy_from_layout(layout: dict[str, Any]) -> Policy:
    """Build a policy from its description.

    Args:
        layout: the description, from a policy's `layout`; what earlier versions do not name is as they had it.
    Raises:
        KeyError, TypeError, ValueError: the layout describes no policy.
    """
    observed, *hidden, outputs = layout["sizes"]
    common = {
        "hidden_sizes": hidden,
        "activation": layout["activation"],
        "context_size": layout.get("context_size", 0),
        "normalise_observations": layout.get("normalise_observations", False),
        "picture": layout.get("picture"),
        "filters": layout.get("filters"),
    }
    match layout["kind"]:
        case "GaussianPolicy":
            dependent = layout.get("state_dependent_std", False)
            acted = outputs // 2 if dependent else outputs
            return GaussianPolicy(observed, acted, **common, state_dependent_std=dependent)
        case "CategoricalPolicy":
            return CategoricalPolicy(observed, outputs, **common)
    raise ValueError(f"unknown kind of policy {layout['kind']!r}")
