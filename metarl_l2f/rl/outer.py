"""The protocol of outer updates, the meta-updates of reinforcement learning, and the sums that they share."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..parallel.shards import Share
from .adaptation import Adaptation, Rollouts


class Updated(NamedTuple):
    """The result of an outer update."""

    metrics: dict[str, float]
    """Its own metrics, by tag (`docs/metrics.md`)."""
    rejected: str = ""
    """Why it left the parameters as they were; empty if it did not."""


class OuterUpdate(Protocol):
    """Moves the learner's meta-parameters by what was collected on a meta-batch of tasks.

    It owns its optimiser's state, such as the moments of Adam, if it has any.
    """

    def update(self, adaptation: Adaptation, rollouts: Rollouts) -> Updated:
        """Move `adaptation.learner.meta_parameters()` in place.

        Args:
            adaptation: gives the adapted policies as a differentiable function of the meta-parameters.
            rollouts: collected with the present parameters; of several processes, each has its share.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything beyond the meta-parameters that the next update depends on, as `checkpoint.save` takes it."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        ...


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors as one vector of constants, (P,) float64."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).double()


def mean_over_tasks(parts: Sequence[Tensor], share: Share, dtype: torch.dtype) -> Tensor:
    """The mean over all tasks, of every process, given each shard's sum over its own: (n,) float64.

    What was computed in float32 adds up in float64 without rounding, so in any order. What was float64 already is added
    in the order of shards.

    Args:
        parts: (n,) float64 each.
        share: which of all tasks the shards are.
        dtype: the precision that the parts were computed in.
    """
    if dtype == torch.float64:
        return share.gather(torch.stack(list(parts))).to(parts[0].device).sum(0) / share.number
    return share.sum(torch.stack(list(parts)).sum(0)) / share.number
