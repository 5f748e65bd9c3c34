"""What adaptation is worth on held-out tasks: the mean after 0 … k steps, with 95 % intervals over tasks.

Knows no domain: a score is a return, an error or an accuracy, one number per task and step.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from .training.checkpoint import write_atomically

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean and the half-width of its confidence interval."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.half_width:.2f}"


def mean_interval(values: np.ndarray) -> Interval:
    """Student's t interval of a mean: x̄ ± t_{0.975, n−1} s / √n.

    Args:
        values: (n,), independent; with n = 1 the half-width is NaN.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"values must be a non-empty list of numbers, got an array of shape {values.shape}")
    if len(values) == 1:
        return Interval(float(values[0]), float("nan"))
    quantile = stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)
    return Interval(float(values.mean()), float(quantile * values.std(ddof=1) / np.sqrt(len(values))))


@dataclass(frozen=True)
class Evaluation:
    """Scores of one trained model on held-out tasks."""

    scores: np.ndarray
    """(N, k + 1): of every task, before adaptation and after 1 … k steps."""
    protocol: Mapping[str, Any]
    """How they were measured: environment, tasks, episodes, seed. Two evaluations that share it can be paired."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """What was measured: run, method, checkpoint, later step sizes."""

    def intervals(self) -> list[Interval]:
        """Mean over tasks and its interval, after 0 … k steps."""
        return [mean_interval(column) for column in self.scores.T]

    def table(self, score: str = "return") -> str:
        """A plain-text table, one line per step."""
        rows = [f"{step:>5}  {interval.mean:>9.2f} ± {interval.half_width:.2f}" for step, interval in self._numbered()]
        return "\n".join([f"steps  {score} (mean over {len(self.scores)} held-out tasks ± 95 % interval)", *rows])

    def _numbered(self) -> list[tuple[int, Interval]]:
        return list(enumerate(self.intervals()))

    def save(self, path: Path) -> None:
        """Write evaluation.json: protocol, mean and interval by step, and every task's scores."""
        content = {
            "protocol": dict(self.protocol),
            "model": dict(self.model),
            "mean": [interval.mean for interval in self.intervals()],
            "interval_95": [_finite(interval.half_width) for interval in self.intervals()],
            "scores": np.asarray(self.scores).round(4).tolist(),
        }
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def load_evaluation(path: Path) -> Evaluation:
    """Read what `Evaluation.save` wrote."""
    content = json.loads(Path(path).read_text())
    return Evaluation(np.array(content["scores"]), content["protocol"], content["model"])


def paired_differences(ours: Evaluation, theirs: Evaluation) -> list[Interval]:
    """Mean of the task-by-task differences ours − theirs after 0 … k steps, with intervals over tasks.

    Raises:
        ValueError: the two were not measured under the same protocol on the same tasks.
    """
    if ours.protocol != theirs.protocol or ours.scores.shape != theirs.scores.shape:
        raise ValueError(
            f"paired evaluations must share one protocol, got {dict(ours.protocol)} and {dict(theirs.protocol)}; "
            "evaluate both with the same tasks, episodes, steps and seed"
        )
    return [mean_interval(column) for column in (ours.scores - theirs.scores).T]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
