"""Sinusoid regression: fit y = A sin(ω x − b) from a few points (MAML, Finn et al. 2017, Sec. 5.1; L2F, Table 7).

Amplitude A and phase b vary from task to task, and in Meta-SGD's protocol (Li et al. 2017), which L2F follows, the
frequency ω too.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..checks import check_number
from ..core import Params
from ..networks.policies import MLP
from .episodes import Split, Task

INPUT_RANGE = (-5.0, 5.0)
EVALUATION_POINTS = 100
"""Query points per curve in validation and evaluation, as in Meta-SGD's protocol."""
FREQUENCIES = (0.8, 1.2)
"""The papers do not print their range of frequencies; this one is used in circulating code."""

Disjoint = Literal["none", "amplitude", "phase", "both"]


@dataclass(frozen=True)
class Curves:
    """A family of sinusoids: each is drawn uniformly from these ranges.

    Raises:
        ValueError: a range is upside down or not finite.
    """

    amplitude: tuple[float, float] = (0.1, 5.0)
    """Range of A."""
    phase: tuple[float, float] = (0.0, math.pi)
    """Range of b, radians."""
    frequency: tuple[float, float] = (1.0, 1.0)
    """Range of ω."""

    def __post_init__(self) -> None:
        for name in ("amplitude", "phase", "frequency"):
            low, high = getattr(self, name)
            for bound in (low, high):
                check_number(name, bound, "(-inf, inf)")
            if low > high:
                raise ValueError(f"{name} must be a range (low, high) with low <= high, got {(low, high)}")

    def draw(self, generator: np.random.Generator, number: int) -> np.ndarray:
        """(number, 3): each curve's A, b and ω."""
        low, high = np.array([self.amplitude, self.phase, self.frequency]).T
        return generator.uniform(low, high, (number, 3))


def train_and_test_curves(disjoint: Disjoint, frequency: tuple[float, float] = (1.0, 1.0)) -> tuple[Curves, Curves]:
    """Train and test families (Figure 4): the same, or without overlap in amplitude, phase or both.

    The ranges of Figure 4b were in a supplement that is not public; these halve a range, the lower half to train on.

    Args:
        disjoint: what testing draws from a range that training never meets.
        frequency: range of ω, the same for both.
    """
    whole = Curves(frequency=frequency)
    lower, upper = {}, {}
    for name in ("amplitude", "phase"):
        if disjoint in (name, "both"):
            low, high = getattr(whole, name)
            lower[name], upper[name] = (low, (low + high) / 2), ((low + high) / 2, high)
    return replace(whole, **lower), replace(whole, **upper)


def sine(curves: np.ndarray, x: np.ndarray) -> np.ndarray:
    """y = A sin(ω x − b), for curves (N, 3) and x (N, n): (N, n)."""
    amplitude, phase, frequency = curves.T[:, :, None]
    return amplitude * np.sin(frequency * x - phase)


def draw_tasks(
    family: Curves, generator: np.random.Generator, number: int, shots: int, queries: int, spread_evenly: bool = False
) -> Task:
    """Tasks of `shots` support and `queries` query points, x ~ U(−5, 5).

    Args:
        family: the curves.
        generator: draws everything.
        number: N tasks.
        shots: K support points per task.
        queries: query points per task.
        spread_evenly: put the query points at equal distances instead, for pictures.
    Returns:
        Stacked over tasks, inputs and targets (N, ·, 1) float32.
    """
    curves = family.draw(generator, number)
    x = generator.uniform(*INPUT_RANGE, (number, shots + queries))
    if spread_evenly:
        x[:, shots:] = np.linspace(*INPUT_RANGE, queries)
    inputs, targets = (_column(values) for values in (x, sine(curves, x)))
    no_prototype = inputs.new_empty(number, 0)
    return Task(inputs[:, :shots], targets[:, :shots], inputs[:, shots:], targets[:, shots:], no_prototype)


class SinusoidProblem:
    """Sinusoid regression as `MetaSupervised` trains it.

    Args:
        train: the curves learned from, and validated on.
        test: the curves evaluated on.
        shots: K support points per task.
        queries: query points per task in training; evaluation takes 100.
        hidden_sizes: of the network, an MLP with ReLU.
    """

    score_name = "mse"
    higher_is_better = False
    slow_to_draw = False
    embedding_size: int | None = None

    def __init__(
        self,
        train: Curves,
        test: Curves,
        shots: int = 10,
        queries: int = 10,
        hidden_sizes: tuple[int, ...] = (40, 40),
    ) -> None:
        for name, value in (("shots", shots), ("queries", queries)):
            if value < 1:
                raise ValueError(f"{name} must be a positive number of points, got {value}")
        self.families = {"train": train, "val": train, "test": test}
        self.shots, self.queries, self.hidden_sizes = shots, queries, hidden_sizes

    def network(self, generator: torch.Generator) -> MLP:
        return MLP([1, *self.hidden_sizes, 1], "relu", generator)

    def sample(self, split: Split, generator: np.random.Generator, number: int) -> Task:
        queries = self.queries if split == "train" else EVALUATION_POINTS
        return draw_tasks(self.families[split], generator, number, self.shots, queries)

    def outputs(self, network: MLP, params: Params, inputs: Tensor, step: int) -> Tensor:
        return network(params, inputs)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error."""
        return (outputs - targets).square().mean()

    score = loss


def _column(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).unsqueeze(-1)
