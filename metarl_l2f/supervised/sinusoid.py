"""Sinusoid regression: fit y = A sin(ω x − b) from a few points (MAML, Finn et al. 2017, Sec. 5.1; L2F, Table 7).

Amplitude A and phase b vary from task to task, and in Meta-SGD's protocol (Li et al. 2017), which L2F follows, the
frequency ω too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..checks import check_count, check_number
from ..core.parameters import Params
from ..networks.mlp import MLP
from .episodes import Split, Task

INPUT_RANGE = (-5.0, 5.0)
EVALUATION_POINTS = 100
"""The number of query points per curve in validation and evaluation, as in Meta-SGD's protocol."""
FREQUENCIES = (0.8, 1.2)
"""The range of ω in varying-frequency tasks. The papers do not print theirs; circulating code uses this one."""

Disjoint = Literal["none", "amplitude", "phase", "both"]


@dataclass(frozen=True)
class Curves:
    """A family of sinusoids, whose amplitude, phase and frequency are uniform in these ranges.

    Raises:
        ValueError: the lower bound of a range is above the upper one, or a bound is not finite.
    """

    amplitude: tuple[float, float] = (0.1, 5.0)
    """The range of A."""
    phase: tuple[float, float] = (0.0, math.pi)
    """The range of b, in radians."""
    frequency: tuple[float, float] = (1.0, 1.0)
    """The range of ω, in radians per unit of x."""

    def __post_init__(self) -> None:
        for name in ("amplitude", "phase", "frequency"):
            low, high = getattr(self, name)
            for bound in (low, high):
                check_number(name, bound, "(-inf, inf)")
            if low > high:
                raise ValueError(f"{name} must be a range (low, high) with low <= high, got {(low, high)}")

    def draw(self, generator: np.random.Generator, number: int) -> np.ndarray:
        """Draw curves: (number, 3), the A, b and ω of each."""
        low, high = np.array([self.amplitude, self.phase, self.frequency]).T
        return generator.uniform(low, high, (number, 3))


def train_and_test_curves(disjoint: Disjoint, frequency: tuple[float, float] = (1.0, 1.0)) -> tuple[Curves, Curves]:
    """Build the families of training and of testing (Figure 4): the same, or disjoint in amplitude, phase or both.

    The ranges of Figure 4b were in a supplement that is not public. Here a disjoint range is cut in halves: training
    draws from the lower half, testing from the upper one.

    Args:
        disjoint: the quantities whose ranges are disjoint.
        frequency: the range of ω in both families.
    """
    whole = Curves(frequency=frequency)
    lower, upper = {}, {}
    for name in ("amplitude", "phase"):
        if disjoint in (name, "both"):
            low, high = getattr(whole, name)
            lower[name], upper[name] = (low, (low + high) / 2), ((low + high) / 2, high)
    return replace(whole, **lower), replace(whole, **upper)


def sine(curves: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Compute y = A sin(ω x − b), (N, n), for curves (N, 3) and x (N, n)."""
    amplitude, phase, frequency = curves.T[:, :, None]
    return amplitude * np.sin(frequency * x - phase)


def draw_tasks(
    family: Curves, generator: np.random.Generator, number: int, shots: int, queries: int, spread_evenly: bool = False
) -> Task:
    """Draw tasks of `shots` support and `queries` query points, x ~ U(−5, 5).

    Args:
        family: the family of curves.
        generator: the source of all random numbers.
        number: N, the number of tasks.
        shots: K, the number of support points per task.
        queries: the number of query points per task.
        spread_evenly: whether query points lie at equal distances instead, as pictures need them.
    Returns:
        Inputs and targets (N, ·, 1) float32, stacked over tasks.
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
        train: the family of curves of training and validation.
        test: the family of curves of the final evaluation.
        shots: K, the number of support points per task.
        queries: the number of query points per task in training; validation and evaluation use 100.
        hidden_sizes: the number of units of each hidden layer of the network, an MLP with ReLU.
        context_size: the number of numbers in a task's context, which the first layer reads (CAVIA); 0 for none.
    Raises:
        ValueError: a number of points is not positive.
    """

    score_name = "mse"
    score_digits = 4
    higher_is_better = False
    captions: Mapping[str, str] = {
        "sinusoid_fit": "Held-out curves: given points, and the fits before adaptation and after each inner step."
    }
    slow_to_draw = False
    embedding_size: int | None = None

    def __init__(
        self,
        train: Curves,
        test: Curves,
        shots: int = 10,
        queries: int = 10,
        hidden_sizes: tuple[int, ...] = (40, 40),
        context_size: int = 0,
    ) -> None:
        check_count("shots", shots, unit="points")
        check_count("queries", queries, unit="points")
        self.families = {"train": train, "val": train, "test": test}
        self.shots, self.queries, self.hidden_sizes, self.context_size = shots, queries, hidden_sizes, context_size

    def network(self, generator: torch.Generator) -> MLP:
        return MLP([1, *self.hidden_sizes, 1], "relu", generator, self.context_size)

    def sample(self, split: Split, generator: np.random.Generator, number: int) -> Task:
        queries = self.queries if split == "train" else EVALUATION_POINTS
        return draw_tasks(self.families[split], generator, number, self.shots, queries)

    def outputs(self, network: MLP, params: Params, inputs: Tensor, step: int) -> Tensor:
        return network(params, inputs)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean squared error."""
        return (outputs - targets).square().mean()

    score = loss


def _column(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).unsqueeze(-1)
