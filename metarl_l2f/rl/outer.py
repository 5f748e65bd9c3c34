"""The meta-update of reinforcement learning, whichever it is: what an outer update must offer."""

from typing import Any, NamedTuple, Protocol

from .adaptation import Adaptation, Rollouts


class Updated(NamedTuple):
    """What an outer update did."""

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
