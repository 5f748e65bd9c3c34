"""The inner step: how a gradient moves what adapts (MAML, Finn et al. 2017, Eq. 1). For one task."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..checks import check_choices, check_count, check_numbers
from .parameters import Params, Shapes

StepSizeScope = Literal["tensor", "weight"]
Rule = Literal["descent", "alfa"]
Adapts = Literal["all", "head", "body", "context"]


@dataclass(frozen=True)
class InnerLoop:
    """The gradient steps that adapt the (attenuated) initialisation to one task."""

    inner_steps: int = 1
    """Gradient steps k per task."""
    inner_lr: float = 0.1
    """Step size α; its initial value if it is learned."""
    learn_inner_lr: bool = False
    """Learn the step sizes, each step's own, together with the initialisation."""
    inner_lr_scope: StepSizeScope = "tensor"
    """The unit that shares a learned step size: a `tensor` (LSLR of MAML++), or a single `weight` (Meta-SGD)."""
    later_lr_factor: float = 0.5
    """Step size of steps beyond the trained ones, relative to the last trained one (the MAML paper halves it)."""
    first_order: bool = False
    """Treat inner gradients as constants in the meta-gradient (first-order MAML)."""
    update_rule: Rule = "descent"
    """`descent`: θ − α ∇L. `alfa`: α and a decay of θ are generated for each step and tensor, from the task's mean
    gradients and mean weights (ALFA)."""
    adapts: Adapts = "all"
    """The part that the inner steps move: `all` of θ, the `head` (last layer) alone (ANIL), the `body` without it
    (BOIL), or a `context` that starts at 0 for every task and is fed to the network's first layer (CAVIA)."""

    def __post_init__(self) -> None:
        check_count("inner_steps", self.inner_steps, unit="gradient steps")
        check_choices(self, inner_lr_scope=StepSizeScope, update_rule=Rule, adapts=Adapts)
        check_numbers(self, "(0, inf)", "inner_lr", "later_lr_factor")


def descend(params: Params, gradients: Params, alpha: Params) -> Params:
    """One inner gradient step, θ − α ∇L_D(f_θ) (Eq. 1); tensors without a gradient stay."""
    return params | {name: params[name] - alpha[name] * g for name, g in gradients.items()}


class UpdateRule(nn.Module, ABC):
    """One inner step: how a gradient moves the tensors that adapt. Its own parameters, if any, are meta-learned.

    Args:
        shapes: names and shapes of the tensors that adapt.
        steps: number of inner steps in training; there may be more in evaluation.
    """

    def __init__(self, shapes: Shapes, steps: int) -> None:
        super().__init__()
        self.shapes, self.steps = dict(shapes), steps

    @property
    def names(self) -> list[str]:
        """Names of the tensors that adapt."""
        return list(self.shapes)

    @abstractmethod
    def forward(self, params: Params, gradients: Params, step: int) -> Params:
        """The parameters after one inner step.

        Args:
            params: parameters before the step, by name; those that do not adapt are returned as they are.
            gradients: gradients of the task's loss, by name; further ones are ignored.
            step: the inner step's number, from 0.
        """

    def learned(self) -> dict[str, float]:
        """The learned parameters of the rule, as metrics by tag; empty where it has none."""
        return {}


class GradientDescent(UpdateRule):
    """θ − α ∇L (Eq. 1), with α fixed, or learned: per tensor and step (LSLR of MAML++), or per weight (Meta-SGD).

    Args:
        shapes: names and shapes of the tensors that adapt.
        inner: the number of steps and their sizes.
    """

    step_sizes: Tensor
    """(inner_steps, tensors or weights)."""

    def __init__(self, shapes: Shapes, inner: InnerLoop) -> None:
        super().__init__(shapes, inner.inner_steps)
        self.inner = inner
        columns = len(shapes) if inner.inner_lr_scope == "tensor" else sum(size.numel() for size in shapes.values())
        alpha = torch.full((inner.inner_steps, columns), inner.inner_lr)
        if inner.learn_inner_lr:
            self.step_sizes = nn.Parameter(alpha)
        else:
            self.register_buffer("step_sizes", alpha)

    def alpha(self, step: int) -> Params:
        """Step sizes of inner step `step` (from 0) by name; those beyond the trained steps shrink the last."""
        row = self.step_sizes[step] if step < self.steps else self.inner.later_lr_factor * self.step_sizes[-1]
        if self.inner.inner_lr_scope == "tensor":
            return dict(zip(self.shapes, row, strict=True))
        pieces = row.split([shape.numel() for shape in self.shapes.values()])
        return {n: piece.reshape(s) for (n, s), piece in zip(self.shapes.items(), pieces, strict=True)}

    def forward(self, params: Params, gradients: Params, step: int) -> Params:
        """One step along the gradients of what adapts."""
        return descend(params, {name: gradients[name] for name in self.shapes}, self.alpha(step))

    def learned(self) -> dict[str, float]:
        """The step sizes by tensor and step, where they are learned (the mean over a tensor's, if they differ)."""
        return {
            f"step_size/{name}/{step}": float(size.detach().mean())
            for step in range(self.steps if self.inner.learn_inner_lr else 0)
            for name, size in self.alpha(step).items()
        }
