"""ALFA: step sizes and decays that are generated for the task at hand, at every inner step (Baik, Choi, Choi, Kim, Lee,
"Meta-Learning with Adaptive Hyperparameters", NeurIPS 2020, arXiv 2011.00209). For one task."""

import torch
from torch import Tensor, nn

from .attenuation import EmbeddingScale, embed
from .parameters import Params, Shapes, small_network
from .update_rules import InnerLoop, UpdateRule

INITIAL_DECAY = 5e-4
"""Initial decay β⁰ of a step, relative to its step size, as in the released code."""


class ALFA(UpdateRule):
    """θ ← (1 − β) θ − α ∇L with α = α⁰ α¹ and β = β⁰ β¹ for each step and tensor (ALFA, Eq. 4 to 6).

    α⁰ and β⁰ are learned for each step and tensor, as in LSLR; a small network generates α¹ and β¹ from the task's mean
    gradients and mean weights at that step. Where it always gives α¹ = 1 and β¹ = 0, this is MAML with LSLR.

    Two departures from the paper: the network's last bias starts so that α¹ is about 1 and β¹ about 0, which is near
    MAML, and its input is data, not a path for gradients, as the embedding of L2F is (L2F, Sec. 3.4).

    Args:
        shapes: names and shapes of the tensors that adapt.
        inner: the number of steps, and the initial α⁰, which is learned in any case.
        embedding: how mean gradients are scaled, as in `attenuation.embed`.
        generator: draws the network's initial weights.
    """

    _numbers: Tensor

    def __init__(
        self,
        shapes: Shapes,
        inner: InnerLoop,
        embedding: EmbeddingScale = "normalised",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(shapes, inner.inner_steps)
        self.inner, self.embedding = inner, embedding
        tensors = len(shapes)
        self.alpha = nn.Parameter(torch.full((self.steps, tensors), inner.inner_lr))
        self.beta = nn.Parameter(torch.full((self.steps, tensors), INITIAL_DECAY * inner.inner_lr))
        self.mlp = small_network(2 * tensors, 2 * tensors, 2 * tensors, generator)
        with torch.no_grad():
            self.mlp[2].get_parameter("bias").copy_(torch.tensor([1.0] * tensors + [0.0] * tensors))
        self.register_buffer("_numbers", torch.arange(tensors), persistent=False)

    def state(self, params: Params, gradients: Params) -> Tensor:
        """The input of the network: mean gradients, then mean weights, (2 · tensors,), detached (Eq. 6).

        Args:
            params: parameters before the step, by name.
            gradients: gradients of the task's loss, by name.
        """
        chosen = [gradients[name] for name in self.shapes]
        owners = [number.reshape([1] * g.ndim) for number, g in zip(self._numbers, chosen, strict=True)]
        slopes = embed(chosen, owners, self.embedding, len(chosen))
        weights = torch.stack([params[name].mean() for name in self.shapes])
        return torch.cat([slopes, weights.detach()])

    def forward(self, params: Params, gradients: Params, step: int) -> Params:
        """One step with the task's own α and β; beyond the trained steps those of the last one, shrunk."""
        row, shrunk = min(step, self.steps - 1), 1.0 if step < self.steps else self.inner.later_lr_factor
        alpha, beta = self.mlp(self.state(params, gradients)).chunk(2)
        alpha, beta = shrunk * self.alpha[row] * alpha, shrunk * self.beta[row] * beta
        moved = {
            name: (1 - decay) * params[name] - size * gradients[name]
            for name, size, decay in zip(self.shapes, alpha, beta, strict=True)
        }
        return params | moved

    def learned(self) -> dict[str, float]:
        """α⁰ and β⁰ by tensor and step."""
        return {
            f"{tag}/{name}/{step}": float(values[step, column].detach())
            for tag, values in (("step_size", self.alpha), ("decay", self.beta))
            for step in range(self.steps)
            for column, name in enumerate(self.shapes)
        }
