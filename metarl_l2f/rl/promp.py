"""The outer update by clipped likelihood ratios: ProMP (Rothfuss, Lee, Clavera, Asfour, Abbeel, "ProMP: Proximal
Meta-Policy Search", ICLR 2019, arXiv 1810.06784), and PPO without ProMP's penalty.

Several epochs of Adam on the same episodes. While θ moves away from where they were collected, inner losses use the
ratio to the policies that collected them, and a penalty keeps each inner step's policy near the one that acted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_count, check_numbers
from ..networks.policies import Distribution
from .adaptation import Adaptation, MetaData
from .episodes import Batch
from .gradient_update import GradientUpdate, Terms


@dataclass(frozen=True)
class ClippedSurrogate:
    """Constants of ProMP's and PPO's meta-update; those of the released ProMP code."""

    outer_lr: float = 1e-3
    """Step size of Adam."""
    epochs: int = 5
    """Steps of Adam on the episodes of one meta-iteration."""
    clip_ratio: float = 0.3
    """Likelihood ratios beyond 1 ± this earn nothing more."""
    inner_kl_weight: float = 5e-4
    """Initial weight of KL(old ‖ current) of each inner step's policy (ProMP); 0 for PPO."""
    inner_kl_target: float = 0.01
    """After a meta-iteration a weight is halved if its KL is below this by a factor of 1.5, and doubled if above it."""

    def __post_init__(self) -> None:
        check_numbers(self, "(0, 1]", "outer_lr")
        check_numbers(self, "(0, inf)", "inner_kl_target")
        check_numbers(self, "[0, inf)", "inner_kl_weight")
        check_numbers(self, "(0, 1)", "clip_ratio")
        check_count("epochs", self.epochs)


def clipped_loss(policy: Distribution, old: Distribution, batch: Batch, clip_ratio: float) -> tuple[Tensor, Tensor]:
    """−E[min(r A, clip(r, 1 ± ε) A)] with r = π / π_old (PPO, Schulman et al. 2017, Eq. 7), over one task's samples.

    Args:
        policy: the adapted policy.
        old: the policy that collected the samples.
        batch: the samples.
        clip_ratio: ε.
    Returns:
        The loss (), and the fraction of samples whose ratio is beyond 1 ± ε ().
    """
    ratio = torch.exp(policy.log_prob(batch.actions) - old.log_prob(batch.actions))
    clipped = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    gain = torch.minimum(ratio * batch.advantages, clipped * batch.advantages)
    return -(batch.weights * gain).sum(), (batch.weights * (ratio != clipped)).sum()


def adapted_weight(weight: float, kl: float, target: float) -> float:
    """The weight of a KL penalty after an update: halved where the KL is small, doubled where it is large.

    Args:
        weight: the weight before.
        kl: the KL that it led to.
        target: the KL that it is for; within a factor of 1.5 of it nothing changes.
    """
    if kl < target / 1.5:
        return weight / 2
    return weight * 2 if kl > 1.5 * target else weight


class ClippedUpdate(GradientUpdate):
    """ProMP's meta-update, or PPO's where the inner steps' KL has no weight.

    Args:
        parameters: (θ, φ, α), moved in place.
        options: the constants.
        steps: the number k of inner steps.
    """

    def __init__(self, parameters: list[nn.Parameter], options: ClippedSurrogate, steps: int) -> None:
        super().__init__(parameters, options.outer_lr, options.epochs)
        self.options = options
        self.inner_kl_weights = torch.full((steps,), options.inner_kl_weight, dtype=torch.float64)

    def policies(self, adaptation: Adaptation, data: MetaData, old: Sequence[Distribution]) -> list[Distribution]:
        """Those of the inner steps, then the adapted one, and the initial one where it counts."""
        return adaptation.acting(data, old)

    def terms(
        self, adaptation: Adaptation, policies: list[Distribution], old: Sequence[Distribution], data: MetaData
    ) -> Terms:
        """One task's terms of the objective (ProMP, Eq. 14, with the mean over inner steps)."""
        last = len(data.inner)
        surrogate, clipped = clipped_loss(policies[last], old[last], data.post, self.options.clip_ratio)
        batches = [*data.inner, data.post]
        kls = [
            (batch.weights * before.kl(policy)).sum()
            for before, policy, batch in zip(old, policies, batches, strict=False)
        ]
        inner_kl = torch.stack(kls[:last])
        loss = surrogate + (inner_kl * self.inner_kl_weights.to(inner_kl)).mean()
        if adaptation.gradient.initial_counts:
            loss = loss + adaptation.initial_objective(policies[-1], old[-1], data)
        return Terms(loss, surrogate, clipped, kls[last], inner_kl)

    def changing(self) -> list[Tensor]:
        """The weights of the penalties."""
        return [self.inner_kl_weights]

    def settle(self, inner_kls: list[float]) -> dict[str, float]:
        """Adapt the weights of the penalties."""
        used, target = self.inner_kl_weights.tolist(), self.options.inner_kl_target
        adapted = [adapted_weight(weight, kl, target) for weight, kl in zip(used, inner_kls, strict=True)]
        self.inner_kl_weights = torch.tensor(adapted, dtype=torch.float64)
        return {f"inner_kl_weight/step_{step}": weight for step, weight in enumerate(used)} if any(used) else {}

    def state_dict(self) -> dict[str, Any]:
        """The moments of Adam, and the weights of the penalties."""
        return super().state_dict() | {"inner_kl_weights": self.inner_kl_weights.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the moments and weights of a state."""
        super().load_state_dict(state)
        self.inner_kl_weights = torch.tensor(state["inner_kl_weights"], dtype=torch.float64)
