"""The common part of the outer updates by Adam: the gradient of an objective through adaptation, and steps along it."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ..networks.policies import Distribution, detached
from ..parallel.trees import joined
from .adaptation import Adaptation, MetaData, Rollouts
from .outer import Updated, flat, mean_over_tasks


class Terms(NamedTuple):
    """The contribution of one task to the objective and to the metrics, each ()."""

    loss: Tensor
    """The objective, which is minimised."""
    surrogate: Tensor
    """The part of it that belongs to the adapted policy."""
    clipped: Tensor
    """The fraction of samples that the objective no longer rewards."""
    kl: Tensor
    """KL(old ‖ current) of the adapted policy on its episodes."""
    inner_kl: Tensor
    """(k,), KL(old ‖ current) of the policy that collected each inner step's episodes."""


class GradientUpdate(ABC):
    """An outer update that takes some steps of Adam on the episodes of one meta-iteration.

    Args:
        parameters: (θ, φ, α), moved in place.
        lr: the step size of Adam.
        epochs: the number of steps.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, epochs: int) -> None:
        self.parameters, self.epochs = parameters, epochs
        # In one vector, as a resumed run has them: elsewhere in memory, small products may round otherwise.
        vector_to_parameters(parameters_to_vector(parameters).detach().clone(), parameters)
        self.optimiser = torch.optim.Adam(parameters, lr=lr)

    @abstractmethod
    def policies(self, adaptation: Adaptation, data: MetaData, old: Sequence[Distribution]) -> list[Distribution]:
        """One task's policies that its terms are of, on the episodes that they collected, differentiable.

        Args:
            adaptation: adapts the policy.
            data: the task's own.
            old: the same policies when they collected the episodes; empty in the first epoch, where they still are
                what they were.
        """

    @abstractmethod
    def terms(
        self, adaptation: Adaptation, policies: list[Distribution], old: Sequence[Distribution], data: MetaData
    ) -> Terms:
        """One task's terms, differentiable with respect to (θ, φ, α).

        Args:
            adaptation: gives the terms of the initial policy.
            policies: as `policies` returns them.
            old: the same when they collected the episodes, constants.
            data: the task's own.
        """

    def changing(self) -> list[Tensor]:
        """The tensors beside its arguments that `terms` reads, and that change between updates; numbers must not."""
        return []

    def settle(self, inner_kls: list[float]) -> dict[str, float]:
        """Prepare for the next update; returns further metrics.

        Args:
            inner_kls: KL(old ‖ current) after the update, of the policy of each inner step.
        """
        return {}

    def update(self, adaptation: Adaptation, rollouts: Rollouts) -> Updated:
        """Take the steps; if a number on the way is not finite, take all of them back."""
        metrics, rejected, norm = dict[str, float](), "", math.nan
        origin, moments = (
            parameters_to_vector(self.parameters).detach().clone(),
            copy.deepcopy(self.optimiser.state_dict()),
        )
        # The first epoch's pass also finds the policies that collected the episodes, which are still the present ones.
        sums, parts = zip(*self._over_shards(self._gradient, adaptation, rollouts.data), strict=True)
        old = joined(parts)
        for epoch in range(self.epochs):
            if epoch:
                again = self._over_shards(self._gradient, adaptation, rollouts.data, old)
                sums = tuple(found for found, _ in again)
            means = mean_over_tasks(sums, rollouts.share, self.parameters[0].dtype)
            values, gradient = means[: -self._size()], means[-self._size() :]
            if epoch == 0:
                before, norm = float(values[1]), float(gradient.norm())
            else:
                metrics[f"kl/epoch_{epoch}"] = float(values[3])
            if not gradient.isfinite().all():
                rejected = f"the gradient of epoch {epoch + 1} is not finite"
                break
            self._step(gradient)
        found = self._means_after(adaptation, rollouts, old)
        if not rejected and not all(map(math.isfinite, found)):
            rejected = "the policies after it are not finite"
        if rejected:
            vector_to_parameters(origin, self.parameters)
            self.optimiser.load_state_dict(moments)
            found = self._means_after(adaptation, rollouts, old)
        _, after, clipped, kl, *inner_kls = found
        metrics |= {"surrogate/change": after - before, "kl": kl, "clip_fraction": clipped, "gradient_norm": norm}
        metrics |= {f"inner_kl/step_{step}": value for step, value in enumerate(inner_kls)}
        return Updated(metrics | self.settle(inner_kls), rejected)

    def _over_shards(
        self, function: Callable[..., Any], adaptation: Adaptation, *trees: Any, **options: Any
    ) -> list[Any]:
        return adaptation.shards.repeated(function, adaptation, *trees, reads=self.changing(), **options)

    def _means_after(self, adaptation: Adaptation, rollouts: Rollouts, old: list[Distribution]) -> list[float]:
        sums = self._over_shards(self._values, adaptation, rollouts.data, old, derivatives=False)
        return mean_over_tasks(sums, rollouts.share, self.parameters[0].dtype).tolist()

    def _sums(
        self, adaptation: Adaptation, data: MetaData, old: Sequence[Distribution]
    ) -> tuple[Tensor, Tensor, list[Distribution]]:
        """The shard's sum of losses; of all terms, (4 + k,) float64; and the policies that collected its episodes."""

        def task(data: MetaData, old: Sequence[Distribution]) -> tuple[Terms, Sequence[Distribution]]:
            policies = self.policies(adaptation, data, old)
            old = old or [detached(policy) for policy in policies]
            return self.terms(adaptation, policies, old, data), old

        (loss, *rest, inner_kl), old = vmap(task)(data, old)
        sums = torch.stack([term.detach().double().sum() for term in (loss, *rest)])
        return loss.sum(), torch.cat([sums, inner_kl.detach().double().sum(0)]), [*old]

    def _gradient(
        self, adaptation: Adaptation, data: MetaData, old: Sequence[Distribution] = ()
    ) -> tuple[Tensor, list[Distribution]]:
        loss, sums, old = self._sums(adaptation, data, old)
        return torch.cat([sums, flat(torch.autograd.grad(loss, self.parameters))]), old

    def _values(self, adaptation: Adaptation, data: MetaData, old: list[Distribution]) -> Tensor:
        return self._sums(adaptation, data, old)[1]

    def _size(self) -> int:
        return sum(p.numel() for p in self.parameters)

    def _step(self, gradient: Tensor) -> None:
        pieces = gradient.split([p.numel() for p in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter).to(parameter.dtype)
        self.optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        """The moments of Adam."""
        return {"optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the moments of a state."""
        self.optimiser.load_state_dict(state["optimiser"])
