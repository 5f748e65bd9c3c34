"""Learning to Forget (L2F; Baik, Hong, Lee, CVPR 2020, arXiv 1906.05895): how θ is attenuated for one task.

A small network φ reads factors γ off the task's mean gradients (Sec. 3.4, Eq. 4), and θ̄ = γ θ is where adaptation
starts (Eq. 3). Everything is written for one task; callers `torch.func.vmap` over tasks.

Letters: θ initialisation, φ attenuator, γ attenuation, L entries of γ (one per attenuated tensor by default).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..checks import check_choice, check_number
from .parameters import Params, Shapes, layer_of, small_network

Scope = Literal["network", "layer", "tensor", "filter", "weight"]
Conditioning = Literal["gradient", "none", "prototype"]
Transform = Literal["attenuate", "scale", "affine"]
EmbeddingScale = Literal["raw", "normalised", "standardised"]

WIDEST_ATTENUATOR = 64
"""Hidden units of the attenuator at most; the official n → n → n network would outgrow the policy at scope `filter`."""


@dataclass(frozen=True)
class Attenuation:
    """How γ is computed and applied; `None` in its place is MAML."""

    scope: Scope = "tensor"
    """The unit that shares one γ: the network, a layer (weight and bias), a tensor (the paper's L2F), a filter (an
    output row of a tensor), or a single weight. Table 4."""
    conditioning: Conditioning = "gradient"
    """`gradient`: γ is read off the task's mean gradients (Eq. 4). `none`: γ is learned freely, the same for every
    task, starts at 1 (whatever initial_gamma) and is not squashed (Table 4). `prototype`: γ is read off an embedding of
    the task that the caller brings, such as the mean class prototype of a prototypical network (Table 5)."""
    transform: Transform = "attenuate"
    """`attenuate`: γθ with γ ∈ (0, 1); `scale`: γθ without the sigmoid; `affine`: γθ + δ, without it. Table 6."""
    embedding: EmbeddingScale = "normalised"
    """`raw`: mean of each gradient (paper). `normalised`: after dividing each gradient tensor by its root mean square;
    means of policy gradients are so small that `raw` gives every task the same γ. `standardised`: that mean in units of
    its standard error, times √n, so that large tensors weigh as much as small ones."""
    initial_gamma: float = 0.5
    """Initial γ, in (0, 1): 0.5 as in the official code, towards 1 as in MAML."""

    def __post_init__(self) -> None:
        check_choice("scope", self.scope, Scope)
        check_choice("conditioning", self.conditioning, Conditioning)
        check_choice("transform", self.transform, Transform)
        check_choice("embedding", self.embedding, EmbeddingScale)
        check_number("an initial γ", self.initial_gamma, "(0, 1)")


def share_gammas(shapes: Shapes, scope: Scope) -> list[Tensor]:
    """For every scalar of every tensor, which entry of γ it is multiplied by.

    Args:
        shapes: the attenuated tensors' names and shapes.
        scope: the unit that shares one entry.
    Returns:
        One integer tensor per name, with values in [0, L), in the shape of that name, but with length 1 along axes
        whose scalars all share their entries.
    """
    layers = {layer: number for number, layer in enumerate(dict.fromkeys(map(layer_of, shapes)))}
    owners, used = [], 0
    for number, (name, shape) in enumerate(shapes.items()):
        if scope in ("filter", "weight"):
            kept = len(shape) if scope == "weight" else 1
            sizes = torch.Size(size if axis < kept else 1 for axis, size in enumerate(shape))
            owner = used + torch.arange(sizes.numel()).reshape(sizes)
            used += sizes.numel()
        else:
            entry = {"network": 0, "layer": layers[layer_of(name)], "tensor": number}[scope]
            owner = torch.full([1] * len(shape), entry)
        owners.append(owner)
    return owners


def embed(
    gradients: Sequence[Tensor], owners: Collection[Tensor], scale: EmbeddingScale, entries: int | None = None
) -> Tensor:
    """Task embedding: the mean gradient over everything that shares a γ, eˡ = mean(∇_θˡ L_D(f_θ)) (Sec. 3.4).

    Args:
        gradients: the attenuated tensors' gradients.
        owners: for each, which entry of γ its scalars belong to, as `share_gammas` gives it.
        scale: `raw` as in the paper; `normalised`: each tensor first divided by its root mean square; `standardised`:
            that times √n, n the number of scalars in the mean. Root mean squares are taken to be no less than √ε of
            the largest one, ε the rounding error of a number: a gradient that is 0 but for rounding stays near 0.
        entries: L, where it is known; else it is looked up in `owners`.
    Returns:
        (L,), detached: the embedding is data, not a path for gradients.
    """
    if scale != "raw":
        squares = torch.stack([g.square().mean() for g in gradients])
        precision = torch.finfo(squares.dtype)
        sizes = (squares + precision.eps * squares.amax()).sqrt().clamp_min(precision.tiny)
        gradients = [g / size for g, size in zip(gradients, sizes, strict=True)]
    pairs = list(zip(gradients, owners, strict=True))
    sums = torch.cat([_sum_like(g, owner).flatten() for g, owner in pairs]).detach()
    each = torch.cat([torch.full_like(owner, g.numel() // owner.numel()).flatten() for g, owner in pairs])
    owner = torch.cat([owner.flatten() for owner in owners])
    zeros = sums.new_zeros(int(owner.max()) + 1 if entries is None else entries)
    counts = zeros.scatter_add(0, owner, each.to(sums.dtype))
    return zeros.scatter_add(0, owner, sums) / (counts.sqrt() if scale == "standardised" else counts)


def _sum_like(tensor: Tensor, owner: Tensor) -> Tensor:
    """The tensor summed along the axes that `owner` has but once."""
    shared = [axis for axis, size in enumerate(owner.shape) if size == 1]
    return tensor.sum(shared, keepdim=True) if shared else tensor


def attenuate(theta: Params, gamma: Params, delta: Params | None = None, logarithmic: Sequence[str] = ()) -> Params:
    """Forget a part of the initialisation: θ̄ˡ = γˡ θˡ (Eq. 3), or γˡ θˡ + δˡ (Table 6, affine).

    Args:
        theta: named tensors.
        gamma: factors by name, each broadcastable to its tensor; tensors without one are kept as they are.
        delta: shifts by name, where the transform has them.
        logarithmic: names of tensors that hold a logarithm, whose exponential is attenuated: log σ + log γ.
    """
    forgotten = dict(theta)
    for name, factor in gamma.items():
        if name in logarithmic:
            forgotten[name] = theta[name] + factor.clamp_min(torch.finfo(factor.dtype).tiny).log()
        else:
            forgotten[name] = factor * theta[name]
        if delta is not None:
            forgotten[name] = forgotten[name] + delta[name]
    return forgotten


class Attenuator(nn.Module):
    """The attenuation of a task's initialisation, by φ, a small network that computes γ from the task's embedding.

    Args:
        shapes: names and shapes of the tensors that are attenuated.
        attenuation: how γ is computed and applied.
        logarithmic: names of tensors that hold a logarithm (log σ), attenuated as log σ + log γ.
        initial_gammas: initial γ of single tensors, by name, where it is not that of the others.
        embedding_size: size of the embedding that the caller brings; with conditioning on a prototype only.
        generator: draws φ's initial weights.
    Raises:
        ValueError: a name is unknown, an initial γ is not in (0, 1), or the embedding's size does not go with the
            conditioning.
    """

    _owner: Tensor
    mlp: nn.Sequential

    def __init__(
        self,
        shapes: Shapes,
        attenuation: Attenuation,
        *,
        logarithmic: Sequence[str] = (),
        initial_gammas: Mapping[str, float] | None = None,
        embedding_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.names, self.attenuation, self.logarithmic = list(shapes), attenuation, tuple(logarithmic)
        if (attenuation.conditioning == "prototype") != (embedding_size is not None):
            raise ValueError(
                "embedding_size goes with conditioning='prototype', and only with it; got "
                f"{embedding_size} with conditioning={attenuation.conditioning!r}"
            )
        owners = share_gammas(shapes, attenuation.scope)
        self._owner_shapes = [owner.shape for owner in owners]
        self.register_buffer("_owner", torch.cat([owner.flatten() for owner in owners]), persistent=False)
        self.entries = int(self._owner.max()) + 1
        """Number L of entries of γ."""
        outputs = 2 * self.entries if attenuation.transform == "affine" else self.entries
        if attenuation.conditioning == "none":
            self.free = nn.Parameter(torch.empty(outputs))
        else:
            hidden = min(self.entries, WIDEST_ATTENUATOR)
            self.mlp = small_network(embedding_size or self.entries, hidden, outputs, generator)
        self._set_initial_gammas(initial_gammas or {})

    @torch.no_grad()
    def _set_initial_gammas(self, special: Mapping[str, float]) -> None:
        """Let γ start at its initial value, through the last bias, and δ at 0."""
        if unknown := set(special) - set(self.names):
            raise ValueError(f"initial_gammas names no attenuated parameter: {sorted(unknown)}")
        free = self.attenuation.conditioning == "none"
        gamma = torch.full((self.entries,), 1.0 if free else self.attenuation.initial_gamma)
        for name, value in special.items():
            check_number("an initial γ", value, "(0, 1)")
            gamma[self.owners[name].unique()] = value
        squashed = self.attenuation.transform == "attenuate" and not free
        bias = self.free if free else self.mlp[2].get_parameter("bias")
        bias.zero_()
        bias[: len(gamma)] = gamma.logit() if squashed else gamma

    @property
    def owners(self) -> Params:
        """Which entry of γ the scalars of each attenuated tensor belong to, as `share_gammas` gives it, by name."""
        pieces = self._owner.split([shape.numel() for shape in self._owner_shapes])
        shaped = (piece.reshape(shape) for piece, shape in zip(pieces, self._owner_shapes, strict=True))
        return dict(zip(self.names, shaped, strict=True))

    def factors(self, gradients: Params, prototype: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The task's attenuation γ = sigmoid(MLP_φ(e)) (Eq. 4), and the shift δ where the transform is affine.

        Args:
            gradients: gradients of the task's loss at θ, by name.
            prototype: (embedding_size,), read instead of the gradients where γ is conditioned on it.
        Returns:
            γ (L,) and δ (L,) or None.
        Raises:
            ValueError: γ is conditioned on a prototype, and there is none.
        """
        if self.attenuation.conditioning == "none":
            output = self.free.clone()  # Not the parameter itself: what is logged must not move with an update.
        else:
            output = self.mlp(self._embedding(gradients, prototype))
            if self.attenuation.transform == "attenuate":
                output = output.sigmoid()
        if self.attenuation.transform == "affine":
            gamma, delta = output.chunk(2)
            return gamma, delta
        return output, None

    def _embedding(self, gradients: Params, prototype: Tensor | None) -> Tensor:
        if self.attenuation.conditioning == "gradient":
            chosen = [gradients[name] for name in self.names]
            return embed(chosen, self.owners.values(), self.attenuation.embedding, self.entries)
        if prototype is None:
            raise ValueError("conditioning='prototype' needs each task's prototype, got None; pass prototype=")
        return prototype

    def spread(self, values: Tensor) -> Params:
        """Entries of γ or δ (L,) → for every attenuated tensor, by name, a tensor that broadcasts to it."""
        return {name: values[owner] for name, owner in self.owners.items()}

    def by_tensor(self, gamma: Tensor) -> Params:
        """Entries of γ (..., L), on any device, that belong to each attenuated tensor: (..., entries), by name."""
        return {name: gamma[..., owner.unique().to(gamma.device)] for name, owner in self.owners.items()}

    def forward(self, theta: Params, gradients: Params, prototype: Tensor | None = None) -> tuple[Params, Tensor]:
        """The attenuated initialisation θ̄ (Eq. 3) and the task's γ (L,).

        Args:
            theta: the initialisation, by name.
            gradients: as in `factors`.
            prototype: as in `factors`.
        """
        gamma, delta = self.factors(gradients, prototype)
        shift = None if delta is None else self.spread(delta)
        return attenuate(theta, self.spread(gamma), shift, self.logarithmic), gamma
