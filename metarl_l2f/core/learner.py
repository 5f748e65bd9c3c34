"""A meta-learner as a choice of parts, and the inner loop (L2F, Algorithm 1; Baik, Hong, Lee, CVPR 2020).

A `MetaLearner` is a network, whose parameters are θ; an `Attenuator`, or none (MAML); and an `UpdateRule`, such as
`GradientDescent`, which also says what adapts. Everything is written for one task, as functions of named tensors;
callers `torch.func.vmap` over tasks. Nothing here knows what the loss is.

Letters: θ initialisation, φ attenuator, α inner step sizes, γ attenuation, L entries of γ.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.func import grad

from .alfa import ALFA
from .attenuation import Attenuation, Attenuator
from .parameters import Loss, Params, Watched, chosen, contexts, initialisation
from .update_rules import Adapts, GradientDescent, InnerLoop, UpdateRule

Data = TypeVar("Data")
"""The data that one inner step learns from."""


class Start(NamedTuple):
    """The start of one task's inner loop."""

    params: Params
    """θ̄, the attenuated initialisation (θ itself for MAML)."""
    gamma: Tensor
    """(L,), the task's attenuation; (0,) for MAML."""
    gradients: Params
    """∇L_D(f_θ) at the unattenuated initialisation, by name, for all tensors that are attenuated or adapt."""


def directly(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments): how the inner loop of one task calls its parts."""
    return function(*arguments)


class MetaLearner(nn.Module):
    """A network with what is meta-learned about adapting it: initialisation θ, attenuator φ, update rule.

    The module stores; its methods compute with the stored values and return adapted parameters as new tensors. Its
    `meta_parameters` are what a meta-update moves and its `state_dict()` is what a checkpoint keeps. Parameters of the
    network that are frozen (`requires_grad=False`) are a part of θ that nothing attenuates, adapts or updates.

    Args:
        network: module whose parameters are θ.
        attenuator: the attenuation of θ for a task; None for MAML.
        rule: the inner step, which also says what adapts.
        gradient_at_init: whether the first inner step follows the gradient at θ instead of the one at θ̄.
        first_order: whether inner gradients are constants to the meta-gradient.
    """

    def __init__(
        self,
        network: nn.Module,
        attenuator: Attenuator | None,
        rule: UpdateRule,
        *,
        gradient_at_init: bool = False,
        first_order: bool = False,
    ) -> None:
        super().__init__()
        self.rule, self.network, self.attenuator = rule, network, attenuator
        self.first_order = first_order
        self.first_gradient_is_known = gradient_at_init or attenuator is None
        """Whether the first inner step follows the gradient at θ; without attenuation θ̄ = θ."""
        self.differentiated = list(dict.fromkeys([*(attenuator.names if attenuator else []), *rule.names]))
        """Names of the parameters that gradients at θ are taken with respect to."""

    @property
    def theta(self) -> Params:
        """The initialisation θ, by name, with contexts, which start at 0."""
        return initialisation(self.network)

    @property
    def learned(self) -> list[str]:
        """Names of the parameters of θ that a meta-update moves."""
        return [name for name, p in self.network.named_parameters() if p.requires_grad]

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.network.parameters()).device

    def meta_parameters(self) -> list[nn.Parameter]:
        """The parameters that a meta-update moves: those of the update rule, θ without its frozen parameters, and φ.

        Sums over all of them, such as products of conjugate gradient, are taken in this order.
        """
        theta = [p for p in self.network.parameters() if p.requires_grad]
        phi = [] if self.attenuator is None else list(self.attenuator.parameters())
        free = self.attenuator is not None and self.attenuator.attenuation.conditioning == "none"
        return [*self.rule.parameters(), *(phi + theta if free else theta + phi)]

    def gammas_by_tensor(self, gamma: Tensor) -> Params:
        """Entries of γ (..., L) that belong to each attenuated tensor, (..., entries), by name; empty for MAML."""
        return {} if self.attenuator is None else self.attenuator.by_tensor(gamma)

    def gradients(
        self, loss: Loss, params: Params, names: Sequence[str] = (), first_order: bool | None = None
    ) -> Params:
        """∇ loss(params) by name; a constant to the outer gradient when first-order.

        Args:
            loss: the loss of one task; a `Watched` one keeps what it saw.
            params: the point at which it is differentiated.
            names: parameters with respect to which; by default those that adapt.
            first_order: by default the learner's own.
        """
        chosen = {name: params[name] for name in names or self.rule.names}
        if isinstance(loss, Watched):
            result, loss.seen = grad(lambda moved: loss.function(params | moved), has_aux=True)(chosen)
        else:
            result = grad(lambda moved: loss(params | moved))(chosen)
        constant = self.first_order if first_order is None else first_order
        return {name: g.detach() for name, g in result.items()} if constant else result

    def start(
        self, loss: Loss, prototype: Tensor | None = None, theta: Params | None = None, first_order: bool | None = None
    ) -> Start:
        """Attenuate the initialisation for the task that `loss` belongs to (Algorithm 1, lines 6 to 10).

        Args:
            loss: the loss of the task.
            prototype: (embedding_size,), what γ is read off where it is conditioned on that.
            theta: the initialisation; by default the learner's own.
            first_order: by default the learner's own.
        """
        theta = self.theta if theta is None else theta
        # The embedding is data; only a step along these gradients needs them to be differentiable.
        at = theta if self.first_gradient_is_known else {name: p.detach() for name, p in theta.items()}
        gradients = self.gradients(loss, at, self.differentiated, first_order)
        if self.attenuator is None:
            return Start(theta, next(iter(theta.values())).new_zeros(0), gradients)
        attenuated, gamma = self.attenuator(theta, gradients, prototype)
        return Start(attenuated, gamma, gradients)

    def trajectory(
        self,
        loss: Callable[[Data, int], Loss],
        first: Data,
        later: Callable[[int, Params], Data],
        steps: int,
        *,
        prototype: Callable[[Data], Tensor | None] = lambda data: None,
        theta: Params | None = None,
        first_order: bool | None = None,
        over: Callable[..., Any] = directly,
    ) -> tuple[list[Params], Start]:
        """The inner loop: attenuate, then take gradient steps (Algorithm 1, lines 6 to 14).

        Written for one task. Tasks that collect their data together walk through it together: `over` then applies a
        function of one task to every task of stacked data.

        Args:
            loss: the task's loss on data, after a number of inner steps.
            first: the data at θ, which the embedding is read off.
            later: the data of an inner step, given its number (from 0) and the parameters before it. It is not called
                for a first step whose gradient is known, the one on `first`.
            steps: the number of inner steps.
            prototype: (embedding_size,) of data, where γ is conditioned on that.
            theta: the initialisation; by default the learner's own.
            first_order: by default the learner's own.
            over: applies a function of one task to its arguments.
        Returns:
            The parameters after 0, 1, … steps, of which the first are θ̄; and where they started.
        """

        def begin(data: Data) -> Start:
            return self.start(loss(data, 0), prototype(data), theta, first_order)

        start = over(begin, first)
        path = [start.params]
        for number in range(steps):
            if number == 0 and self.first_gradient_is_known:
                path.append(over(lambda params, known: self.rule(params, known, 0), path[0], start.gradients))
            else:

                def step(params: Params, data: Data, number: int = number) -> Params:
                    gradients = self.gradients(loss(data, number), params, first_order=first_order)
                    return self.rule(params, gradients, number)

                path.append(over(step, path[-1], later(number, path[-1])))
        return path, start


def meta_learner(
    network: nn.Module,
    attenuation: Attenuation | None = None,
    inner: InnerLoop | None = None,
    *,
    attenuated: Callable[[str], bool] = lambda name: True,
    adapted: Callable[[str], bool] = lambda name: True,
    logarithmic: Sequence[str] = (),
    initial_gammas: Mapping[str, float] | None = None,
    embedding_size: int | None = None,
    gradient_at_init: bool = False,
    generator: torch.Generator | None = None,
) -> MetaLearner:
    """L2F or MAML around a network, from its settings.

    Args:
        network: module whose parameters are θ.
        attenuation: how γ is computed and applied; None for MAML.
        inner: the inner loop.
        attenuated: which parameters (by name) are attenuated, of those that are not frozen; all by default.
        adapted: which parameters (by name) the inner loop may move, of those that `inner.adapts` selects and that are
            not frozen; all by default.
        logarithmic, initial_gammas, embedding_size, generator: as in `Attenuator`.
        gradient_at_init: as in `MetaLearner`.
    Raises:
        ValueError: every parameter that is to be adapted, or attenuated, is frozen, or a name is unknown.
    """
    inner, names = inner or InnerLoop(), [name for name, _ in network.named_parameters()]
    if unknown := set(logarithmic) - set(names):
        raise ValueError(f"logarithmic names no parameter of the network: {sorted(unknown)}; it has {names}")
    attenuator, apart = None, contexts(network)
    if attenuation is not None:
        attenuator = Attenuator(
            chosen(network, "attenuated", lambda name: attenuated(name) and name not in apart),
            attenuation,
            logarithmic=logarithmic,
            initial_gammas=initial_gammas,
            embedding_size=embedding_size,
            generator=generator,
        )
    part = part_of(network, inner.adapts)
    shapes = chosen(network, "adapted", lambda name: adapted(name) and part(name))
    alfa = inner.update_rule == "alfa"
    rule = ALFA(shapes, inner, generator=generator) if alfa else GradientDescent(shapes, inner)
    return MetaLearner(network, attenuator, rule, gradient_at_init=gradient_at_init, first_order=inner.first_order)


def part_of(network: nn.Module, adapts: Adapts) -> Callable[[str], bool]:
    """A predicate that is true for the names of the tensors of θ that the inner loop moves.

    Args:
        network: the network; for `head` and `body` it says what its head is, by `is_head(name)`.
        adapts: as in `InnerLoop`.
    Raises:
        ValueError: the network has no context, does not say what its head is, or is nothing but a head.
    """
    apart = contexts(network)
    if adapts == "context":
        if not apart:
            raise ValueError("adapts='context' needs a network with a context, a buffer of that name; give it a size")
        return lambda name: name in apart
    if adapts == "all":
        return lambda name: name not in apart
    is_head: Callable[[str], bool] | None = getattr(network, "is_head", None)
    if is_head is None:
        raise ValueError(
            f"adapts={adapts!r} needs a network that says what its head is: give {type(network).__name__} a method "
            "is_head(name) that is True for the parameters of the last layer"
        )
    if adapts == "head":
        return is_head
    if all(is_head(name) for name, _ in network.named_parameters()):
        raise ValueError(
            "adapts='body' leaves nothing to adapt, for the last layer is all that the network has; give it hidden "
            "layers (hidden_sizes), or adapt 'all' or the 'head'"
        )
    return lambda name: not is_head(name) and name not in apart


def renamed_since_0_1(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a `MetaLearner` from a checkpoint of version 0.1, whose names of φ and α were shorter.

    Args:
        state: the state of this version or of 0.1; that of this version is returned as it is.
    """
    older = {"step_sizes": "rule.step_sizes", "free": "attenuator.free"}
    older |= {f"attenuator.{n}.{kind}": f"attenuator.mlp.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")}
    return {older.get(name, name): value for name, value in state.items()}
