"""Learning to Forget (L2F; Baik, Hong, Lee, CVPR 2020, arXiv 1906.05895): the equations, for one task.

MAML learns one initialisation θ for all tasks. L2F first shrinks θ for the task at hand, by factors γ that a small
network reads off the task's mean gradients, and only then adapts by gradient steps. Everything here is written for
one task, as functions of named tensors; callers `torch.func.vmap` over tasks. Nothing here knows what the loss is.

Letters: θ initialisation, φ attenuator, α inner step sizes, γ attenuation, L entries of γ (one per attenuated tensor
by default), P scalars in the attenuated tensors.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.func import grad

from .checks import check_number, check_numbers

Params = dict[str, Tensor]
Loss = Callable[[Params], Tensor]

Scope = Literal["network", "layer", "tensor", "filter", "weight"]
Conditioning = Literal["gradient", "none", "prototype"]
Transform = Literal["attenuate", "scale", "affine"]
EmbeddingScale = Literal["raw", "normalised", "standardised"]
StepSizeScope = Literal["tensor", "weight"]

WIDEST_ATTENUATOR = 64
"""Hidden units of the attenuator at most; the official n → n → n network would outgrow the policy at scope `filter`."""


@dataclass(frozen=True)
class Attenuation:
    """How γ is computed and applied; `None` in its place is MAML."""

    scope: Scope = "tensor"
    """What shares one γ: the network, a layer (weight and bias), a tensor (the paper's L2F), a filter (an output row
    of a tensor), or nothing (every weight has its own). Table 4."""
    conditioning: Conditioning = "gradient"
    """`gradient`: γ is read off the task's mean gradients (Eq. 4). `none`: γ is learned freely, the same for every
    task, starts at 1 (whatever initial_gamma) and is not squashed (Table 4). `prototype`: γ is read off an embedding of
    the task that the caller brings, such as the mean class prototype of a prototypical network (Table 5)."""
    transform: Transform = "attenuate"
    """`attenuate`: γθ with γ ∈ (0, 1); `scale`: γθ without the sigmoid; `affine`: γθ + δ, without it. Table 6."""
    embedding: EmbeddingScale = "normalised"
    """`raw`: mean of each gradient (paper). `normalised`: after dividing each gradient tensor by its root mean square;
    means of policy gradients are so small that `raw` gives every task the same γ. `standardised`: that mean in units of
    its standard error, times √n, so that large tensors speak as loudly as small ones."""
    initial_gamma: float = 0.5
    """Where γ starts, in (0, 1): 0.5 as in the official code, towards 1 as in MAML."""

    def __post_init__(self) -> None:
        _one_of("scope", self.scope, Scope)
        _one_of("conditioning", self.conditioning, Conditioning)
        _one_of("transform", self.transform, Transform)
        _one_of("embedding", self.embedding, EmbeddingScale)
        check_number("an initial γ", self.initial_gamma, "(0, 1)")


@dataclass(frozen=True)
class InnerLoop:
    """The gradient steps that adapt the (attenuated) initialisation to one task."""

    inner_steps: int = 1
    """Gradient steps k per task."""
    inner_lr: float = 0.1
    """Step size α; where it starts when it is learned."""
    learn_inner_lr: bool = False
    """Learn the step sizes, each step's own, together with the initialisation."""
    inner_lr_scope: StepSizeScope = "tensor"
    """What shares a learned step size: a `tensor` (LSLR of MAML++), or nothing: each `weight` its own (Meta-SGD)."""
    later_lr_factor: float = 0.5
    """Step size of steps beyond the trained ones, relative to the last trained one (the MAML paper halves it)."""
    first_order: bool = False
    """Treat inner gradients as constants in the meta-gradient (first-order MAML)."""

    def __post_init__(self) -> None:
        if self.inner_steps < 1:
            raise ValueError(f"inner_steps must be a positive number of inner gradient steps, got {self.inner_steps}")
        _one_of("inner_lr_scope", self.inner_lr_scope, StepSizeScope)
        check_numbers(self, "(0, inf)", "inner_lr", "later_lr_factor")


def _one_of(name: str, value: str, accepted: object) -> None:
    if value not in get_args(accepted):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(accepted)))}, got {value!r}")


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to: its name up to the last dot, or all of it where there is none."""
    return name.rpartition(".")[0] or name


def share_gammas(shapes: dict[str, torch.Size], scope: Scope) -> list[Tensor]:
    """For every scalar of every tensor, which entry of γ it is multiplied by.

    Args:
        shapes: the attenuated tensors' names and shapes.
        scope: what shares one entry.
    Returns:
        One integer tensor per name, with values in [0, L): of that name's shape, but of length 1 along axes whose
        scalars all share their entries.
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


def descend(params: Params, gradients: Params, alpha: Params) -> Params:
    """One inner gradient step, θ − α ∇L_D(f_θ) (Eq. 1); tensors without a gradient stay."""
    return params | {name: params[name] - alpha[name] * g for name, g in gradients.items()}


class Start(NamedTuple):
    """Where one task's inner loop starts."""

    params: Params
    """θ̄, the attenuated initialisation (θ itself for MAML)."""
    gamma: Tensor
    """(L,), the task's attenuation; (0,) for MAML."""
    gradients: Params
    """∇L_D(f_θ) at the unattenuated initialisation."""


class L2F(nn.Module):
    """A network with the meta-parameters of L2F: initialisation θ, attenuator φ, inner step sizes α.

    The module stores; its methods compute with the stored values and return adapted parameters as new tensors. Its
    `meta_parameters` are what a meta-update moves and its `state_dict()` is what a checkpoint keeps. Parameters of the
    network that are frozen (`requires_grad=False`) are a part of θ that nothing attenuates, adapts or updates.

    Args:
        network: whose parameters are θ.
        attenuation: how γ is computed, or None for MAML.
        inner: the inner loop.
        attenuated: which parameters (by name) are attenuated, of those that are not frozen; all by default.
        adapted: which parameters (by name) the inner loop moves, of those that are not frozen; all by default (ANIL:
            the last layer's).
        logarithmic: names of parameters that hold a logarithm (log σ), attenuated as log σ + log γ.
        initial_gammas: where γ starts for single parameters, by name, instead of where the others do.
        embedding_size: numbers in the embedding that the caller brings; with conditioning on a prototype only.
        generator: draws the attenuator's initial weights.

    Raises:
        ValueError: every parameter that is to be adapted, or attenuated, is frozen, or a name is unknown.
    """

    _owner: Tensor
    step_sizes: Tensor
    attenuator: nn.Sequential

    def __init__(
        self,
        network: nn.Module,
        attenuation: Attenuation | None = None,
        inner: InnerLoop | None = None,
        *,
        attenuated: Callable[[str], bool] = lambda name: True,
        adapted: Callable[[str], bool] = lambda name: True,
        logarithmic: Sequence[str] = (),
        initial_gammas: Mapping[str, float] | None = None,
        embedding_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.attenuation = attenuation
        self.inner = inner or InnerLoop()
        self.logarithmic = tuple(logarithmic)
        shapes = {name: p.shape for name, p in network.named_parameters()}
        self.frozen_names = [name for name, p in network.named_parameters() if not p.requires_grad]
        self.adapted_names = _chosen("adapted", shapes, self.frozen_names, adapted)
        self.attenuated_names = _chosen("attenuated", shapes, self.frozen_names, attenuated) if attenuation else []
        if unknown := set(logarithmic) - set(shapes):
            raise ValueError(f"logarithmic names no parameter of the network: {sorted(unknown)}; it has {list(shapes)}")
        self._adapted_shapes = {name: shapes[name] for name in self.adapted_names}
        shared = self.inner.inner_lr_scope == "tensor"
        columns = len(self.adapted_names) if shared else sum(shape.numel() for shape in self._adapted_shapes.values())
        alpha = torch.full((self.inner.inner_steps, columns), self.inner.inner_lr)
        if self.inner.learn_inner_lr:
            self.step_sizes = nn.Parameter(alpha)
        else:
            self.register_buffer("step_sizes", alpha)
        if attenuation:
            self._shapes = {name: shapes[name] for name in self.attenuated_names}
            owners = share_gammas(self._shapes, attenuation.scope)
            self._owner_shapes = [owner.shape for owner in owners]
            self.register_buffer("_owner", torch.cat([owner.flatten() for owner in owners]), persistent=False)
            self._entries = int(self._owner.max()) + 1
            self._build_attenuator(attenuation, embedding_size, generator)
            self._set_initial_gammas(attenuation, initial_gammas or {})

    def _build_attenuator(
        self, attenuation: Attenuation, embedding_size: int | None, generator: torch.Generator | None
    ) -> None:
        if (attenuation.conditioning == "prototype") != (embedding_size is not None):
            raise ValueError(
                "embedding_size goes with conditioning='prototype', and only with it; got "
                f"{embedding_size} with conditioning={attenuation.conditioning!r}"
            )
        entries = self._entries
        outputs = 2 * entries if attenuation.transform == "affine" else entries
        if attenuation.conditioning == "none":
            self.free = nn.Parameter(torch.empty(outputs))
            return
        inputs, hidden = embedding_size or entries, min(entries, WIDEST_ATTENUATOR)
        self.attenuator = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
        for width, layer in ((inputs, self.attenuator[0]), (hidden, self.attenuator[2])):
            bound = 1 / math.sqrt(width)
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    @torch.no_grad()
    def _set_initial_gammas(self, attenuation: Attenuation, special: Mapping[str, float]) -> None:
        """Let γ start at its initial value, through the attenuator's last bias, and δ at 0."""
        if unknown := set(special) - set(self.attenuated_names):
            raise ValueError(f"initial_gammas names no attenuated parameter: {sorted(unknown)}")
        free = attenuation.conditioning == "none"
        gamma = torch.full((self._entries,), 1.0 if free else attenuation.initial_gamma)
        for name, value in special.items():
            check_number("an initial γ", value, "(0, 1)")
            gamma[self._owned_entries()[name]] = value
        squashed = attenuation.transform == "attenuate" and not free
        bias = self.free if free else self.attenuator[2].get_parameter("bias")
        bias.zero_()
        bias[: len(gamma)] = gamma.logit() if squashed else gamma

    def _owned_entries(self) -> dict[str, Tensor]:
        """Which entries of γ each attenuated parameter uses."""
        return {name: owner.unique() for name, owner in self.owners.items()}

    @property
    def owners(self) -> Params:
        """Which entry of γ the scalars of each attenuated parameter belong to, as `share_gammas` gives it, by name."""
        pieces = self._owner.split([shape.numel() for shape in self._owner_shapes])
        shaped = (piece.reshape(shape) for piece, shape in zip(pieces, self._owner_shapes, strict=True))
        return dict(zip(self._shapes, shaped, strict=True))

    @property
    def theta(self) -> Params:
        """The initialisation θ, by name."""
        return dict(self.network.named_parameters())

    @property
    def meta_parameters(self) -> list[nn.Parameter]:
        """What a meta-update moves: θ without its frozen parameters, φ, and learned α."""
        frozen = {f"network.{name}" for name in self.frozen_names}
        return [p for name, p in self.named_parameters() if name not in frozen]

    def gamma(self, gradients: Params, prototype: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The task's attenuation γ = sigmoid(MLP_φ(e)) (Eq. 4), and the shift δ where the transform is affine.

        Args:
            gradients: of the task's loss at θ, by name.
            prototype: (embedding_size,), read instead of the gradients where γ is conditioned on it.
        Returns:
            γ (L,) and δ (L,) or None.
        """
        assert self.attenuation is not None, "MAML has no attenuation"
        if self.attenuation.conditioning == "none":
            output = self.free.clone()  # Not the parameter itself: what is logged must not move with an update.
        else:
            if self.attenuation.conditioning == "prototype":
                if prototype is None:
                    raise ValueError("conditioning='prototype' needs each task's prototype, got None; pass prototype=")
                embedding = prototype
            else:
                chosen = [gradients[name] for name in self.attenuated_names]
                embedding = embed(chosen, self.owners.values(), self.attenuation.embedding, self._entries)
            output = self.attenuator(embedding)
            if self.attenuation.transform == "attenuate":
                output = output.sigmoid()
        if self.attenuation.transform == "affine":
            gamma, delta = output.chunk(2)
            return gamma, delta
        return output, None

    def spread(self, values: Tensor) -> Params:
        """Entries of γ or δ (L,) → for every attenuated parameter a tensor that broadcasts to it."""
        return {name: values[owner] for name, owner in self.owners.items()}

    def gammas_by_tensor(self, gamma: Tensor) -> Params:
        """Entries of γ (..., L), on any device, that belong to each attenuated tensor: (..., entries), by name."""
        return {name: gamma[..., entries.to(gamma.device)] for name, entries in self._owned_entries().items()}

    def gradients(self, loss: Loss, params: Params, names: Sequence[str] = ()) -> Params:
        """∇ loss(params) by name; a constant to the outer gradient when first-order.

        Args:
            loss: of one task.
            params: where.
            names: with respect to which; by default what the inner loop adapts.
        """
        chosen = {name: params[name] for name in names or self.adapted_names}
        result = grad(lambda moved: loss(params | moved))(chosen)
        return {name: g.detach() for name, g in result.items()} if self.inner.first_order else result

    def start(self, loss: Loss, prototype: Tensor | None = None, differentiable: bool = True) -> Start:
        """Attenuate the initialisation for the task that `loss` belongs to (Algorithm 1, lines 6 to 10).

        Args:
            loss: of the task.
            prototype: (embedding_size,), what γ is read off where it is conditioned on that.
            differentiable: whether the gradients at θ may be differentiated again; the embedding does without.
        """
        theta = self.theta
        at = theta if differentiable else {name: p.detach() for name, p in theta.items()}
        gradients = self.gradients(loss, at, list(dict.fromkeys(self.attenuated_names + self.adapted_names)))
        if self.attenuation is None:
            return Start(theta, next(iter(theta.values())).new_zeros(0), gradients)
        gamma, delta = self.gamma(gradients, prototype)
        shift = None if delta is None else self.spread(delta)
        return Start(attenuate(theta, self.spread(gamma), shift, self.logarithmic), gamma, gradients)

    def alpha(self, step: int) -> Params:
        """Step sizes of inner step `step` (from 0) by name; those beyond the trained steps shrink the last."""
        trained = self.inner.inner_steps
        row = self.step_sizes[step] if step < trained else self.inner.later_lr_factor * self.step_sizes[-1]
        if self.inner.inner_lr_scope == "tensor":
            return dict(zip(self.adapted_names, row, strict=True))
        pieces = row.split([shape.numel() for shape in self._adapted_shapes.values()])
        return {n: piece.reshape(s) for (n, s), piece in zip(self._adapted_shapes.items(), pieces, strict=True)}

    def step(self, params: Params, gradients: Params, step: int) -> Params:
        """Inner step number `step` (from 0) along gradients (Eq. 1)."""
        return descend(params, {name: gradients[name] for name in self.adapted_names}, self.alpha(step))

    def trajectory(
        self,
        losses: Sequence[Loss],
        first: Loss | None = None,
        gradient_at_init: bool = False,
        prototype: Tensor | None = None,
    ) -> tuple[list[Params], Start]:
        """Attenuate, then take one gradient step per loss (Algorithm 1, lines 6 to 14).

        Args:
            losses: one per inner step.
            first: the loss whose gradient at θ the embedding reads; by default that of the first step.
            gradient_at_init: step first along that same gradient at θ, instead of the one at θ̄.
            prototype: (embedding_size,), what γ is read off where it is conditioned on that.
        Returns:
            The parameters after 0, 1, … steps, of which the first are θ̄; and where they started.
        """
        # Without attenuation θ̄ = θ: the gradient of the first step is known.
        known = gradient_at_init or (first is None and self.attenuation is None)
        start = self.start(first or losses[0], prototype, differentiable=known)
        path = [start.params]
        for number, loss in enumerate(losses):
            at_init = known and number == 0
            gradients = start.gradients if at_init else self.gradients(loss, path[-1])
            path.append(self.step(path[-1], gradients, number))
        return path, start

    def adapt(
        self, losses: Sequence[Loss], first: Loss | None = None, gradient_at_init: bool = False
    ) -> tuple[Params, Start]:
        """The end of a `trajectory`: the adapted parameters, and where they started."""
        path, start = self.trajectory(losses, first, gradient_at_init)
        return path[-1], start


def _chosen(
    role: str, shapes: dict[str, torch.Size], frozen: Sequence[str], predicate: Callable[[str], bool]
) -> list[str]:
    selected = [name for name in shapes if predicate(name)]
    if not selected:
        raise ValueError(f"{role} selects none of the network's parameters; it has {list(shapes)}")
    names = [name for name in selected if name not in frozen]
    if not names:
        raise ValueError(
            f"{role} selects only parameters that are frozen (requires_grad=False), {selected}; unfreeze one of them "
            "with requires_grad_(True), or select others"
        )
    return names
