"""The outer update by the plain policy gradient: one step of Adam a meta-iteration (MAML-VPG in ProMP, Rothfuss et al.
2019, Sec. 6). At the policies that collected the episodes its gradient is that of the trust region's surrogate."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..checks import check_numbers
from ..networks.policies import Distribution
from .adaptation import Adaptation, MetaData
from .gradient_update import GradientUpdate, Terms


@dataclass(frozen=True)
class VanillaGradient:
    """Constants of the plain policy gradient."""

    vpg_lr: float = 1e-3
    """Step size of Adam."""

    def __post_init__(self) -> None:
        check_numbers(self, "(0, 1]", "vpg_lr")


class PolicyGradientUpdate(GradientUpdate):
    """One step of Adam along the policy gradient of the adapted policies.

    Args:
        parameters: (θ, φ, α), moved in place.
        options: the constants.
    """

    def __init__(self, parameters: list[nn.Parameter], options: VanillaGradient) -> None:
        super().__init__(parameters, options.vpg_lr, epochs=1)

    def policies(self, adaptation: Adaptation, data: MetaData, old: Sequence[Distribution]) -> list[Distribution]:
        """The adapted policy, and the initial one where it counts."""
        return adaptation.policies(data)

    def terms(
        self, adaptation: Adaptation, policies: list[Distribution], old: Sequence[Distribution], data: MetaData
    ) -> Terms:
        """One task's −E[log π_θ′(a | o) A], with θ′ a function of (θ, φ, α)."""
        zero = data.post.weights.new_zeros(())
        surrogate = -(data.post.weights * data.post.advantages * policies[0].log_prob(data.post.actions)).sum()
        loss = surrogate
        if adaptation.gradient.initial_counts:
            loss = loss + adaptation.initial_objective(policies[1], old[1], data)
        kl = (data.post.weights * old[0].kl(policies[0])).sum()
        return Terms(loss, surrogate, zero, kl, torch.zeros_like(data.post.weights[:0]))
